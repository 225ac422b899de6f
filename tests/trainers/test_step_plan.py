"""Which passes are added to the budgets of a step."""

from typing import Any

import pytest
from nestling.configuration.delta_budget import DeltaBudget
from nestling.trainers.step_plan import StepPlan, StepPlanner

SMALLEST, MIDDLE, OTHER, LARGEST = (
    DeltaBudget.parse(text) for text in ("0.5:2:2", "0.75:3:3", "0.5:4:3", "1.0:4:4")
)
LOW = DeltaBudget.parse("0.75:3:2")
UPGRADE = {"monotone_upgrade": 0.5}
RESIDUAL = {"delta_residual": 0.5}
ROUTING = {"preview_benefit": 1.0}
FEATURES = {"cross_scale_features": 0.1}


class Always:
    """The same budgets at every step."""

    def __init__(self, *budgets: DeltaBudget) -> None:
        self.budgets = budgets

    def sample(self, step: int, total_steps: int) -> tuple[DeltaBudget, ...]:
        return self.budgets


def planner(*budgets: DeltaBudget) -> StepPlanner:
    return StepPlanner(Always(*budgets), (0.5, 1.0), 0.35)


@pytest.mark.parametrize(
    "budgets", [(LARGEST, SMALLEST, MIDDLE, OTHER), (LARGEST, OTHER, MIDDLE, SMALLEST)]
)
def test_every_budget_is_upgraded_from_the_nearest_inside(
    budgets: tuple[DeltaBudget, ...],
) -> None:
    """In turn, wherever the smallest stands; neighbours, not only the two ends."""
    plans = [planner(*budgets).plan(step, 9, UPGRADE) for step in range(6)]
    first = next(budget for budget in budgets if budget in (MIDDLE, OTHER))
    assert {plan.upgrade for plan in plans} == {
        (LARGEST, first), (MIDDLE, SMALLEST), (OTHER, SMALLEST)
    }  # fmt: skip
    assert all(plan.budgets == budgets and plan.routed is None for plan in plans)
    chain = [planner(LARGEST, SMALLEST, LOW, MIDDLE).plan(s, 9, UPGRADE) for s in range(6)]
    assert {plan.upgrade for plan in chain} == {(LARGEST, MIDDLE), (MIDDLE, LOW), (LOW, SMALLEST)}


def test_upgrade_and_routing_take_turns() -> None:
    plans = [planner(LARGEST, SMALLEST, MIDDLE).plan(s, 9, UPGRADE | ROUTING) for s in range(4)]
    assert plans[0].routed == (LARGEST, 0.35) and plans[0].upgrade is None
    assert plans[1].routed is None and plans[1].upgrade == (LARGEST, MIDDLE)
    assert plans[3].upgrade == (MIDDLE, SMALLEST)
    assert all(plan.budgets == (LARGEST, SMALLEST, MIDDLE) for plan in plans)
    assert plans[0].silent_terms() >= {"delta_residual", "monotone_upgrade"}
    assert plans[1].silent_terms() >= {"preview_benefit", "budget_penalty"}
    alone = [planner(LARGEST).plan(step, 9, UPGRADE | ROUTING) for step in range(2)]
    assert all(plan.routed for plan in alone)


def test_the_largest_budget_is_not_upgraded_towards_itself() -> None:
    """Its states are the target of the residual term: a pass for nothing."""
    budgets = (LARGEST, SMALLEST, MIDDLE, OTHER)
    plans = [planner(*budgets).plan(step, 9, RESIDUAL) for step in range(6)]
    assert {plan.upgrade for plan in plans} == {(MIDDLE, SMALLEST), (OTHER, SMALLEST)}
    assert all(plan.weights(RESIDUAL) == RESIDUAL for plan in plans)
    pair = planner(LARGEST, SMALLEST).plan(0, 9, RESIDUAL)
    assert pair.upgrade is None and pair.weights(RESIDUAL) == {"delta_residual": 0.0}
    both = [planner(*budgets).plan(step, 9, UPGRADE | RESIDUAL) for step in range(6)]
    upgraded_largest = [plan for plan in both if plan.upgrade and plan.upgrade[0] == LARGEST]
    assert len(upgraded_largest) == 2
    assert all("delta_residual" in plan.silent_terms() for plan in upgraded_largest)
    assert all("monotone_upgrade" not in plan.silent_terms() for plan in both)


class WithAndWithoutPairs:
    """Of six steps, the first two have no budget inside another."""

    def sample(self, step: int, total_steps: int) -> tuple[DeltaBudget, ...]:
        return (LARGEST,) if step % 6 < 2 else (LARGEST, SMALLEST, MIDDLE)


@pytest.mark.parametrize("sampler", [Always(LARGEST, SMALLEST, MIDDLE), WithAndWithoutPairs()])
def test_a_term_weighs_the_same_however_often_its_pass_takes_its_turn(sampler: Any) -> None:
    """Over the steps, beside the other kind of term or without it."""
    given = {
        "masked_lm": 1.0, "delta_residual": 0.7, "monotone_upgrade": 0.2, "preview_benefit": 0.3,
    }  # fmt: skip

    def mean_weights(weights: dict[str, float]) -> dict[str, float]:
        planner = StepPlanner(sampler, (), 0.35)
        steps = [planner.plan(step, 24, weights).weights(weights) for step in range(24)]
        return {name: sum(each[name] for each in steps) / 24 for name in weights}

    together = mean_weights(given)
    assert together["masked_lm"] == 1.0
    assert together["preview_benefit"] == pytest.approx(0.3)
    for name in ("delta_residual", "monotone_upgrade", "preview_benefit"):
        alone = mean_weights({name: given[name]})
        assert together[name] == pytest.approx(alone[name])
    # A step without a budget inside another has nothing to upgrade.
    share = 1.0 if isinstance(sampler, Always) else 4 / 6
    assert together["delta_residual"] == pytest.approx(0.7 * share)


def test_taps_follow_the_depth_of_each_budget() -> None:
    plan = planner(LARGEST, SMALLEST, MIDDLE).plan(0, 9, FEATURES)
    assert plan.tap_layers == ((2, 4), (1, 2), (2, 3))
    assert "cross_scale_features" not in plan.silent_terms()
    assert planner(LARGEST).plan(0, 9, FEATURES).tap_layers is None


def test_terms_without_a_pass_are_silent_and_no_argument_is_given() -> None:
    plan = planner(LARGEST).plan(0, 9, UPGRADE)
    assert plan == StepPlan((LARGEST,))
    assert plan.silent_terms() == {
        "delta_residual", "monotone_upgrade", "preview_benefit", "budget_penalty",
        "cross_scale_features",
    }  # fmt: skip
    assert plan.arguments() == {"budgets": (LARGEST,)}
