"""Checks between the keys of a recipe, before any data is read or any model built.

Each message names the key, its value, what is allowed and the fix.
"""

import math
from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from typing import Any

from ..configuration.budget import NAMED_BUDGETS, BudgetError
from ..configuration.delta_budget import DeltaBudget
from .budget_validation import check_trained_budgets
from .cli_errors import UsageError
from .ddl_schema import DdlRecipe
from .ddl_validation import check_ddl
from .delta_validation import check_delta_training
from .length_validation import check_lengths
from .nearest_match import did_you_mean
from .planned_sizes import planned_sizes
from .recipe_schema import DELTA_KINDS, TRAINED_PARTS, DeltaEncoderRecipe, Recipe
from .recipe_sections import (
    ATTENTION_IMPLEMENTATIONS,
    BUDGET_SAMPLINGS,
    DATA_SOURCES,
    EXPORT_FORMATS,
    TextSection,
)

# The tables name the keys of all families; a recipe is checked on those it has.
# Keys whose value is a share of something. Brackets as in mathematics: "(" excludes the end.
_SHARES = {
    "data.mlm_probability": "(0, 1)",
    "data.validation_fraction": "(0, 1)",
    "training.warmup_ratio": "[0, 1)",
    "training.min_lr_ratio": "[0, 1]",
    "evaluation.calibration_fraction": "[0, 1)",
    "evaluation.alias_confidence": "[0.5, 1)",
    "model.base_ratio": "(0, 1)",
    "model.delta_token_ratio": "(0, 1)",
    "export.delta_token_ratio": "(0, 1]",
    "model.drop_path": "[0, 1)",
    "training.survival_alpha": "[0, 1]",
    "training.largest_alone": "[0, 1)",
    "loss.largest_share": "(0, 1)",
    "loss.largest_share_end": "(0, 1)",
    "training.adam_beta1": "[0, 1)",
    "training.adam_beta2": "[0, 1)",
}
_COUNTS = (
    "model.vocab_size model.hidden_size model.num_hidden_layers model.num_attention_heads "
    "model.head_dim model.intermediate_size model.max_position_embeddings data.vocab_size "
    "data.max_length data.num_proc data.shuffle_buffer data.max_bytes training.max_steps "
    "training.batch_size training.gradient_accumulation_steps training.logging_steps "
    "training.save_steps training.eval_steps training.save_total_limit "
    "training.budgets_per_step evaluation.batches evaluation.batch_size "
    "evaluation.sequence_length evaluation.bootstrap_samples model.base_heads model.delta_atoms "
    "model.delta_rank model.d_value model.conv_kernel model.beta_hidden"
).split()
_POSITIVE = (
    "training.lr",
    "training.epochs",
    "loss.kd_temperature",
    "model.initializer_range",
    "model.rope_theta",
    "model.k_eps",
    "model.v_scale",
    "training.adam_epsilon",
)
_NOT_NEGATIVE = (
    "training.weight_decay training.max_grad_norm training.dataloader_num_workers "
    "model.routing_layer loss.masked_lm_weight loss.kd_weight loss.delta_weight loss.mug_weight "
    "loss.mug_margin loss.cscf_weight loss.cscf_cosine_weight loss.preview_weight "
    "loss.budget_penalty_weight "
    "loss.sparsity_weight loss.orthogonality_weight loss.packing_weight "
    "loss.next_token_weight training.warmup_steps evaluation.spectral_batches"
).split()
# NumPy takes no larger seed.
_LARGEST_SEED = 2**32 - 1


