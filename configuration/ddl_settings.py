"""The choices of a Deep Delta Learning decoder and the checks of its settings. Torch-free."""

import math
from typing import Any

# Slug -> (the state is a matrix, how it is read, whether the embedding is spread by a convolution).
VARIANTS: dict[str, tuple[bool, str | None, bool]] = {
    "baseline": (False, None, False),
    "ddl": (False, None, False),
    "ddl-tokenconv": (True, "token", False),
    "ddl-ec": (True, "token", True),
    "ddl-cc": (True, "channel", False),
    "ddl-cc-ec": (True, "channel", True),
}
# The paper's names. Beware: its bare "DDL" is the channel-conv variant with embedding convolution.
PAPER_NAMES = {
    "Baseline": "baseline",
    "DDL (d_v=1)": "ddl",
    "DDL-TC w/o EC": "ddl-tokenconv",
    "DDL-TC": "ddl-ec",
    "DDL-CC w/o EC": "ddl-cc",
    "DDL-CC": "ddl-cc-ec",
    "DDL": "ddl-cc-ec",
}
# What a sublayer does to the state. The first is the paper's; the others are controls of it.
UPDATES = ("delta", "write_only", "erase_only", "frozen_beta", "random_k", "additive", "mhc")
# These have neither direction nor value, and differ from the baseline by their value channels.
MATRIX_UPDATES = ("additive", "mhc")
MAPPINGS = ("k_map", "v_map")
VALUE_SOURCES = ("context", "input", "backbone")
VALUE_ACTIVATIONS = ("none", "sigmoid")

# Public sources disagree on where the value comes from; a preset names one of them.
PRESETS: dict[str, dict[str, Any]] = {
    "paper": {"v_source": "context", "v_activation": "none", "beta_init": 1.0, "k_eps": 1e-5},
    "reference-code": {
        "v_source": "input",
        "v_activation": "sigmoid",
        "v_scale": 4.0,
        "v_bias": True,
        "beta_init": 1.0,
        "k_eps": 1e-5,
        "rope_before_qk_norm": True,
    },
    "ddl-rs": {"v_source": "context", "v_activation": "none", "beta_init": 0.5, "k_eps": 1e-6},
}
# These round the width of the MLP down, 8 d // 3; the others round it up.
FLOOR_PRESETS = ("paper", "reference-code")
FLAGS = ("qk_norm", "rope_before_qk_norm", "v_bias", "value_residual", "rebuild_state")


def preset_settings(name: str, values: dict[str, Any]) -> dict[str, Any]:
    """Return the choices of one public source, and everything else as given.

    Args:
        name: one of `PRESETS`.
        values: settings of a configuration; what is given here wins.

    Raises:
        ValueError: for another name.
    """
    if name not in PRESETS:
        raise ValueError(f"preset {name!r} must be one of {', '.join(PRESETS)}")
    settings = {**PRESETS[name], **values}
    size: Any = settings.get("hidden_size")
    # Without a size, and for one that `validate_ddl_settings` refuses, there is nothing to round.
    if name in FLOOR_PRESETS and settings.get("intermediate_size") is None and _is_count(size):
        settings["intermediate_size"] = 8 * size // 3
    return settings


def preset_of(config: Any) -> str | None:
    """Return the preset whose choices a configuration has, whatever its sizes; None if none."""
    plain = {"v_bias": False, "rope_before_qk_norm": False}
    for name, choices in PRESETS.items():
        if all(getattr(config, key) == value for key, value in {**plain, **choices}.items()):
            return name
    return None


def validate_ddl_settings(config: Any) -> None:
    """Check variant, choices and sizes, and fill in what follows from others.

    Args:
        config: a `DdlConfig`, or anything with its attributes.

    Raises:
        ValueError: with the value, the allowed range and the fix.
    """
    if config.variant not in VARIANTS:
        raise ValueError(
            f"variant {config.variant!r} must be one of {', '.join(VARIANTS)} (or the paper's "
            f"{', '.join(PAPER_NAMES)})"
        )
    _check_flags(config)
    _check_choices(config)
    _check_without_effect(config)
    _check_sizes(config)
    _check_state(config)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _check_flags(config: Any) -> None:
    for name in FLAGS:
        if not isinstance(getattr(config, name), bool):
            raise ValueError(f"{name} {getattr(config, name)!r} must be True or False")


