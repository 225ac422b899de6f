"""Checks between the keys of a Deep Delta Learning recipe. Imports neither torch nor Hydra.

The values of the model are checked by the code the configuration itself uses, so that a recipe
fails before anything is loaded and with the same words.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import fields, replace
from types import SimpleNamespace
from typing import Any

from ..configuration.budget import NAMED_BUDGETS, BudgetError, select_budgets
from ..configuration.ddl_budget import DdlBudget
from ..configuration.ddl_settings import (
    PAPER_NAMES,
    PRESETS,
    VARIANTS,
    preset_settings,
    validate_ddl_settings,
)
from ..configuration.stock_shapes import stock_decoder_obstacle
from .budget_validation import (
    MORE_BUDGETS,
    check_compared,
    check_ends,
    check_per_step,
    check_random,
)
from .cli_errors import UsageError
from .ddl_schema import DdlModelSection, DdlRecipe
from .length_validation import check_lengths
from .native_validation import check_native
from .nearest_match import did_you_mean

# Keys of a preset, and what the configuration takes without one.
PRESET_KEYS = {
    "v_source": "context",
    "v_activation": "none",
    "v_scale": 1.0,
    "v_bias": False,
    "beta_init": 0.5,
    "k_eps": 1e-6,
    "rope_before_qk_norm": False,
}
# The original's default: a model trained on short rows may still generate more than a row.
SHORTEST_CONTEXT = 128
ONE_VALUE_CHANNEL = (
    "model.d_value is 1, but four of the six variants have a matrix state; set model.d_value=4, or "
    "null, which is 4 for them and 1 for the others"
)
# Lists that must not be empty, and what is done with them; one that exports nothing is fine.
NEEDED_BUDGETS = {"training.budgets": "trained", "evaluation.budgets": "measured"}
# Stands for a vocabulary that only the tokenizer knows.
ANY_SIZE = 1


def check_ddl(recipe: DdlRecipe) -> None:
    """Check a recipe.

    Raises:
        UsageError: for the first value or combination that makes no sense.
        BudgetError: for a budget that cannot be read or does not fit the model.
    """
    planned = _planned_model(recipe)
    _check_data(recipe)
    if recipe.loss.next_token_weight == 0:
        raise UsageError(
            "loss.next_token_weight is 0, so nothing would be learned; set it above 0"
        )
    _check_budgets(recipe)
    _check_steps(recipe)
    # A model that starts from a checkpoint has the sizes of that, which nobody has read yet.
    if planned is not None:
        check_decoder_budgets(recipe, planned)


def check_decoder_budgets(recipe: DdlRecipe, config: Any) -> None:
    """Check what needs the sizes of the model.

    Args:
        recipe: a recipe whose keys have been checked one by one.
        config: configuration of the model, or what the recipe says of it.

    Raises:
        UsageError: for the first combination that cannot be trained, or exported.
        BudgetError: for a budget that does not fit the model.
    """
    trained = select_budgets(recipe.training.budgets, config)
    check_ends(recipe.training, trained, DdlBudget.full(config), _meet_of)
    fix = MORE_BUDGETS
    if len(config.budget_list()) == 1:
        fix = "give model.depth_budgets or model.value_budgets, such as model.depth_budgets=[1]"
    check_compared(_comparing_weights(recipe), "training.budgets", trained, fix)
    check_native(recipe.export, config, lambda _: stock_decoder_obstacle(config))


def check_sweep(overrides: Iterable[tuple[str, str]]) -> None:
    """Refuse what not all six variants can have, in the words of the command line.

    Composed with one variant, the recipe would be refused in the name of that variant, which
    nobody asked for.

    Args:
        overrides: keys and values of the command line, the last of a key decides.

    Raises:
        UsageError: for a single value channel.
    """
    if dict(overrides).get("model.d_value", "").strip() == "1":
        raise UsageError(ONE_VALUE_CHANNEL)


def slug_of(variant: str) -> str:
    """Return the slug of a variant that is named by its slug or as in the paper.

    Raises:
        UsageError: for another name.
    """
    slug = PAPER_NAMES.get(variant, variant)
    if slug not in VARIANTS:
        raise UsageError(
            f"model.variant is {variant!r}, it must be one of {', '.join(VARIANTS)}"
            f"{did_you_mean(variant, VARIANTS)}"
        )
    return slug


def model_settings(section: DdlModelSection, max_length: int) -> dict[str, Any]:
    """Return the settings of the configuration that the ``model`` keys describe.

    Budgets and the vocabulary, which depends on the tokenizer, are left to the caller.

    Args:
        section: keys of the model.
        max_length: tokens per row, the longest sequence unless the section says otherwise.
    """
    preset = {**PRESET_KEYS, **PRESETS.get(section.preset or "", {})}
    own = {name: getattr(section, name) for name in PRESET_KEYS}
    chosen = {name: preset[name] if value is None else value for name, value in own.items()}
    same = (
        "d_value hidden_size num_hidden_layers num_attention_heads head_dim intermediate_size "
        "rope_theta qk_norm conv_kernel residual_update sinkhorn_iterations value_residual mapping "
        "beta_hidden rebuild_state tie_word_embeddings initializer_range"
    ).split()
    return {
        **{name: getattr(section, name) for name in same},
        **chosen,
        "variant": slug_of(section.variant),
        "max_position_embeddings": section.max_position_embeddings
        or max(max_length, SHORTEST_CONTEXT),
    }


def _planned_model(recipe: DdlRecipe) -> SimpleNamespace | None:
    """Return what the ``model`` keys say of a configuration; None for one of a checkpoint.

    Raises:
        UsageError: for a value or a combination that makes no sense.
    """
    section = recipe.model
    if section.preset is not None and section.preset not in PRESETS:
        raise UsageError(
            f"model.preset is {section.preset!r}, it must be one of {', '.join(PRESETS)}"
            f"{did_you_mean(section.preset, PRESETS)}"
        )
    settings = model_settings(section, recipe.data.max_length)
    if section.init_from is not None:
        _refuse_shape(section, _changed_shape(section))
        return None
    if section.preset is not None:
        settings = preset_settings(section.preset, settings)
    vocabulary = section.vocab_size or ANY_SIZE
    shape = SimpleNamespace(
        **settings, vocab_size=vocabulary, rms_norm_eps=1e-5, sliced_from=None
    )
    try:
        validate_ddl_settings(shape)
    except ValueError as error:
        raise UsageError(f"model.{error}") from error
    check_lengths(recipe, shape.max_position_embeddings)
    shape.budget_class = DdlBudget
    # Asked for when the values have been checked.
    shape.budget_list = lambda: lattice_of(section, shape)
    return shape


def lattice_of(section: DdlModelSection, config: Any) -> list[DdlBudget]:
    """Return the budgets a recipe names; an empty axis has its largest value only.

    Args:
        section: the keys.
        config: configuration of the model, or what the recipe says of it.

    Raises:
        BudgetError: for a budget that does not fit, naming the nearest one that does.
    """
    values = sorted({*section.value_budgets, config.d_value})
    depths = sorted({*section.depth_budgets, config.num_hidden_layers})
    budgets = [DdlBudget(value, depth) for value in values for depth in depths]
    for budget in budgets:
        budget.check(config)
    return budgets


# Keys that say something about a run that starts from a checkpoint.
STARTING_KEYS = ("init_from", "value_budgets", "depth_budgets", "attn_implementation")
SHAPE_KEYS = tuple(f.name for f in fields(DdlModelSection) if f.name not in STARTING_KEYS)


def with_shape_of_start(
    recipe: DdlRecipe, typed: Collection[str], written: Mapping[str, Any]
) -> DdlRecipe:
    """Return a recipe without a shape of its own where its model comes from a checkpoint.

    Every recipe states a shape; whoever starts from a checkpoint with it did not ask for that one.

    Args:
        recipe: as composed.
        typed: keys of the command line.
        written: the ``model`` keys of the recipe's own file. Where it names the checkpoint, its
            shape is asked for too, but for the defaults: a saved recipe spells them out.

    Raises:
        UsageError: for a shape that was asked for, which the checkpoint would overrule.
    """
    section, default = recipe.model, DdlModelSection()
    if section.init_from is None:
        return recipe
    asked = {name for name in SHAPE_KEYS if f"model.{name}" in typed}
    asked = {name for name in asked if getattr(section, name) is not None}
    if written.get("init_from") is not None:
        asked |= _changed_shape(section) & written.keys()
    _refuse_shape(section, asked)
    shape = {name: getattr(default, name) for name in SHAPE_KEYS}
    return replace(recipe, model=replace(section, **shape))


def _changed_shape(section: DdlModelSection) -> set[str]:
    default = DdlModelSection()
    return {n for n in SHAPE_KEYS if getattr(section, n) != getattr(default, n)}


def _refuse_shape(section: DdlModelSection, names: Collection[str]) -> None:
    given = [f"model.{name}={getattr(section, name)}" for name in SHAPE_KEYS if name in names]
    if given:
        raise UsageError(
            f"model.init_from={section.init_from} brings its own shape and residual, but "
            f"{', '.join(given)} is given as well; drop these keys, or drop model.init_from"
        )


def _check_data(recipe: DdlRecipe) -> None:
    data = recipe.data
    if data.train_tokens is not None and (data.path or data.name or data.source):
        raise UsageError(
            "data.train_tokens is given beside data.path, data.name or data.source; train on one "
            "of them and set the others to null"
        )
    if data.valid_tokens is not None and data.train_tokens is None:
        raise UsageError("data.valid_tokens needs data.train_tokens: give both, or files")
    if data.valid_path is not None and data.path is None:
        raise UsageError(
            f"data.valid_path={data.valid_path} needs data.path: the training split of a Hub or "
            "embedded corpus holds out its own validation rows"
        )
    if data.tokenizer == "ids" and data.path is None and data.train_tokens is None:
        raise UsageError("data.tokenizer is ids, which needs data.path=… or data.train_tokens=…")


def _check_budgets(recipe: DdlRecipe) -> None:
    section = recipe.model
    is_matrix = VARIANTS[slug_of(section.variant)][0]
    d_value = section.d_value or (4 if is_matrix else 1)
    shape = None
    if section.init_from is None:
        shape = SimpleNamespace(d_value=d_value, num_hidden_layers=section.num_hidden_layers)
    for key, budgets in (
        ("training.budgets", recipe.training.budgets),
        ("evaluation.budgets", recipe.evaluation.budgets),
        ("export.budgets", recipe.export.budgets),
    ):
        if not budgets and key in NEEDED_BUDGETS:
            raise UsageError(
                f"{key} is [], so nothing would be {NEEDED_BUDGETS[key]}; list budgets, such as "
                f"{key}=[all]"
            )
        for text in budgets:
            _check_budget(key, text, shape)
    if shape is None:
        return
    limits = {
        "value_budgets": (section.value_budgets, d_value),
        "depth_budgets": (section.depth_budgets, section.num_hidden_layers),
    }
    for name, (axis, largest) in limits.items():
        if not all(1 <= value <= largest for value in axis):
            raise UsageError(
                f"model.{name} is {list(axis)}, it must be in 1..{largest}; set model.{name}=…"
            )


def _check_steps(recipe: DdlRecipe) -> None:
    """Check which budgets a step runs against the terms that compare them."""
    weights = _comparing_weights(recipe)
    check_per_step(recipe.training, weights)
    check_random(recipe.training, recipe.loss.largest_share, weights)


def _comparing_weights(recipe: DdlRecipe) -> dict[str, float]:
    weight = recipe.loss.kd_weight
    return {"loss.kd_weight": weight} if weight else {}


def _meet_of(budgets: Sequence[DdlBudget]) -> DdlBudget:
    """Return the largest budget that all of them contain."""
    return DdlBudget(min(b.value_size for b in budgets), min(b.depth for b in budgets))


def _check_budget(key: str, text: str, shape: SimpleNamespace | None) -> None:
    if text in (*NAMED_BUDGETS, "all"):
        return
    if text.isdigit():
        raise UsageError(
            f'{key} has the number {text}; quote budgets in YAML ("4:6"), which reads an unquoted '
            "4:12 as 252"
        )
    try:
        budget = DdlBudget.parse(text)
        if shape is not None:
            budget.check(shape)
    except BudgetError as error:
        raise BudgetError(f"{key}: {error}") from error
