"""Checks between the keys that switch on deltas, routing, phases and the terms that train them.

Each message names the key, its value, what is allowed and the fix.
"""

from collections.abc import Sequence

from .budget_validation import check_per_step, check_random, comparing_weights
from .cli_errors import UsageError
from .recipe_schema import DeltaEncoderRecipe

_ROUTABLE = ("auto", "sdpa", "eager")


def check_delta_training(recipe: DeltaEncoderRecipe) -> None:
    """Check the combinations.

    Raises:
        UsageError: for the first one that makes no sense.
    """
    _check_init(recipe)
    _check_sizes(recipe)
    _check_routing(recipe)
    _check_export(recipe)
    _check_terms(recipe)
    _check_phases(recipe)
    _check_only(recipe)


def _check_init(recipe: DeltaEncoderRecipe) -> None:
    init, model = recipe.init, recipe.model
    if init.base is None:
        for key, value in (("target", init.target), ("delta_from_target", init.delta_from_target)):
            if value:
                raise UsageError(
                    f"init.{key} is {value}, which needs a checkpoint to grow: give init.base=…, "
                    f"or set init.{key}={'null' if key == 'target' else 'false'}"
                )
    elif model.init_from is not None:
        raise UsageError(
            f"init.base={init.base} and model.init_from={model.init_from} are both given; grow "
            "around the first or start from the second, and set the other to null"
        )
    if model.convert_delta and model.init_from is None:
        raise UsageError(
            "model.convert_delta is true, which converts the delta of a trained model: give "
            "model.init_from=RUN/model, or set model.convert_delta=false"
        )
    if init.delta_from_target and init.target is None:
        raise UsageError(
            "init.delta_from_target is true, which takes weights from init.target: give "
            "init.target=…, or set init.delta_from_target=false"
        )
    if init.delta_from_target and model.delta != "dense":
        raise UsageError(
            f"model.delta is {model.delta}, which has no place for the weights of init.target; "
            "set model.delta=dense or init.delta_from_target=false"
        )


def _check_sizes(recipe: DeltaEncoderRecipe) -> None:
    """Check what needs the sizes, where they are those of ``model``."""
    model = recipe.model
    if model.init_from is not None:
        return
    heads, layers = model.num_attention_heads, model.num_hidden_layers
    check_taps(model.tap_layers, layers, "model.num_hidden_layers")
    if recipe.init.target is not None:
        return
    if model.base_heads is not None and model.base_heads > heads:
        raise UsageError(
            f"model.base_heads is {model.base_heads}, it must be in 1..{heads} "
            "(model.num_attention_heads)"
        )
    if model.token_routing and model.routing_layer >= layers:
        raise UsageError(
            f"model.routing_layer is {model.routing_layer}, it must be in 0..{layers - 1}: the "
            "layers before it run on all tokens"
        )


def check_taps(taps: Sequence[int], layers: int, source: str) -> None:
    """Check ``model.tap_layers`` against the model whose layers they count.

    Raises:
        UsageError: for a layer that it does not have.
    """
    for tap in taps:
        if not 0 <= tap < layers:
            raise UsageError(
                f"model.tap_layers has {tap}, the model has layers 0..{layers - 1} ({source}); "
                "list layers of it, or none for the original's shares of the depth"
            )


def _check_routing(recipe: DeltaEncoderRecipe) -> None:
    model, loss = recipe.model, recipe.loss
    terms = {
        "loss.preview_weight": loss.preview_weight,
        "loss.budget_penalty_weight": loss.budget_penalty_weight,
    }
    if not model.token_routing:
        wants = {
            "model.delta_token_ratio": model.delta_token_ratio,
            "export.delta_token_ratio": recipe.export.delta_token_ratio,
            **terms,
        }
        for key, value in wants.items():
            if value:
                raise UsageError(
                    f"{key} is {value}, which needs a preview network: set "
                    f"model.token_routing=true or {key}={'null' if 'ratio' in key else 0}"
                )
        return
    if not loss.preview_weight:
        raise UsageError(
            "model.token_routing is true, but loss.preview_weight is 0, so the preview network "
            "would learn nothing; set loss.preview_weight=1 or model.token_routing=false"
        )
    if model.attn_implementation not in _ROUTABLE:
        raise UsageError(
            f"model.attn_implementation is {model.attn_implementation}, token routing needs one "
            f"of {', '.join(_ROUTABLE)}; set one or model.token_routing=false"
        )


