"""From the keys of a recipe to what draws the budgets and plans the passes of each step."""

from typing import Any

from ...configuration.budget import ends_of, select_budgets
from ...configuration.delta_budget import DeltaBudget
from ...trainers.budget_sampling import BudgetSampler, RandomSampler, SandwichSampler
from ...trainers.losses.cross_scale_features import relative_taps
from ...trainers.phased_sampling import (
    AlternatingSampler,
    DepthDropoutSampler,
    LargestFirstSampler,
    PhasedSampler,
    smaller_half,
)
from ...trainers.schedules import Constant
from ...trainers.step_plan import StepPlanner
from ..recipe_schema import DeltaEncoderRecipe
from .loss_terms import phases_of, token_ratio_of

# The layers 4, 8 and 11 of 12 that the original compares, as shares of the depth.
DEFAULT_TAPS = relative_taps((4, 8, 11), 12)


def planner_of(recipe: DeltaEncoderRecipe, config: Any) -> StepPlanner:
    """Return what plans the passes of each step.

    Args:
        recipe: a validated recipe.
        config: configuration of the nested model.
    """
    section = recipe.model
    # A recipe that grows to the sizes of a checkpoint counts in the depth that it states itself.
    depth = section.num_hidden_layers if section.init_from is None else config.num_hidden_layers
    layers = list(section.tap_layers)
    taps = relative_taps(layers, depth) if layers else DEFAULT_TAPS
    sampler = sampler_of(recipe, config)
    if not config.token_routing:
        return StepPlanner(sampler, taps)
    return StepPlanner(sampler, taps, token_ratio_of(recipe))


def sampler_of(recipe: DeltaEncoderRecipe, config: Any) -> BudgetSampler[DeltaBudget]:
    """Return what draws the budgets of each step."""
    training, seed = recipe.training, recipe.seed
    budgets = trained_budgets(recipe, config)
    costs = {budget: budget.flops(config, recipe.data.max_length) for budget in budgets}

    if training.budget_sampling == "random":
        return RandomSampler(budgets, list(costs.values()), training.budgets_per_step, seed)

    def sandwich(chosen: list[DeltaBudget], mode: Any = "sandwich") -> SandwichSampler[DeltaBudget]:
        flops = [costs[budget] for budget in chosen]
        per_step = training.budgets_per_step
        return SandwichSampler(
            chosen, flops, per_step, seed, mode, trunk_of=lambda budget: budget.trunk
        )

    whole = sandwich(budgets, training.budget_sampling)
    phases, floor = phases_of(recipe), min(budget.depth for budget in budgets)
    if phases is None:
        drawn: BudgetSampler[DeltaBudget] = whole
        if training.survival_alpha:
            drawn = DepthDropoutSampler(whole, floor, Constant(training.survival_alpha), seed)
        if training.largest_alone:
            drawn = LargestFirstSampler(drawn, training.largest_alone)
        return drawn
    small = sandwich(smaller_half(budgets, list(costs.values())))
    fixed = select_budgets(training.calibration_budgets, config)
    for budget in fixed:
        costs.setdefault(budget, budget.flops(config, recipe.data.max_length))
    fixed = list(dict.fromkeys((ends_of(budgets)[1], *fixed)))
    alpha = phases.survival_alpha()
    return PhasedSampler(
        phases,
        {
            "oversample_smallest": DepthDropoutSampler(
                AlternatingSampler(whole, small), floor, alpha, seed
            ),
            "sandwich": DepthDropoutSampler(whole, floor, alpha, seed),
            "fixed": sandwich(fixed, "fixed"),
        },
    )


def trained_budgets(recipe: DeltaEncoderRecipe, config: Any) -> list[DeltaBudget]:
    """Return the budgets that training draws from."""
    return select_budgets(recipe.training.budgets, config)
