"""Checks between the sizes of a model, its budgets, and the terms that compare budgets.

They run on the sizes that a recipe states before any data is read, or else on the configuration of
the checkpoint. Each message names the key, its value, what is allowed and the fix.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..configuration.budget import select_budgets
from ..configuration.delta_budget import DeltaBudget
from ..configuration.delta_lattice import meet_of
from .cli_errors import UsageError
from .native_validation import check_native, encoder_obstacle
from .recipe_schema import DeltaEncoderRecipe, ModelSection
from .recipe_sections import OptimizerSection

MORE_BUDGETS = "add budgets such as smallest and middle"
# Term -> how many budgets of one step it compares; an upgrade to the largest budget leaves no
# residual, so that term needs one in between.
COMPARED = {
    "loss.kd_weight": 2,
    "loss.cscf_weight": 2,
    "loss.mug_weight": 2,
    "loss.delta_weight": 3,
}


def comparing_weights(recipe: DeltaEncoderRecipe) -> dict[str, float]:
    """Return the weights, other than 0, of the terms in `COMPARED` that look at other budgets."""
    loss = recipe.loss
    weights = {key: float(getattr(loss, key.removeprefix("loss."))) for key in COMPARED}
    if loss.teacher is not None:
        del weights["loss.kd_weight"]
    return {key: weight for key, weight in weights.items() if weight}


def check_trained_budgets(recipe: DeltaEncoderRecipe, config: Any) -> None:
    """Check what needs the sizes of the model.

    Args:
        recipe: a recipe whose keys have been checked one by one.
        config: configuration or planned sizes of the model.

    Raises:
        UsageError: for the first combination that cannot be trained.
        BudgetError: for a budget that does not fit the model.
    """
    _check_lattice(recipe.model, config)
    trained = select_budgets(recipe.training.budgets, config)
    weights = comparing_weights(recipe)
    check_ends(
        recipe.training, trained, DeltaBudget.full(config), lambda b: meet_of(b).check(config)
    )
    check_compared(weights, "training.budgets", trained)
    if recipe.training.three_phase:
        last = [DeltaBudget.full(config)]
        last += select_budgets(recipe.training.calibration_budgets, config)
        check_compared(weights, "training.calibration_budgets", list(dict.fromkeys(last)))
    _check_delta(recipe, config)
    _check_export(recipe, config)
    check_native(recipe.export, config, lambda budget: encoder_obstacle(config, budget))


def check_ends(
    training: OptimizerSection,
    trained: Sequence[Any],
    full: Any,
    meet: Callable[[Sequence[Any]], Any],
) -> None:
    """Require the largest budget, and for the sandwich rule a smallest one.

    Args:
        training: the keys.
        trained: the budgets that ``training.budgets`` stands for.
        full: the budget that keeps everything.
        meet: budgets, at least one -> the largest budget that all of them contain.

    Raises:
        UsageError: for a list without one of them.
    """
    given = f"training.budgets is {list(training.budgets)}"
    if full not in trained:
        raise UsageError(
            f"{given}, without the largest budget {full}, so that part of the model would stay "
            "untrained; add largest"
        )
    smallest = meet(trained)
    if training.budget_sampling == "sandwich" and smallest not in trained:
        raise UsageError(
            f"{given}, of which none is contained in all others, as "
            f"training.budget_sampling=sandwich needs; add {smallest}, or set it to fixed"
        )


def check_compared(
    weights: Mapping[str, float], key: str, budgets: Sequence[Any], fix: str = MORE_BUDGETS
) -> None:
    """Require as many budgets as each term compares.

    Args:
        weights: weights, other than 0, of terms in `COMPARED`.
        key: where the budgets come from.
        budgets: all that a step can run.
        fix: how to get more of them.

    Raises:
        UsageError: for the first term that has too few.
    """
    for term, weight in weights.items():
        if len(budgets) < COMPARED[term]:
            raise UsageError(
                f"{term} is {weight}, which compares {COMPARED[term]} budgets of a step, but {key} "
                f"has {', '.join(map(str, budgets))}; {fix}, or set {term}=0"
            )


def check_per_step(training: OptimizerSection, weights: Mapping[str, float]) -> None:
    """Require that a step of the sandwich rule runs as many budgets as each term compares.

    Args:
        training: the keys.
        weights: weights, other than 0, of terms in `COMPARED`.

    Raises:
        UsageError: for the first term that has too few.
    """
    if training.budget_sampling != "sandwich":
        return
    for key, value in weights.items():
        if training.budgets_per_step < COMPARED[key]:
            raise UsageError(
                f"{key} is {value}, which compares {COMPARED[key]} budgets of a step; set "
                f"training.budgets_per_step>={COMPARED[key]} (now "
                f"{training.budgets_per_step}) or {key}=0"
            )


def check_random(
    training: OptimizerSection, largest_share: float | None, weights: Mapping[str, float]
) -> None:
    """Refuse what needs the largest budget at every step where budgets are drawn at random.

    Args:
        training: the keys.
        largest_share: ``loss.largest_share``.
        weights: weights of the terms that need it; 0 leaves one out.

    Raises:
        UsageError: for the first of them.
    """
    if training.budget_sampling != "random":
        return
    if largest_share is not None:
        raise UsageError(
            f"loss.largest_share is {largest_share}, but with "
            "training.budget_sampling=random a step need not run the largest budget; set "
            "loss.largest_share=null, or sandwich sampling"
        )
    for key, value in weights.items():
        if value:
            raise UsageError(
                f"{key} is {value}, which needs the largest budget at every step, but "
                "training.budget_sampling is random; set it to sandwich or fixed, or "
                f"{key}=0"
            )


def _check_lattice(model: ModelSection, config: Any) -> None:
    """Require the full shape, and a budget that all others contain."""
    budgets, full = config.budget_list(), DeltaBudget.full(config)
    if full not in budgets:
        axes: dict[str, tuple[Sequence[float], float]] = {
            "model.width_budgets": (model.width_budgets, full.layer_widths()[0]),
            "model.head_budgets": (model.head_budgets, full.heads),
            "model.depth_budgets": (model.depth_budgets, full.depth),
        }
        key = next(key for key, (axis, whole) in axes.items() if axis and whole not in axis)
        axis, whole = axes[key]
        raise UsageError(
            f"{key} is {list(axis)}, which leaves out {whole}, so that part of the model would "
            f"stay untrained; add {whole}, or the full shape {full} to model.extra_budgets, or "
            "make the model smaller"
        )
    smallest = meet_of(budgets).check(config)
    if smallest not in budgets:
        raise UsageError(
            f"model.extra_budgets is {list(model.extra_budgets)}, and no budget is contained in "
            f"all others; add {smallest} to it"
        )


def _check_delta(recipe: DeltaEncoderRecipe, config: Any) -> None:
    """Require something outside the base slice where something is done with it."""
    model, full = recipe.model, DeltaBudget.full(config)
    base = f"model.base_ratio {model.base_ratio} and model.base_heads {model.base_heads}"
    if model.delta != "dense" and full.base_shape(config) == full.shape(config):
        raise UsageError(
            f"model.delta is {model.delta}, but with {base} the base slice is the whole model; "
            "lower one of them, or set model.delta=dense"
        )
    if model.token_routing and not full.has_routed_delta(config):
        raise UsageError(
            f"model.token_routing is true, but with {base} nothing lies outside the base slice "
            f"from layer {config.routing_layer} on, so that there is no delta to route; lower one "
            "of them, or set model.token_routing=false"
        )


def _check_export(recipe: DeltaEncoderRecipe, config: Any) -> None:
    """Require a slice that the share of the tokens is for: after training it would be too late."""
    export, full = recipe.export, DeltaBudget.full(config)
    if export.delta_token_ratio is None or not export.budgets:
        return
    if not any(b.has_routed_delta(config) for b in select_budgets(export.budgets, config)):
        raise UsageError(
            f"export.delta_token_ratio is {export.delta_token_ratio}, but export.budgets is "
            f"{list(export.budgets)}, and no delta is left in them to route; add {full}, or set "
            "export.delta_token_ratio=null"
        )