def _check_export(recipe: DeltaEncoderRecipe) -> None:
    ratio, form = recipe.export.delta_token_ratio, recipe.export.format
    if ratio is not None and ratio < 1.0 and form == "native":
        raise UsageError(
            f"export.delta_token_ratio is {ratio} and export.format is native, but a stock class "
            "runs the delta on all tokens; set export.format=auto or export.delta_token_ratio=null"
        )


def _check_terms(recipe: DeltaEncoderRecipe) -> None:
    model, training, loss = recipe.model, recipe.training, recipe.loss
    upgrades = {"loss.delta_weight": loss.delta_weight, "loss.mug_weight": loss.mug_weight}
    weights = comparing_weights(recipe)
    check_per_step(training, weights)
    if loss.largest_share is None and loss.largest_share_end is not None:
        raise UsageError(
            f"loss.largest_share_end is {loss.largest_share_end}, but there is no share that moves "
            "there; set loss.largest_share too, or loss.largest_share_end=null"
        )
    needs_largest = {**weights, "loss.preview_weight": loss.preview_weight}
    check_random(training, loss.largest_share, needs_largest)
    for key, value in upgrades.items():
        if value and training.gradient_checkpointing:
            raise UsageError(
                f"{key} is {value} and training.gradient_checkpointing is true: an upgrade pass "
                "cannot recompute activations; set one of them to 0 or false"
            )
    if loss.mug_margin and not loss.mug_weight:
        raise UsageError(
            f"loss.mug_margin is {loss.mug_margin}, but loss.mug_weight is 0; set the weight too"
        )
    if loss.cscf_cosine_weight and not loss.cscf_weight:
        raise UsageError(
            f"loss.cscf_cosine_weight is {loss.cscf_cosine_weight}, a part of the term whose "
            "loss.cscf_weight is 0; set that too"
        )
    dictionary = {
        "loss.sparsity_weight": loss.sparsity_weight,
        "loss.orthogonality_weight": loss.orthogonality_weight,
    }
    for key, value in dictionary.items():
        if value and model.delta != "dictionary":
            raise UsageError(
                f"{key} is {value}, but model.delta is {model.delta}, which has no dictionary; "
                f"set model.delta=dictionary or {key}=0"
            )


def _check_phases(recipe: DeltaEncoderRecipe) -> None:
    training = recipe.training
    ratios = training.phase_ratios
    fits = len(ratios) == 3 and all(0 < ratio < 1 for ratio in ratios)
    if not fits or abs(sum(ratios) - 1) > 1e-6:
        raise UsageError(
            f"training.phase_ratios is {ratios}, it must be three numbers in (0, 1) that sum to "
            "1, such as [0.33,0.33,0.34]"
        )
    if training.largest_alone and (training.three_phase or training.budget_sampling == "random"):
        key = "three_phase" if training.three_phase else "budget_sampling"
        raise UsageError(
            f"training.largest_alone is {training.largest_alone} and training.{key} is "
            f"{str(getattr(training, key)).lower()}, which has a schedule of budgets of its own; "
            f"set training.largest_alone=0, or training.{key}="
            f"{'false' if training.three_phase else 'sandwich'}"
        )
    if training.budget_sampling == "sandwich":
        return
    wants = {
        "training.three_phase": training.three_phase,
        "training.survival_alpha": training.survival_alpha,
    }
    for key, value in wants.items():
        if value:
            raise UsageError(
                f"{key} is {str(value).lower()}, which draws budgets anew at every step, but "
                f"training.budget_sampling is {training.budget_sampling}; set it to sandwich, or "
                f"{key}={'false' if value is True else 'null'}"
            )


def _check_only(recipe: DeltaEncoderRecipe) -> None:
    only, model = recipe.training.only, recipe.model
    if only is None:
        return
    if model.init_from is None:
        raise UsageError(
            f"training.only is {only}, which leaves the other weights of a trained model as they "
            "are: give model.init_from=RUN/model, or set training.only=null"
        )
    if model.delta == "dense":
        raise UsageError(
            f"training.only is {only}, but model.delta is dense, so no delta is built; set "
            "model.delta to the dictionary or low_rank of model.init_from, or training.only=null"
        )
