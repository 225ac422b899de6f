"""Which passes one step of Delta-Matryoshka++ runs."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..configuration.delta_budget import DeltaBudget
from .budget_sampling import BudgetSampler
from .losses.cross_scale_features import tap_depths

UPGRADE_TERMS = ("delta_residual", "monotone_upgrade")
ROUTING_TERMS = ("preview_benefit", "budget_penalty")


@dataclass(frozen=True)
class StepPlan:
    """The passes of one step.

    Attributes:
        budgets: budgets on all tokens, the largest first.
        tap_layers: for each budget the layers whose states are compared; None compares none.
        routed: the budget whose delta runs on a share of the tokens, and that share; a pass with
            its delta on no token goes with it.
        upgrade: two of `budgets`; the first is trained outside of the second, which it contains.
        turns: of how many kinds of passes that take turns this step runs one.
        residual_factor: by how much `delta_residual` counts more here than on the mean over the
            steps; 0 where the upgraded budget is the largest, which lacks nothing.
    """

    budgets: tuple[DeltaBudget, ...]
    tap_layers: tuple[tuple[int, ...], ...] | None = None
    routed: tuple[DeltaBudget, float] | None = None
    upgrade: tuple[DeltaBudget, DeltaBudget] | None = None
    turns: int = 1
    residual_factor: float = 1.0

    def weights(self, given: Mapping[str, float]) -> dict[str, float]:
        """Return the weights of the terms at this step.

        A term without a pass has none; one whose pass runs every n-th step has n times its own
        there, so that its mean over the steps is what was given. Depth dropout can merge budgets of
        a step: then `delta_residual`, which counts pairs of them, has a little less.
        """
        factors = dict.fromkeys((*UPGRADE_TERMS, *ROUTING_TERMS), float(self.turns))
        factors["delta_residual"] *= self.residual_factor
        factors |= dict.fromkeys(self.silent_terms(), 0.0)
        return {name: value * factors.get(name, 1.0) for name, value in given.items()}

    def silent_terms(self) -> set[str]:
        """Return the terms for which this step has no pass."""
        silent = set() if self.upgrade else set(UPGRADE_TERMS)
        silent |= set() if self.residual_factor else {"delta_residual"}
        silent |= set() if self.routed else set(ROUTING_TERMS)
        return silent | (set() if self.tap_layers else {"cross_scale_features"})

    def arguments(self) -> dict[str, Any]:
        """Return what the model's forward is given; passes that are not run are left out."""
        given = {
            "budgets": self.budgets,
            "tap_layers": self.tap_layers,
            "routed": self.routed,
            "upgrade": self.upgrade,
        }
        return {name: value for name, value in given.items() if value is not None}


class StepPlanner:
    """Adds to the budgets of a sampler the passes that the terms of a step ask for.

    The upgrade pass and the routed passes take turns where both are wanted, upgrade at odd steps:
    a step then costs less, and either kind of term counts at every second step, twice.

    Every budget of a step but the smallest is upgraded in turn, from the largest budget of the
    step inside it. `delta_residual` is 0 for the largest one, whose states are its target, so
    without `monotone_upgrade` that one is left out.

    Args:
        sampler: draws the budgets.
        taps: relative depths in (0, 1] at which states are compared.
        token_ratio: share of the tokens that get the delta in a routed pass; None routes none.
    """

    def __init__(
        self,
        sampler: BudgetSampler[DeltaBudget],
        taps: tuple[float, ...] = (),
        token_ratio: float | None = None,
    ) -> None:
        self.sampler = sampler
        self.taps = taps
        self.token_ratio = token_ratio

    def plan(self, step: int, total_steps: int, weights: Mapping[str, float]) -> StepPlan:
        """Return the passes of a step.

        Args:
            step: optimizer step, from 0.
            total_steps: length of the run.
            weights: weight of each term at this step; 0 or missing means it is off.
        """
        budgets = self.sampler.sample(step, total_steps)
        upgrade, residual_factor = None, 1.0
        if any(weights.get(name) for name in UPGRADE_TERMS):
            pairs = _upgrade_pairs(budgets)
            missing = [pair for pair in pairs if pair[0] != budgets[0]]
            if not weights.get("monotone_upgrade"):
                pairs = missing
            if pairs:
                upgrade = pairs[step // 2 % len(pairs)]
                residual_factor = len(pairs) / len(missing) if upgrade in missing else 0.0
        routed: tuple[DeltaBudget, float] | None = None
        if self.token_ratio is not None and any(weights.get(name) for name in ROUTING_TERMS):
            routed = budgets[0], self.token_ratio
        turns = 1
        if upgrade is not None and routed is not None:
            turns = 2
            upgrade, routed = (upgrade, None) if step % 2 else (None, routed)
        taps: tuple[tuple[int, ...], ...] | None = None
        if weights.get("cross_scale_features") and len(budgets) > 1:
            taps = tuple(tap_depths(self.taps, budget.depth) for budget in budgets)
        return StepPlan(budgets, taps, routed, upgrade, turns, residual_factor)


def _upgrade_pairs(
    budgets: tuple[DeltaBudget, ...],
) -> list[tuple[DeltaBudget, DeltaBudget]]:
    """Return every budget that has others inside it, and the largest of those."""
    pairs = []
    for larger in budgets:
        inside = [other for other in budgets if other < larger]
        nearest = [low for low in inside if not any(low < other for other in inside)]
        if nearest:
            pairs.append((larger, nearest[0]))
    return pairs
