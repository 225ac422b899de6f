"""Checks between the sizes of a model, its budgets, and the terms that compare budgets.

They run on the sizes that a recipe states before any data is read, or else on the configuration of
the checkpoint. Each message names the key, its value, what is allowed and the fix.
"""

from collections.abc import Sequence
from typing import Any

from ..configuration.budget import select_budgets
from ..configuration.delta_budget import DeltaBudget
from ..configuration.delta_lattice import meet_of
from .cli_errors import UsageError
from .recipe_schema import DeltaEncoderRecipe, ModelSection

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
    _check_ends(recipe, trained, config)
    _check_compared(recipe, "training.budgets", trained)
    if recipe.training.three_phase:
        last = [DeltaBudget.full(config)]
        last += select_budgets(recipe.training.calibration_budgets, config)
        _check_compared(recipe, "training.calibration_budgets", list(dict.fromkeys(last)))
    _check_delta(recipe, config)
    _check_export(recipe, config)


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


def _check_ends(recipe: DeltaEncoderRecipe, trained: Sequence[DeltaBudget], config: Any) -> None:
    """Require the largest budget, and for the sandwich rule a smallest one."""
    training, full = recipe.training, DeltaBudget.full(config)
    given = f"training.budgets is {list(training.budgets)}"
    if full not in trained:
        raise UsageError(
            f"{given}, without the largest budget {full}, so that part of the model would stay "
            "untrained; add largest"
        )
    smallest = meet_of(trained).check(config)
    if training.budget_sampling == "sandwich" and smallest not in trained:
        raise UsageError(
            f"{given}, of which none is contained in all others, as "
            f"training.budget_sampling=sandwich needs; add {smallest}, or set it to fixed"
        )


def _check_compared(recipe: DeltaEncoderRecipe, key: str, budgets: Sequence[DeltaBudget]) -> None:
    for term, weight in comparing_weights(recipe).items():
        if len(budgets) < COMPARED[term]:
            raise UsageError(
                f"{term} is {weight}, which compares {COMPARED[term]} budgets of a step, but {key} "
                f"has {', '.join(map(str, budgets))}; add budgets such as smallest and middle, or "
                f"set {term}=0"
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
