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
        base: index of the budget that runs the base slice at full depth, where tokens are routed.
        routed: the budget whose delta runs on a share of the tokens, and that share.
        upgrade: two of `budgets`; the first is trained outside of the second, which it contains.
    """

    budgets: tuple[DeltaBudget, ...]
    tap_layers: tuple[tuple[int, ...], ...] | None = None
    base: int | None = None
    routed: tuple[DeltaBudget, float] | None = None
    upgrade: tuple[DeltaBudget, DeltaBudget] | None = None

    def silent_terms(self) -> set[str]:
        """Return the terms for which this step has no pass."""
        silent = set() if self.upgrade else set(UPGRADE_TERMS)
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

    The upgrade pass and the routed pass take turns where both are wanted, upgrade at odd steps: a
    step then costs one pass more than its budgets, not two, and either kind of term counts at
    every second step.

    Args:
        sampler: draws the budgets.
        taps: relative depths in (0, 1] at which states are compared.
        base: the base slice at full depth; needed for routing.
        token_ratio: share of the tokens that get the delta in a routed pass.
    """

    def __init__(
        self,
        sampler: BudgetSampler[DeltaBudget],
        taps: tuple[float, ...] = (),
        base: DeltaBudget | None = None,
        token_ratio: float | None = None,
    ) -> None:
        self.sampler = sampler
        self.taps = taps
        self.base = base
        self.token_ratio = token_ratio

    def plan(self, step: int, total_steps: int, weights: Mapping[str, float]) -> StepPlan:
        """Return the passes of a step.

        Args:
            step: optimizer step, from 0.
            total_steps: length of the run.
            weights: weight of each term at this step; 0 or missing means it is off.
        """
        budgets = self.sampler.sample(step, total_steps)
        upgrade = None
        if any(weights.get(name) for name in UPGRADE_TERMS):
            upgrade = _upgrade_of(budgets, step)
        wants_routing = any(weights.get(name) for name in ROUTING_TERMS)
        is_routed = wants_routing and (upgrade is None or step % 2 == 0)
        base: int | None = None
        routed: tuple[DeltaBudget, float] | None = None
        if is_routed and self.base is not None and self.token_ratio is not None:
            if self.base not in budgets:
                budgets = (*budgets, self.base)
            base, routed, upgrade = budgets.index(self.base), (budgets[0], self.token_ratio), None
        taps: tuple[tuple[int, ...], ...] | None = None
        if weights.get("cross_scale_features") and len(budgets) > 1:
            taps = tuple(tap_depths(self.taps, budget.depth) for budget in budgets)
        return StepPlan(budgets, taps, base, routed, upgrade)


def _upgrade_of(
    budgets: tuple[DeltaBudget, ...], step: int
) -> tuple[DeltaBudget, DeltaBudget] | None:
    """Return a budget in between, another one at each step, and the smallest of all."""
    smallest = next((low for low in budgets if all(low <= other for other in budgets)), None)
    between = [budget for budget in budgets[1:] if budget != smallest]
    if smallest is None or not between:
        return None
    return between[step // 2 % len(between)], smallest
