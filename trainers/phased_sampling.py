"""Budgets by phase of training, torch-free: samplers put together from smaller ones.

All are pure functions of the seed, the step and the length of the run.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from ..configuration.budget import ends_of
from ..configuration.delta_budget import DeltaBudget
from .budget_sampling import BudgetSampler
from .schedules import Schedule
from .survival_schedule import SurvivalSchedule
from .training_phases import BudgetMode, TrainingPhases


@dataclass(frozen=True)
class DepthDropoutSampler:
    """Prefix depth dropout: budgets in between run to a random depth instead of their own.

    The first two budgets of a step (largest and smallest) stay. The depth of every other one is
    drawn from a `SurvivalSchedule` of the largest budget's layers. A budget that comes out twice
    runs once, so a step may have fewer budgets. One with a width per layer keeps its depth, for
    which its widths are given.

    Args:
        sampler: draws the budgets, the largest first and the smallest second.
        floor: smallest depth, >= 1.
        alpha: chance of the last layer to fail, by step; 0 leaves every budget its own depth.
        seed: seed of the depths.
    """

    sampler: BudgetSampler[DeltaBudget]
    floor: int
    alpha: Schedule
    seed: int = 0

    def sample(self, step: int, total_steps: int) -> tuple[DeltaBudget, ...]:
        """Return the budgets of a step."""
        budgets = self.sampler.sample(step, total_steps)
        alpha = self.alpha(step, total_steps)
        if alpha == 0.0:
            return budgets
        depths = SurvivalSchedule(budgets[0].depth, self.floor, alpha)
        # A string seed is hashed by SHA-512: the same on every machine and Python version.
        generator = random.Random(f"{self.seed}/depth/{step}")
        drawn = [
            budget
            if isinstance(budget.width, tuple)
            else replace(budget, depth=depths.sample(generator))
            for budget in budgets[2:]
        ]
        return tuple(dict.fromkeys((*budgets[:2], *drawn)))

    def expected_depth(self, step: int, total_steps: int) -> float | None:
        """Return the mean of the depths that a step draws; None with alpha 0."""
        alpha = self.alpha(step, total_steps)
        if alpha == 0.0:
            return None
        layers = self.sampler.sample(step, total_steps)[0].depth
        return SurvivalSchedule(layers, self.floor, alpha).expected_depth()


@dataclass(frozen=True)
class AlternatingSampler:
    """Two samplers that take turns: the first at even steps, the second at odd ones."""

    first: BudgetSampler[DeltaBudget]
    second: BudgetSampler[DeltaBudget]

    def sample(self, step: int, total_steps: int) -> tuple[DeltaBudget, ...]:
        """Return the budgets of a step."""
        sampler = self.second if step % 2 else self.first
        return sampler.sample(step // 2, total_steps // 2)


@dataclass(frozen=True)
class LargestFirstSampler:
    """The largest budget alone for the first part of a run, then what another sampler draws.

    A step of one budget costs about half of one of four, so a run of the same cost has more steps
    while the weights that all budgets share learn fastest.

    Args:
        sampler: draws the budgets of the rest, the largest first.
        share: of the steps that run the largest alone, in [0, 1).

    Raises:
        ValueError: If the share is out of range.
    """

    sampler: BudgetSampler[DeltaBudget]
    share: float

    def __post_init__(self) -> None:
        """Check the share."""
        if not 0.0 <= self.share < 1.0:
            raise ValueError(f"largest-first share is {self.share}, it must lie in [0, 1)")

    def sample(self, step: int, total_steps: int) -> tuple[DeltaBudget, ...]:
        """Return the budgets of a step."""
        alone = int(self.share * total_steps)
        rest = total_steps - alone
        if step < alone:
            return self.sampler.sample(0, rest)[:1]
        return self.sampler.sample(step - alone, rest)

    def expected_depth(self, step: int, total_steps: int) -> float | None:
        """Return that of the sampler of the rest; None before."""
        alone = int(self.share * total_steps)
        if step < alone:
            return None
        return expected_depth(self.sampler, step - alone, total_steps - alone)


@dataclass(frozen=True)
class PhasedSampler:
    """One sampler for each way in which a phase draws its budgets.

    Args:
        phases: the phases of the run.
        samplers: the sampler of each `budget_mode` that occurs in them.

    Raises:
        ValueError: If a mode has no sampler.
    """

    phases: TrainingPhases
    samplers: Mapping[BudgetMode, BudgetSampler[DeltaBudget]]

    def __post_init__(self) -> None:
        """Check that every mode has a sampler."""
        missing = {phase.budget_mode for phase in self.phases.phases} - set(self.samplers)
        if missing:
            raise ValueError(f"no sampler is given for the budget modes {sorted(missing)}")

    def sample(self, step: int, total_steps: int) -> tuple[DeltaBudget, ...]:
        """Return the budgets of a step."""
        mode = self.phases.budget_mode(step, total_steps)
        return self.samplers[mode].sample(step, total_steps)

    def expected_depth(self, step: int, total_steps: int) -> float | None:
        """Return that of the sampler of the phase."""
        mode = self.phases.budget_mode(step, total_steps)
        return expected_depth(self.samplers[mode], step, total_steps)


def smaller_half(budgets: Sequence[DeltaBudget], flops: Sequence[float]) -> list[DeltaBudget]:
    """Return the budgets of the cheaper half of the trunks (rounded up), and both ends.

    Args:
        budgets: the lattice.
        flops: FLOPs of each, in the same order.
    """
    cost: dict[object, float] = {}
    for budget, count in zip(budgets, flops, strict=True):
        cost[budget.trunk] = max(cost.get(budget.trunk, 0), count)
    ranked = sorted(cost, key=lambda trunk: (cost[trunk], str(trunk)))
    cheap = set(ranked[: (len(ranked) + 1) // 2])
    ends = ends_of(budgets)
    return [budget for budget in budgets if budget.trunk in cheap or budget in ends]


def expected_depth(
    sampler: BudgetSampler[DeltaBudget], step: int, total_steps: int
) -> float | None:
    """Return the mean depth that a step draws for budgets in between; None where it draws none."""
    if isinstance(sampler, DepthDropoutSampler | LargestFirstSampler | PhasedSampler):
        return sampler.expected_depth(step, total_steps)
    return None
