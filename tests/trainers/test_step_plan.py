"""Which passes are added to the budgets of a step."""

import pytest
from nestling.configuration.delta_budget import DeltaBudget
from nestling.trainers.step_plan import StepPlan, StepPlanner

SMALLEST, MIDDLE, OTHER, LARGEST = (
    DeltaBudget.parse(text) for text in ("0.5:2:2", "0.75:3:3", "0.5:4:3", "1.0:4:4")
)
BASE = DeltaBudget(0.5, 2, 4)
UPGRADE = {"delta_residual": 0.5}
ROUTING = {"preview_benefit": 1.0}
FEATURES = {"cross_scale_features": 0.1}


class Always:
    """The same budgets at every step."""

    def __init__(self, *budgets: DeltaBudget) -> None:
        self.budgets = budgets

    def sample(self, step: int, total_steps: int) -> tuple[DeltaBudget, ...]:
        return self.budgets


def planner(*budgets: DeltaBudget) -> StepPlanner:
    return StepPlanner(Always(*budgets), (0.5, 1.0), BASE, 0.35)


@pytest.mark.parametrize(
    "budgets", [(LARGEST, SMALLEST, MIDDLE, OTHER), (LARGEST, OTHER, MIDDLE, SMALLEST)]
)
def test_the_upgrade_starts_from_the_smallest_wherever_it_stands(
    budgets: tuple[DeltaBudget, ...],
) -> None:
    """A fixed list has it last; budgets in between take turns."""
    plans = [planner(*budgets).plan(step, 9, UPGRADE) for step in range(4)]
    assert {plan.upgrade for plan in plans} == {(MIDDLE, SMALLEST), (OTHER, SMALLEST)}
    assert all(plan.budgets == budgets and plan.routed is None for plan in plans)


def test_upgrade_and_routing_take_turns() -> None:
    plans = [planner(LARGEST, SMALLEST, MIDDLE).plan(s, 9, UPGRADE | ROUTING) for s in range(2)]
    assert plans[0].routed == (LARGEST, 0.35) and plans[0].upgrade is None
    assert plans[0].budgets == (LARGEST, SMALLEST, MIDDLE, BASE) and plans[0].base == 3
    assert plans[1].routed is None and plans[1].upgrade == (MIDDLE, SMALLEST)
    assert plans[0].silent_terms() >= {"delta_residual", "monotone_upgrade"}
    assert plans[1].silent_terms() >= {"preview_benefit", "budget_penalty"}
    alone = [planner(LARGEST, SMALLEST).plan(step, 9, UPGRADE | ROUTING) for step in range(2)]
    assert all(plan.routed for plan in alone)


def test_the_base_slice_is_not_run_twice() -> None:
    plan = planner(LARGEST, SMALLEST, BASE).plan(0, 9, ROUTING)
    assert plan.budgets == (LARGEST, SMALLEST, BASE) and plan.base == 2


def test_taps_follow_the_depth_of_each_budget() -> None:
    plan = planner(LARGEST, SMALLEST, MIDDLE).plan(0, 9, FEATURES)
    assert plan.tap_layers == ((2, 4), (1, 2), (2, 3))
    assert "cross_scale_features" not in plan.silent_terms()
    assert planner(LARGEST).plan(0, 9, FEATURES).tap_layers is None


def test_terms_without_a_pass_are_silent_and_no_argument_is_given() -> None:
    plan = planner(LARGEST, SMALLEST).plan(0, 9, UPGRADE)
    assert plan == StepPlan((LARGEST, SMALLEST))
    assert plan.silent_terms() == {
        "delta_residual", "monotone_upgrade", "preview_benefit", "budget_penalty",
        "cross_scale_features",
    }  # fmt: skip
    assert plan.arguments() == {"budgets": (LARGEST, SMALLEST)}