def validate(recipe: Recipe) -> None:
    """Check all values of a recipe.

    Raises:
        UsageError: for the first value out of range or combination that makes no sense.
        BudgetError: for a budget that cannot be read or does not fit the model.
    """
    values = _flatten(recipe)
    _check_numbers(values)
    _check_choices(values)
    allowed = f"a whole number in 0..{_LARGEST_SEED}"
    _require("seed", recipe.seed, allowed, 0 <= recipe.seed <= _LARGEST_SEED)
    _check_length(recipe)
    _check_source(recipe.data)
    if isinstance(recipe, DdlRecipe):
        check_ddl(recipe)
        return
    _check_streaming(recipe)
    _check_terms(recipe)
    if _has_own_sizes(recipe):
        check_lengths(recipe, recipe.model.max_position_embeddings)
    _check_heads(recipe)
    check_delta_training(recipe)
    _check_budgets(recipe)
    # A model that grows gets the budget of its small checkpoint, whose sizes nobody has read yet.
    if _has_own_sizes(recipe) and recipe.init.base is None:
        check_trained_budgets(recipe, planned_sizes(recipe))


def _flatten(section: Any, prefix: str = "") -> dict[str, Any]:
    values: dict[str, Any] = {}
    for item in fields(section):
        value = section.__dict__[item.name]
        if is_dataclass(value):
            values.update(_flatten(value, f"{prefix}{item.name}."))
        else:
            values[prefix + item.name] = value
    return values


def _check_numbers(values: dict[str, Any]) -> None:
    for key, value in values.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise UsageError(f"{key} is {value}; give a finite number")
    given = {key: value for key, value in values.items() if value is not None}
    for key in given.keys() & set(_COUNTS):
        _require(key, given[key], "a whole number >= 1", given[key] >= 1)
    for key in given.keys() & set(_POSITIVE):
        _require(key, given[key], "a number > 0", given[key] > 0)
    for key in given.keys() & set(_NOT_NEGATIVE):
        _require(key, given[key], "a number >= 0", given[key] >= 0)
    for key, interval in _SHARES.items():
        if key not in given:
            continue
        low, high = (float(end) for end in interval[1:-1].split(","))
        above = values[key] > low or (values[key] == low and interval[0] == "[")
        below = values[key] < high or (values[key] == high and interval[-1] == "]")
        _require(key, values[key], f"a number in {interval}", above and below)


def _require(key: str, value: object, allowed: str, holds: bool) -> None:
    if not holds:
        raise UsageError(f"{key} is {value}, it must be {allowed}; set {key}=…")


def _check_choices(values: dict[str, Any]) -> None:
    choices = {
        "data.source": DATA_SOURCES,
        "export.format": EXPORT_FORMATS,
        "training.budget_sampling": BUDGET_SAMPLINGS,
        "model.attn_implementation": ATTENTION_IMPLEMENTATIONS,
        "model.delta": DELTA_KINDS,
        "training.only": TRAINED_PARTS,
    }
    for key, allowed in choices.items():
        if values.get(key) is not None and values[key] not in allowed:
            raise UsageError(
                f"{key} is {values[key]!r}, it must be one of {', '.join(allowed)}"
                f"{did_you_mean(values[key], allowed)}"
            )


def _check_length(recipe: Recipe) -> None:
    training = recipe.training
    if (training.max_steps is None) == (training.epochs is None):
        given = f"max_steps={training.max_steps} and epochs={training.epochs}"
        raise UsageError(
            f"training has {given}; give one of them and set the other to null, "
            "for example training.max_steps=100 training.epochs=null"
        )


def _check_terms(recipe: DeltaEncoderRecipe) -> None:
    if recipe.loss.masked_lm_weight == 0 and recipe.loss.teacher is None:
        raise UsageError(
            "loss.masked_lm_weight is 0 and loss.teacher is null, so the largest budget, which "
            "teaches the others, would learn nothing; set loss.masked_lm_weight above 0, or give "
            "loss.teacher=…"
        )
    if recipe.loss.kd_weight == 0 and recipe.loss.teacher is not None:
        raise UsageError(
            f"loss.teacher is {recipe.loss.teacher}, but loss.kd_weight is 0, so it would teach "
            "nothing; set loss.kd_weight above 0, or loss.teacher=null"
        )


