"""What training cost each method of a study: tokens seen and FLOPs, by formula."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import fmean
from typing import Any

from ...configuration.delta_budget import DeltaBudget
from ...trainers.step_plan import StepPlan
from ..recipe_schema import DeltaEncoderRecipe
from .budget_plan import planner_of
from .loss_terms import weight_schedules
from .step_flops import FORWARD_AND_BACKWARD, forward_flops


def training_costs(
    recipe: DeltaEncoderRecipe,
    config: Any,
    counts: Mapping[str, int],
    named: Mapping[str, str],
    seeds: Sequence[int],
) -> dict[str, Any]:
    """Return what every method of a study costs to train.

    A step costs 3 forward passes (see `forward_flops`). The cost of the nested run is summed over
    the passes its steps really run, and averaged over ``seeds``. Rows count in full length;
    an external teacher and the few batches that sort units for post-hoc slicing are not counted.

    Args:
        recipe: the nested recipe.
        config: configuration of the nested model.
        counts: ``rows`` and ``tokens`` of the training split.
        named: budget of ``smallest``, ``middle`` and ``largest``.
        seeds: seeds of the nested runs.

    Returns:
        ``methods``: per method its ``runs``, ``tokens`` seen (padding excluded) and
        ``training_flops``; ``separate`` is the sum of the three models. ``nested_over_largest``
        and ``nested_over_separate`` are ratios of training FLOPs.
    """
    training, length = recipe.training, recipe.data.max_length
    rows_per_step = training.batch_size * training.gradient_accumulation_steps
    steps = training.max_steps or math.ceil(
        (training.epochs or 1.0) * (counts["rows"] // rows_per_step)
    )
    predicted = rows_per_step * round(recipe.data.mlm_probability * length)
    known: dict[StepPlan, int] = {}

    def cost(plan: StepPlan) -> int:
        plan = replace(plan, tap_layers=None)  # taps cost nothing
        if plan not in known:
            forward = forward_flops(
                plan.budgets,
                config,
                length,
                rows_per_step,
                predicted,
                routed=plan.routed,
                upgrade=plan.upgrade[0] if plan.upgrade else None,
            )
            known[plan] = FORWARD_AND_BACKWARD * forward
        return known[plan]

    schedules = weight_schedules(recipe)
    weights = [{n: weight(step, steps) for n, weight in schedules.items()} for step in range(steps)]
    planners = [planner_of(replace(recipe, seed=seed), config) for seed in seeds]
    nested = fmean(
        sum(cost(planner.plan(step, steps, weights[step])) for step in range(steps))
        for planner in planners
    )
    alone = {
        name: steps * cost(StepPlan((DeltaBudget.parse(budget),)))
        for name, budget in named.items()
    }
    tokens = round(steps * rows_per_step * counts["tokens"] / counts["rows"])
    flops = {
        "nested": nested,
        "post-hoc": alone["largest"],
        **{f"separate-{name}": cost for name, cost in alone.items()},
    }
    total = sum(alone.values())
    methods = {
        name: {"runs": 1, "tokens": tokens, "training_flops": cost}
        for name, cost in flops.items()
    }
    methods["separate"] = {
        "runs": len(alone),
        "tokens": tokens * len(alone),
        "training_flops": total,
    }
    return {
        "steps": steps,
        "methods": methods,
        "nested_over_largest": nested / alone["largest"],
        "nested_over_separate": nested / total,
    }
