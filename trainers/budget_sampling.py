"""Which budgets one training step runs, torch-free.

The sandwich rule (Yu and Huang, https://arxiv.org/abs/1903.05134): every step trains the smallest
and the largest sub-model, and a few in between. The largest also touches every parameter, which
distributed training needs.
"""

import random
from collections.abc import Callable, Hashable, Sequence
from itertools import pairwise
from typing import Any, Generic, Literal, Protocol, TypeVar


class PartiallyOrdered(Protocol):
    """Anything with a partial order `a <= b`."""

    def __le__(self, other: Any, /) -> bool:
        """Return True where self is contained in other."""
        ...


BudgetT = TypeVar("BudgetT", bound=PartiallyOrdered)
BudgetT_co = TypeVar("BudgetT_co", covariant=True)


class BudgetSampler(Protocol[BudgetT_co]):
    """What a trainer needs of a sampler."""

    def sample(self, step: int) -> tuple[BudgetT_co, ...]:
        """Return the budgets of a step, the largest first."""
        ...


class SandwichSampler(Generic[BudgetT]):
    """Pure function of `(seed, step)`: equal on all ranks and after a resume.

    `mode="sandwich"`: the largest budget first, the smallest second, then one budget from each of
    `budgets_per_step - 2` strata. A stratum is a run of neighbours in the order of FLOPs. Within
    a stratum of m budgets the draw is without replacement: each m steps are one shuffled pass. So
    with m the size of the largest stratum, the first m steps reach every budget, and so do any
    2m - 1 steps in a row.

    With `trunk_of`, the budgets in between share one trunk instead: budgets for which it returns
    the same value differ only in depth, so one pass through the layers supervises several of them.
    Each step takes the next trunk of a shuffled round, and the next of its budgets in turn.

    `mode="fixed"`: all `budgets`, largest first, at every step (a short list for the last phase of
    training).

    Args:
        budgets: Distinct budgets with one that contains all others (and, in sandwich mode, one
            that all others contain).
        flops: FLOPs of each budget, in the same order.
        budgets_per_step: How many a step runs in sandwich mode, >= 1; 1 runs the largest only.
        seed: Seed of the draws.
        mode: `sandwich` or `fixed`.
        trunk_of: what budgets that share a pass have in common; None draws them from strata.

    Raises:
        ValueError: If the lists do not fit, budgets repeat, or an end of the lattice is missing.
    """

    def __init__(
        self,
        budgets: Sequence[BudgetT],
        flops: Sequence[float],
        budgets_per_step: int = 4,
        seed: int = 0,
        mode: Literal["sandwich", "fixed"] = "sandwich",
        trunk_of: Callable[[BudgetT], Hashable] | None = None,
    ) -> None:
        if not budgets or len(budgets) != len(flops):
            raise ValueError(
                f"got {len(budgets)} budgets and {len(flops)} FLOP numbers; give one or more "
                "budgets and one number for each"
            )
        if budgets_per_step < 1:
            raise ValueError(f"budgets_per_step is {budgets_per_step}, it must be 1 or more")
        if mode not in ("sandwich", "fixed"):
            raise ValueError(f"mode is {mode!r}, it must be 'sandwich' or 'fixed'")
        by_flops = sorted(range(len(budgets)), key=lambda i: (flops[i], str(budgets[i])))
        ordered = [budgets[index] for index in by_flops]
        _check_distinct(ordered)
        self.seed = seed
        self.mode = mode
        self._ordered = ordered
        self._largest = _find_end(ordered, "largest")
        self._smallest = self._largest if mode == "fixed" else _find_end(ordered, "smallest")
        self._strata = self._cut_strata(budgets_per_step)
        self._trunks = [] if trunk_of is None else self._group_by_trunk(trunk_of)
        self._has_smallest = budgets_per_step >= 2 and len(ordered) >= 2

    def _cut_strata(self, budgets_per_step: int) -> list[list[BudgetT]]:
        ends = (self._largest, self._smallest)
        middle = [budget for budget in self._ordered if budget not in ends]
        count = min(max(0, budgets_per_step - 2), len(middle))
        cuts = [round(index * len(middle) / count) for index in range(count + 1)] if count else [0]
        return [middle[start:end] for start, end in pairwise(cuts)]

    def sample(self, step: int) -> tuple[BudgetT, ...]:
        """Return the budgets of optimizer step `step` (from 0): largest first, smallest second."""
        if self.mode == "fixed":
            rest = [budget for budget in reversed(self._ordered) if budget != self._largest]
            return (self._largest, *rest)
        head = (self._largest, self._smallest) if self._has_smallest else (self._largest,)
        if self._trunks:
            return head + self._draw_trunk(step, len(self._strata))
        return head + tuple(
            self._draw(index, stratum, step) for index, stratum in enumerate(self._strata)
        )

    def _group_by_trunk(self, trunk_of: Callable[[BudgetT], Hashable]) -> list[list[BudgetT]]:
        trunks: dict[Hashable, list[BudgetT]] = {}
        for budget in self._ordered:
            if budget not in (self._largest, self._smallest):
                trunks.setdefault(trunk_of(budget), []).append(budget)
        return list(trunks.values())

    def _draw_trunk(self, step: int, count: int) -> tuple[BudgetT, ...]:
        """Take `count` budgets of the step's trunk, or all of a trunk that has fewer."""
        round_, position = divmod(step, len(self._trunks))
        order = random.Random(f"{self.seed}/trunks/{round_}").sample(
            range(len(self._trunks)), len(self._trunks)
        )
        trunk = self._trunks[order[position]]
        first = round_ * count
        return tuple(trunk[(first + i) % len(trunk)] for i in range(min(count, len(trunk))))

    def _draw(self, index: int, stratum: list[BudgetT], step: int) -> BudgetT:
        cycle, position = divmod(step, len(stratum))
        # A string seed is hashed by SHA-512: the same on every machine and Python version.
        order = random.Random(f"{self.seed}/{index}/{cycle}").sample(
            range(len(stratum)), len(stratum)
        )
        return stratum[order[position]]


def _check_distinct(budgets: Sequence[PartiallyOrdered]) -> None:
    for index, budget in enumerate(budgets):
        if budget in budgets[:index]:
            raise ValueError(f"budget {budget} is listed twice; list each budget once")


def _find_end(budgets: Sequence[BudgetT], which: Literal["smallest", "largest"]) -> BudgetT:
    """Find the budget that contains all others (largest) or that all others contain."""
    for candidate in budgets:
        if which == "largest" and all(other <= candidate for other in budgets):
            return candidate
        if which == "smallest" and all(candidate <= other for other in budgets):
            return candidate
    raise ValueError(
        f"no {which} budget among {', '.join(map(str, budgets))}: add one that is "
        f"{'at least' if which == 'largest' else 'at most'} as large as all others on every axis"
    )