def _check_streaming(recipe: DeltaEncoderRecipe) -> None:
    training = recipe.training
    if not recipe.data.streaming:
        return
    if training.epochs is not None:
        raise UsageError(
            f"training.epochs is {training.epochs}, but data.streaming is true, and a stream has "
            "no end; set training.max_steps=… and training.epochs=null, or data.streaming=false"
        )
    if training.dataloader_num_workers:
        raise UsageError(
            f"training.dataloader_num_workers is {training.dataloader_num_workers}, but "
            "data.streaming is true, and a stream runs in the main process only; set "
            "training.dataloader_num_workers=0, or data.streaming=false"
        )


def _has_own_sizes(recipe: DeltaEncoderRecipe) -> bool:
    """Whether the sizes are those of ``model``, not those of a checkpoint yet to be opened."""
    return recipe.model.init_from is None and recipe.init.target is None


def _check_heads(recipe: DeltaEncoderRecipe) -> None:
    model = recipe.model
    if not _has_own_sizes(recipe) or model.head_dim is not None:
        return
    if model.hidden_size % model.num_attention_heads:
        raise UsageError(
            f"model.num_attention_heads is {model.num_attention_heads}, which does not divide "
            f"model.hidden_size {model.hidden_size}; change one of them, or set model.head_dim"
        )


def _check_source(data: TextSection) -> None:
    if data.path is not None and data.name is not None:
        raise UsageError(
            f"data.path={data.path} and data.name={data.name} are both given; "
            "set one of them to null"
        )
    needs = {"files": data.path, "ecommerce": data.path, "hub": data.name}
    if data.source in needs and needs[data.source] is None:
        key = "data.name" if data.source == "hub" else "data.path"
        raise UsageError(f"data.source is {data.source}, which needs {key}: give {key}=…")
    if data.source == "embedded" and (data.path or data.name):
        raise UsageError(
            "data.source is embedded, which reads no data.path and no data.name; "
            "set data.source=null to use them"
        )
    if data.text_column and data.text_columns:
        raise UsageError(
            f"data.text_column={data.text_column} and data.text_columns={data.text_columns} are "
            "both given; use text_columns alone to join several columns"
        )


def _check_budgets(recipe: DeltaEncoderRecipe) -> None:
    model = recipe.model
    for key, budgets in (
        ("model.extra_budgets", model.extra_budgets),
        ("training.budgets", recipe.training.budgets),
        ("training.calibration_budgets", recipe.training.calibration_budgets),
        ("evaluation.budgets", recipe.evaluation.budgets),
        ("export.budgets", recipe.export.budgets),
    ):
        for text in budgets:
            _check_budget(key, text, recipe)
    for width in model.width_budgets:
        _require("model.width_budgets", width, "shares in (0, 1]", 0 < width <= 1)
    if _has_own_sizes(recipe):
        _check_axis("model.head_budgets", model.head_budgets, model.num_attention_heads)
        _check_axis("model.depth_budgets", model.depth_budgets, model.num_hidden_layers)


def _check_axis(key: str, axis: Sequence[int], largest: int) -> None:
    _require(key, list(axis), f"in 1..{largest}", all(1 <= value <= largest for value in axis))


def _check_budget(key: str, text: str, recipe: DeltaEncoderRecipe) -> None:
    if text in (*NAMED_BUDGETS, "all"):
        return
    # OmegaConf has turned a number into text by now; no budget of this family is a bare number.
    if text.replace(".", "", 1).isdigit():
        raise UsageError(
            f'{key} has the number {text}; quote budgets in YAML ("0.5:6:6"), '
            "which reads an unquoted 1:12:12 as 4332"
        )
    try:
        budget = DeltaBudget.parse(text)
        # The section has the sizes under the names of the configuration.
        if _has_own_sizes(recipe):
            budget.check(recipe.model)
    except BudgetError as error:
        raise BudgetError(f"{key}: {error}") from error
