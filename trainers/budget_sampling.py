"""Which budgets one training step runs, torch-free.

The sandwich rule (Yu and Huang, https://arxiv.org/abs/1903.05134): every step trains the smallest
and the largest sub-model, and a few in between. The largest also touches every parameter, which
distributed training needs.
"""

import random
from collections.abc import Callable, Hashable, Sequence
from typing import Any, Generic, Literal, Protocol, TypeVar


class PartiallyOrdered(Protocol):
    """Anything with a partial order `a <= b`."""

    def __le__(self, other: Any, /) -> bool:
        """Return True where self is contained in other."""
        ...


BudgetT = TypeVar("BudgetT", bound=PartiallyOrdered)
BudgetT_co = TypeVar("BudgetT_co", covariant=True)


class BudgetSampler(Protocol[BudgetT_co]):
    """What a trainer needs of a sampler: a pure function, equal on all ranks and after a resume."""

    def sample(self, step: int, total_steps: int, /) -> tuple[BudgetT_co, ...]:
        """Return the budgets of a step of a run of `total_steps`, the largest first."""
        ...


class SandwichSampler(Generic[BudgetT]):
    """Pure function of `(seed, step)`: equal on all ranks and after a resume.

    `mode="sandwich"`: the largest budget first, the smallest second, then c budgets in between,
    `c = min(budgets_per_step - 2, m)` of the m there are. Budgets of one trunk differ only in
    depth, so one pass through the layers supervises several of them: the c budgets of a step are
    of one trunk. A trunk with fewer than c is filled up from the next one of the round.

    A round is m steps, and it takes each of the m budgets in between exactly c times. The counts
    of two of them are thus equal after whole rounds and differ by c at most at any step; any
    2m - 1 steps in a row reach every budget. Trunks, and the budgets within each, are shuffled
    anew every round.

    `mode="fixed"`: all `budgets`, largest first, at every step (a short list for the last phase of
    training).

    Args:
        budgets: Distinct budgets with one that contains all others (and, in sandwich mode, one
            that all others contain).
        flops: FLOPs of each budget, in the same order.
        budgets_per_step: How many a step runs in sandwich mode, >= 1; 1 runs the largest only.
        seed: Seed of the draws.
        mode: `sandwich` or `fixed`.
        trunk_of: What budgets that share a pass have in common.

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
        *,
        trunk_of: Callable[[BudgetT], Hashable],
    ) -> None:
        _check_lists(budgets, flops, budgets_per_step)
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
        self._has_smallest = budgets_per_step >= 2 and len(ordered) >= 2
        middle = [b for b in ordered if b not in (self._largest, self._smallest)]
        self._steps_per_round = len(middle)
        self._middle_per_step = min(max(0, budgets_per_step - 2), len(middle))
        trunks: dict[Hashable, list[BudgetT]] = {}
        for budget in middle:
            trunks.setdefault(trunk_of(budget), []).append(budget)
        self._trunks = list(trunks.values())

    def sample(self, step: int, total_steps: int = 0) -> tuple[BudgetT, ...]:
        """Return the budgets of optimizer step `step` (from 0): largest first, smallest second.

        `total_steps` is not looked at: the draws do not depend on the length of the run.
        """
        if self.mode == "fixed":
            rest = [budget for budget in reversed(self._ordered) if budget != self._largest]
            return (self._largest, *rest)
        head = (self._largest, self._smallest) if self._has_smallest else (self._largest,)
        if not self._middle_per_step:
            return head
        round_, position = divmod(step, self._steps_per_round)
        return head + self._round(round_)[position]

    def _round(self, round_: int) -> list[tuple[BudgetT, ...]]:
        """Return the budgets in between of each step of a round.

        c copies of a group of g >= c budgets, one after the other, fill g steps of c budgets, and
        no step has a budget twice. The groups take turns.
        """
        per_step = self._middle_per_step
        groups = self._shuffled_groups(round_)
        passes = range(max(map(len, groups)))
        return [
            tuple(group[(first * per_step + i) % len(group)] for i in range(per_step))
            for first in passes
            for group in groups
            if first < len(group)
        ]

    def _shuffled_groups(self, round_: int) -> list[list[BudgetT]]:
        """Shuffle the trunks; join those that do not fill a step with the one that follows."""
        # A string seed is hashed by SHA-512: the same on every machine and Python version.
        generator = random.Random(f"{self.seed}/{round_}")
        groups: list[list[BudgetT]] = []
        short: list[BudgetT] = []
        for trunk in generator.sample(self._trunks, len(self._trunks)):
            short += generator.sample(trunk, len(trunk))
            if len(short) >= self._middle_per_step:
                groups.append(short)
                short = []
        # Behind the last trunk comes the first one.
        groups[0] = short + groups[0]
        return groups


class RandomSampler(Generic[BudgetT]):
    """Budgets drawn at random, without the sandwich rule: SortedNet's way of training.

    Pure function of `(seed, step)`. A step runs `budgets_per_step` distinct budgets, each drawn
    with the same chance, the one with most FLOPs first. Most steps therefore leave some
    parameters without a gradient, and there is no largest budget to distil from.

    Args:
        budgets: Distinct budgets.
        flops: FLOPs of each budget, in the same order.
        budgets_per_step: How many a step runs, >= 1; all of them where there are fewer.
        seed: Seed of the draws.

    Raises:
        ValueError: If the lists do not fit, budgets repeat, or a step is to run none.

    Source: SortedNet, https://arxiv.org/abs/2309.00255.
    """

    def __init__(
        self,
        budgets: Sequence[BudgetT],
        flops: Sequence[float],
        budgets_per_step: int = 1,
        seed: int = 0,
    ) -> None:
        _check_lists(budgets, flops, budgets_per_step)
        _check_distinct(budgets)
        largest_first = sorted(
            zip(flops, budgets, strict=True), key=lambda pair: (-pair[0], str(pair[1]))
        )
        self._ordered = [budget for _, budget in largest_first]
        self.budgets_per_step = min(budgets_per_step, len(budgets))
        self.seed = seed

    def sample(self, step: int, total_steps: int = 0) -> tuple[BudgetT, ...]:
        """Return the budgets of optimizer step `step` (from 0), the one with most FLOPs first."""
        generator = random.Random(f"{self.seed}/random/{step}")
        chosen = generator.sample(range(len(self._ordered)), self.budgets_per_step)
        return tuple(self._ordered[index] for index in sorted(chosen))


def _check_lists(
    budgets: Sequence[PartiallyOrdered], flops: Sequence[float], budgets_per_step: int
) -> None:
    if not budgets or len(budgets) != len(flops):
        raise ValueError(
            f"got {len(budgets)} budgets and {len(flops)} FLOP numbers; give one or more "
            "budgets and one number for each"
        )
    if budgets_per_step < 1:
        raise ValueError(f"budgets_per_step is {budgets_per_step}, it must be 1 or more")


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
