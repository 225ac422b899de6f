"""What every family's budget has in common: text form, partial order, choice by name.

A budget says how much of a nested model runs. It prints and parses, names a folder, is partially
ordered (``a <= b`` when the model at ``a`` is contained in the model at ``b``) and knows its cost
by formula. This module needs only the standard library, so a command line can parse budgets
without importing torch.
"""

import math
import re
from collections.abc import Iterable, Sequence
from typing import Any, Protocol, Self, runtime_checkable

NAMED_BUDGETS = ("smallest", "middle", "largest")


class BudgetError(ValueError):
    """A budget that cannot be read, or that the model cannot be cut to."""


@runtime_checkable
class Budget(Protocol):
    """The interface shared by the budgets of all families."""

    @classmethod
    def parse(cls, text: object) -> Self:
        """Read the text form; raises `BudgetError`."""
        ...

    @property
    def folder_name(self) -> str:
        """A name without separators or collisions, for folders and Hub repositories."""
        ...

    def __le__(self, other: Self) -> bool:
        """Whether the model at this budget is contained in the model at ``other``."""
        ...

    def check(self, config: Any) -> Self:
        """Return the one form of this budget in ``config``; raises `BudgetError` if it has none.

        The error names the nearest possible budget.
        """
        ...

    def parameters(self, config: Any) -> int:
        """Number of parameters of the slice."""
        ...

    def flops(self, config: Any, sequence_length: int) -> int:
        """Floating-point operations (2 x multiply-adds) of one forward pass of the slice."""
        ...


def require_text(value: object, example: str) -> str:
    """Return ``value`` if it is text, else explain the YAML trap.

    YAML 1.1 reads an unquoted ``1:12:12`` as a base-60 number (4332), so an integer here nearly
    always means a missing pair of quotes.

    Raises:
        BudgetError: if ``value`` is not a string.
    """
    if not isinstance(value, str):
        raise BudgetError(
            f"budget {value!r} is a {type(value).__name__}, not text; "
            f'quote budgets in YAML ("{example}"), which reads 1:12:12 as 4332'
        )
    return value.strip()


def format_ratio(ratio: float) -> str:
    """Print a ratio with at least one and at most six decimals: ``0.5``, ``0.125``, ``1.0``."""
    text = f"{ratio:.6f}".rstrip("0")
    return text + "0" if text.endswith(".") else text


def ratio_digits(ratio: float) -> str:
    """Digits of a ratio for folder names: ``0.5 -> 050``, ``1.0 -> 100``, ``0.125 -> 0125``.

    The first digit is the integer part and at least two decimals follow, so two different ratios
    never share their digits.
    """
    whole, decimals = format_ratio(ratio).split(".")
    return whole + decimals.ljust(2, "0")


def parse_count(text: str, axis: str, budget: str) -> int:
    """Read a positive whole number of a budget.

    Raises:
        BudgetError: if ``text`` is not a whole number of at least 1.
    """
    if not re.fullmatch(r"[0-9]+", text) or int(text) < 1:
        raise BudgetError(f"{axis} {text!r} in budget {budget!r} must be a whole number >= 1")
    return int(text)


def parse_ratio(text: str, axis: str, budget: str) -> float:
    """Read a ratio in (0, 1], rounded to the six decimals a budget prints.

    Raises:
        BudgetError: if ``text`` is not a number in (0, 1].
    """
    try:
        ratio = round(float(text), 6)
    except ValueError:
        ratio = math.nan
    if not 0.0 < ratio <= 1.0:
        raise BudgetError(
            f"{axis} {text!r} in budget {budget!r} must be a number in (0, 1], such as 0.5 or 1.0"
        )
    return ratio


def ends_of(budgets: Sequence[Any]) -> tuple[Any, Any]:
    """Return the budget contained in all others and the one that contains all others.

    Raises:
        BudgetError: if the partial order has no smallest or no largest element.
    """
    smallest = [b for b in budgets if all(b <= other for other in budgets)]
    largest = [b for b in budgets if all(other <= b for other in budgets)]
    if not smallest or not largest:
        raise BudgetError(
            f"budgets {', '.join(map(str, budgets))} have no single smallest and largest; "
            "add the budget that all others contain and the one that contains them all"
        )
    return smallest[0], largest[0]


def middle_of(budgets: Sequence[Any], config: Any, sequence_length: int = 128) -> Any:
    """Return the budget whose FLOPs are nearest the geometric mean of all budgets' FLOPs.

    Distance is measured on the logarithm of the FLOPs. The two ends are left out when anything
    else is there, and ties go to the cheaper budget. FLOPs are those of the trunk, without the
    head: what a model's middle is must not depend on how many tokens an evaluation predicts.
    """
    logs = {b: math.log(b.flops(config, sequence_length)) for b in budgets}
    mean = sum(logs.values()) / len(logs)
    inner = [b for b in budgets if b not in ends_of(budgets)] or list(budgets)
    return min(inner, key=lambda b: (abs(logs[b] - mean), logs[b]))


def select_budgets(requests: Iterable[object], config: Any) -> list[Any]:
    """Turn requests (``"0.5:6:6"``, ``"smallest"``, budget objects) into checked budgets.

    Args:
        requests: texts, names from `NAMED_BUDGETS`, ``"all"``, or budget objects.
        config: a configuration with ``budget_class`` and ``budget_list()``.

    Returns:
        The budgets in the order asked for, without repeats.

    Raises:
        BudgetError: for a budget that cannot be read or that does not fit ``config``.
    """
    budget_class, trained = config.budget_class, config.budget_list()
    chosen: list[Any] = []
    for request in requests:
        if request == "all":
            picked = list(trained)
        elif request in ("smallest", "largest"):
            picked = [ends_of(trained)[request == "largest"]]
        elif request == "middle":
            picked = [middle_of(trained, config)]
        elif isinstance(request, budget_class):
            picked = [request]
        else:
            picked = [budget_class.parse(request)]
        chosen += [budget.check(config) for budget in picked]
    return list(dict.fromkeys(chosen))
