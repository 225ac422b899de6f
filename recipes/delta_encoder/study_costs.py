"""What training costs: steps, tokens seen and FLOPs of a run, by formula."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from ...configuration.delta_budget import DeltaBudget
from ...trainers.step_plan import StepPlan
from ..recipe_schema import DeltaEncoderRecipe
from .budget_plan import planner_of
from .loss_terms import weight_schedules
from .step_flops import FORWARD_AND_BACKWARD, forward_flops


@dataclass(frozen=True)
class TrainingCost:
    """Cost of training.

    Attributes:
        runs: training runs.
        steps: optimizer steps of all runs.
        tokens: tokens seen, padding excluded; a token counts at every pass over the data.
        flops: floating-point operations.
    """

    runs: int
    steps: int
    tokens: int
    flops: float

    def __add__(self, other: "TrainingCost") -> "TrainingCost":
        """Add two costs."""
        mine, theirs = asdict(self), asdict(other)
        return TrainingCost(**{name: mine[name] + theirs[name] for name in mine})


def total_steps(recipe: DeltaEncoderRecipe, counts: Mapping[str, int]) -> int:
    """Return the optimizer steps of a run on ``counts["rows"]`` rows."""
    training = recipe.training
    rows_per_step = training.batch_size * training.gradient_accumulation_steps
    epochs = training.epochs or 1.0
    return training.max_steps or math.ceil(epochs * (counts["rows"] // rows_per_step))


def training_cost(
    recipe: DeltaEncoderRecipe, config: Any, counts: Mapping[str, int]
) -> TrainingCost:
    """Return the cost of one training run.

    A step costs 3 forward passes (see `forward_flops`), and one forward pass of the teacher where
    it is another model of the same sizes. The sum runs over the passes that the steps really run.
    Rows count in full length; the few batches that sort units by importance are not counted.

    Args:
        recipe: the recipe of the run.
        config: configuration of its model.
        counts: ``rows`` and ``tokens`` of the training split.
    """
    training, length = recipe.training, recipe.data.max_length
    rows_per_step = training.batch_size * training.gradient_accumulation_steps
    steps = total_steps(recipe, counts)
    predicted = rows_per_step * round(recipe.data.mlm_probability * length)
    sizes = config, length, rows_per_step, predicted
    taught = recipe.loss.teacher is not None and recipe.loss.kd_weight > 0
    teacher = forward_flops([DeltaBudget.full(config)], *sizes) if taught else 0
    known: dict[StepPlan, int] = {}

    def cost(plan: StepPlan) -> int:
        plan = replace(plan, tap_layers=None)  # taps cost nothing
        if plan not in known:
            forward = forward_flops(
                plan.budgets,
                *sizes,
                routed=plan.routed,
                upgrade=plan.upgrade[0] if plan.upgrade else None,
            )
            known[plan] = FORWARD_AND_BACKWARD * forward + teacher
        return known[plan]

    schedules, planner = weight_schedules(recipe), planner_of(recipe, config)
    flops = sum(
        cost(planner.plan(step, steps, {name: at(step, steps) for name, at in schedules.items()}))
        for step in range(steps)
    )
    tokens = round(steps * rows_per_step * counts["tokens"] / counts["rows"])
    return TrainingCost(1, steps, tokens, float(flops))


def total_cost(costs: Sequence[TrainingCost]) -> TrainingCost:
    """Add the costs of several runs.

    Raises:
        ValueError: if there is none.
    """
    if not costs:
        raise ValueError("total_cost got no run; give one or more")
    first, *others = costs
    for other in others:
        first = first + other
    return first
