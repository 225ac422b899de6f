"""From the keys of a recipe, and the configurations of checkpoints, to that of the trained model.

Weights are read by `build` alone, so what does not fit together fails before data are prepared.
"""

from typing import Any

from transformers import PretrainedConfig, PreTrainedTokenizerFast

from ...configuration.configuration_delta_encoder import DeltaEncoderConfig
from ...configuration.delta_budget import DeltaBudget
from ...configuration.delta_lattice import meet_of
from ...modeling.delta_conversion import SETTINGS, delta_form
from ...modeling.hierarchical_growth import read_config, small_budget
from ..budget_validation import check_trained_budgets
from ..cli_errors import ModelFolderError, UsageError
from ..delta_validation import check_taps
from ..planned_sizes import base_slice, has_base_slice, lattice_of
from ..recipe_schema import DeltaEncoderRecipe, ModelSection

# What a delta that is built brings along; the keys of `model` resize it only to convert it.
_BUILT_SIZES = ("delta_atoms", "delta_rank", "base_intermediate_size", "base_attention_heads")


def check_checkpoints(recipe: DeltaEncoderRecipe) -> None:
    """Check what the recipe asks of the checkpoints it names; reads their configurations only.

    Raises:
        ModelFolderError: if a checkpoint cannot be read.
        UsageError: for budgets, or a base slice, that its sizes do not allow.
        ValueError: if the shapes do not nest.
    """
    section = recipe.model
    if recipe.init.base is not None:
        check_trained_budgets(recipe, grown_config(recipe))
    elif section.init_from is not None:
        config = read_checkpoint("model.init_from", section.init_from)
        config = type(config)(**{**config.to_dict(), **added_parts(recipe, config)})
        config.budgets = [str(budget) for budget in lattice_of(section, config)]
        check_trained_budgets(recipe, config)
        check_taps(section.tap_layers, config.num_hidden_layers, "model.init_from")
    if recipe.loss.kd_weight and recipe.loss.teacher is not None:
        try:
            PretrainedConfig.get_config_dict(recipe.loss.teacher)
        except OSError as error:
            raise unreadable("loss.teacher", recipe.loss.teacher, error) from error


def grown_config(recipe: DeltaEncoderRecipe) -> DeltaEncoderConfig:
    """Return the configuration of ``init.base`` grown to its target, from configurations alone.

    Raises:
        ModelFolderError: if a checkpoint cannot be read.
        UsageError: for a base slice that does not hold the small model.
        ValueError: if the shapes do not nest.
    """
    init, section = recipe.init, recipe.model
    small = read_checkpoint("init.base", str(init.base))
    if init.target is None:
        large = sized_config(section, section.vocab_size or small.vocab_size)
    else:
        large = read_checkpoint("init.target", init.target)
    config = type(large)(**{**large.to_dict(), **delta_settings(recipe, large)})
    budget = small_budget(small, config)
    _check_base_slice(recipe, small, config, budget)
    config.budgets = grown_budgets(section, config, budget)
    return config


def read_checkpoint(key: str, name: str) -> DeltaEncoderConfig:
    """Return the configuration of a checkpoint.

    Raises:
        ModelFolderError: if there is none, naming the key.
    """
    try:
        return read_config(name)
    except OSError as error:
        raise unreadable(key, name, error) from error


def unreadable(key: str, name: str, error: OSError) -> ModelFolderError:
    """Return the error for a checkpoint that cannot be loaded."""
    return ModelFolderError(
        f"{key}={name} is neither a folder with a checkpoint nor a name that can be "
        f"loaded ({str(error).splitlines()[0]}); check the path or the network"
    )


def scratch_config(
    recipe: DeltaEncoderRecipe, tokenizer: PreTrainedTokenizerFast
) -> DeltaEncoderConfig:
    """Return the configuration that the ``model`` keys describe."""
    section = recipe.model
    tokens = {
        "pad_token_id": tokenizer.pad_token_id,
        "cls_token_id": tokenizer.cls_token_id,
        "sep_token_id": tokenizer.sep_token_id,
    }
    vocab_size = section.vocab_size or len(tokenizer)
    settings = delta_settings(recipe, sized_config(section, vocab_size))
    config = sized_config(section, vocab_size, **tokens, **settings)
    config.budgets = [str(budget) for budget in lattice_of(section, config)]
    return config


def sized_config(section: ModelSection, vocab_size: int, **others: Any) -> DeltaEncoderConfig:
    """Return a configuration of these sizes."""
    return DeltaEncoderConfig(
        vocab_size=vocab_size,
        hidden_size=section.hidden_size,
        num_hidden_layers=section.num_hidden_layers,
        num_attention_heads=section.num_attention_heads,
        head_dim=section.head_dim,
        intermediate_size=section.intermediate_size,
        max_position_embeddings=section.max_position_embeddings,
        initializer_range=section.initializer_range,
        **others,
    )


def delta_settings(recipe: DeltaEncoderRecipe, config: Any) -> dict[str, Any]:
    """Return the configuration values of deltas, norms and routing; none where all are off.

    Args:
        recipe: a validated recipe.
        config: configuration with the sizes of the whole model.

    Raises:
        UsageError: for a base slice with more heads than the model.
    """
    section = recipe.model
    settings: dict[str, Any] = {
        "conditioned_norms": section.conditioned_norms,
        "exit_affine": section.exit_affine,
        "drop_path": section.drop_path,
    }
    settings = {name: value for name, value in settings.items() if value}
    if has_base_slice(recipe):
        most = config.num_attention_heads
        if section.base_heads is not None and section.base_heads > most:
            raise UsageError(
                f"model.base_heads is {section.base_heads}, it must be in 1..{most}, the heads of "
                f"the model; set model.base_heads={max(1, most // 2)}"
            )
        heads, base = base_slice(section, config.num_attention_heads, config.intermediate_sizes())
        settings["base_intermediate_size"] = base[0] if len(set(base)) == 1 else base
        settings["base_attention_heads"] = heads
    if section.delta != "dense":
        settings["delta_kind"] = section.delta
        settings["delta_atoms"], settings["delta_rank"] = section.delta_atoms, section.delta_rank
    if section.token_routing:
        settings["token_routing"], settings["routing_layer"] = True, section.routing_layer
    return settings