def _check_choices(config: Any) -> None:
    choices = {
        "residual_update": (config.residual_update, UPDATES),
        "mapping": (config.mapping, MAPPINGS),
        "v_source": (config.v_source, VALUE_SOURCES),
        "v_activation": (config.v_activation, VALUE_ACTIVATIONS),
    }
    for name, (value, allowed) in choices.items():
        if value not in allowed:
            raise ValueError(f"{name} {value!r} must be one of {', '.join(allowed)}")
    if not _is_number(config.beta_init) or not 0.0 < config.beta_init < 2.0:
        raise ValueError(
            f"beta_init {config.beta_init!r} must lie in the open interval (0, 2): its gate is "
            "2 sigmoid(x), which never reaches the ends; try 0.5 or 1.0"
        )
    if config.variant == "baseline" and config.residual_update != "delta":
        raise ValueError(
            f"residual_update {config.residual_update!r} needs a delta residual, but the "
            "baseline adds; choose variant='ddl' or another, or residual_update='delta'"
        )
    if config.residual_update in MATRIX_UPDATES:
        _check_matrix_update(config)
    compression = VARIANTS[config.variant][1]
    rebuilds = config.residual_update not in ("write_only", *MATRIX_UPDATES)
    rebuilds = rebuilds and config.variant != "baseline"
    if config.rebuild_state and (not rebuilds or compression == "token"):
        raise ValueError(
            f"rebuild_state needs a delta residual whose state is read token by token, not "
            f"variant {config.variant!r} with residual_update {config.residual_update!r}; set "
            "rebuild_state=False"
        )


def _check_without_effect(config: Any) -> None:
    """Refuse combinations in which a setting would change nothing."""
    update, mapping = config.residual_update, config.mapping
    if update == "erase_only" and mapping == "v_map":
        raise ValueError(
            "residual_update 'erase_only' writes no value, and mapping 'v_map' uses the "
            "sublayer's output for nothing else; set mapping='k_map'"
        )
    takes_output = mapping == "v_map" or update == "random_k"
    # A preset brings its source along and stays whole; alone, the key was set for an effect.
    if takes_output and config.v_source == "input" and preset_of(config) is None:
        cause = "mapping 'v_map'" if mapping == "v_map" else "residual_update 'random_k'"
        raise ValueError(
            f"v_source 'input' would do nothing: with {cause} the value is read from the "
            "sublayer's output; set v_source='context', the default"
        )
    if update == "frozen_beta" and config.beta_hidden is not None:
        raise ValueError(
            f"beta_hidden {config.beta_hidden!r} would do nothing: residual_update 'frozen_beta' "
            "has no gate; set beta_hidden=None"
        )


def _check_matrix_update(config: Any) -> None:
    """Check the controls that need several value channels and use no direction."""
    if not VARIANTS[config.variant][0]:
        raise ValueError(
            f"residual_update {config.residual_update!r} needs a matrix state, variant "
            f"{config.variant!r} has a vector; choose variant='ddl-cc' or another with value "
            "channels, or variant='baseline', which adds"
        )
    if config.mapping != "k_map":
        raise ValueError(
            f"residual_update {config.residual_update!r} has neither direction nor value to map, "
            f"so mapping {config.mapping!r} would do nothing; set mapping='k_map'"
        )


def _is_number(value: Any) -> bool:
    is_real = isinstance(value, int | float) and not isinstance(value, bool)
    return is_real and math.isfinite(value)


def _check_sizes(config: Any) -> None:
    counts = ["vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads"]
    counts += ["max_position_embeddings", "conv_kernel", "sinkhorn_iterations"]
    counts += [
        name
        for name in ("head_dim", "intermediate_size", "beta_hidden", "d_value")
        if getattr(config, name) is not None
    ]
    for name in counts:
        value = getattr(config, name)
        if not _is_count(value):
            raise ValueError(f"{name} {value!r} must be a whole number >= 1")
    for name in ("k_eps", "rms_norm_eps", "rope_theta", "v_scale"):
        value = getattr(config, name)
        if not _is_number(value) or value <= 0:
            raise ValueError(f"{name} {value!r} must be a finite number above 0")
    if not _is_number(config.initializer_range) or config.initializer_range < 0:
        raise ValueError(
            f"initializer_range {config.initializer_range!r} must be a finite number >= 0; "
            "try 0.02"
        )
    if config.head_dim is None:
        if config.hidden_size % config.num_attention_heads:
            raise ValueError(
                f"num_attention_heads {config.num_attention_heads} does not divide hidden_size "
                f"{config.hidden_size}; change one of them, or give head_dim"
            )
        config.head_dim = config.hidden_size // config.num_attention_heads
    if config.head_dim % 2:
        raise ValueError(
            f"head_dim {config.head_dim} must be even: rotary positions turn pairs of channels"
        )
    if config.intermediate_size is None:
        config.intermediate_size = math.ceil(8 * config.hidden_size / 3)


def _check_state(config: Any) -> None:
    """Check the value channels; a slice of a matrix model may have one."""
    is_matrix = VARIANTS[config.variant][0]
    if config.d_value is None:
        config.d_value = 4 if is_matrix else 1
    if not is_matrix and config.d_value != 1:
        raise ValueError(
            f"d_value {config.d_value} needs a matrix variant, {config.variant} has a vector "
            "state; set d_value=1 or choose ddl-tokenconv, ddl-ec, ddl-cc or ddl-cc-ec"
        )
    if is_matrix and config.d_value == 1 and config.sliced_from is None:
        raise ValueError(
            f"variant {config.variant} has a matrix state, d_value must be 2 or more; set "
            "d_value=4 or variant='ddl'"
        )