def added_parts(recipe: DeltaEncoderRecipe, config: Any) -> dict[str, Any]:
    """Return the settings that the recipe adds to a loaded model; ``drop_path`` is set at once.

    Raises:
        UsageError: if the model has a part that the recipe does not have, has it differently, or
            wants sorted, or if the recipe adds one and trains the deltas only.
    """
    config.drop_path = recipe.model.drop_path
    wanted, converts = delta_settings(recipe, config), recipe.model.convert_delta
    if converts:
        wanted.setdefault("delta_kind", recipe.model.delta)
    source = f"model.init_from={recipe.model.init_from}"
    keys = {
        "conditioned_norms": "conditioned_norms",
        "exit_affine": "exit_affine",
        "token_routing": "token_routing",
        "delta_kind": "delta",
    }
    for name, key in keys.items():
        has, wants = getattr(config, name), getattr(recipe.model, key)
        if name == "delta_kind" and converts:
            continue
        if has not in (False, "dense") and has != wants:
            other = " or model.convert_delta=true" if name == "delta_kind" else ""
            raise UsageError(
                f"model.{key} is {str(wants).lower()}, but {source} has {str(has).lower()}, which "
                f"stays; set model.{key}={str(has).lower()}{other}"
            )
    if config.norm_table and recipe.model.conditioned_norms:
        raise UsageError(
            f"model.conditioned_norms is true, but {source} is a slice that routes tokens and "
            "keeps its norms in a table; set model.conditioned_norms=false"
        )
    parts = [key for name, key in keys.items() if getattr(config, name) not in (False, "dense")]
    if recipe.model.reorder_by_importance and parts:
        raise UsageError(
            f"model.reorder_by_importance is true, but {source} has model.{parts[0]}, which was "
            "trained for the present order of units; set model.reorder_by_importance=false"
        )
    if recipe.model.delta != "dense" and config.delta_kind == "dense" and not converts:
        raise UsageError(
            f"model.delta is {recipe.model.delta}, but {source} has dense weights outside the "
            "base slice; set model.delta=dense, or model.convert_delta=true to fit "
            f"{recipe.model.delta} to them, or grow a small checkpoint with init.base"
        )
    kept = _BUILT_SIZES if config.delta_kind != "dense" and not converts else ()
    added = {
        name: value
        for name, value in wanted.items()
        if getattr(config, name) != value and name not in kept
    }
    if converts and _same_form(config, added):
        added = {name: value for name, value in added.items() if name not in SETTINGS}
    others = [name for name in added if not (converts and name in SETTINGS)]
    if others and recipe.training.only is not None:
        # It would not be trained, and the model would not be the one a pack is made for.
        name = others[0]
        raise UsageError(
            f"training.only is {recipe.training.only}, but model.{name} is "
            f"{str(added[name]).lower()}, and {source} has {str(getattr(config, name)).lower()}; "
            f"set model.{name} to that"
        )
    return added


def _same_form(config: Any, added: dict[str, Any]) -> bool:
    """Whether what is added leaves the delta as it is, say with one number for equal ones."""
    form = {name: value for name, value in added.items() if name in SETTINGS}
    return delta_form(type(config)(**{**config.to_dict(), **form})) == delta_form(config)


def grown_budgets(
    section: ModelSection, config: DeltaEncoderConfig, small: DeltaBudget
) -> list[str]:
    """Return the budgets of a grown model: those of the recipe, the small model, and both ends.

    The full shape, and the budget that all others contain, join where the recipe names neither:
    who writes it need not know the sizes of either checkpoint.
    """
    given = [*lattice_of(section, config), small]
    ends = DeltaBudget.full(config), meet_of(given).check(config)
    return [str(budget) for budget in dict.fromkeys((*given, *ends))]


def _check_base_slice(
    recipe: DeltaEncoderRecipe, small: Any, config: Any, budget: DeltaBudget
) -> None:
    """Require that a base slice beside a delta that is built holds the small model."""
    if config.delta_kind == "dense":
        return
    why = f"the base slice must hold it where model.delta={config.delta_kind} builds the rest"
    base = recipe.init.base
    if config.base_attention_heads < small.num_attention_heads:
        raise UsageError(
            f"model.base_heads is {recipe.model.base_heads}, which gives "
            f"{config.base_attention_heads} heads, but init.base={base} has "
            f"{small.num_attention_heads}, and {why}; set "
            f"model.base_heads={small.num_attention_heads}"
        )
    sizes = zip(config.base_intermediate_sizes(), small.intermediate_sizes(), strict=False)
    for layer, (held, needed) in enumerate(sizes):
        if held < needed:
            ratio = max(budget.layer_widths())
            fix = f"model.base_ratio={ratio}" if ratio < 1 else "model.delta=dense"
            raise UsageError(
                f"model.base_ratio is {recipe.model.base_ratio}, which gives {held} MLP channels "
                f"in layer {layer}, but init.base={base} has {needed}, and {why}; set {fix}"
            )
