"""Checks of the settings that concern deltas, norms that know their budget, and routing."""

import math
from typing import Any

DELTA_KINDS = ("dense", "dictionary", "low_rank")
LEARNED = "learned"


def validate_delta_settings(config: Any) -> None:
    """Check the settings and fill in the base slice where something needs it.

    Raises:
        ValueError: with the value, the allowed range and the fix.
    """
    if config.delta_kind not in DELTA_KINDS:
        kinds = ", ".join(DELTA_KINDS)
        raise ValueError(f"delta_kind {config.delta_kind!r} must be one of {kinds}")
    for name in ("delta_atoms", "delta_rank", "conditioner_size", "preview_size"):
        value = getattr(config, name)
        if not _is_whole(value) or value < 1:
            raise ValueError(f"{name} {value!r} must be a whole number >= 1")
    if not _is_number(config.drop_path) or not 0.0 <= config.drop_path < 1.0:
        raise ValueError(f"drop_path {config.drop_path!r} must be in [0, 1)")
    check_choice_of_tokens(config)
    if config.norm_table and (config.conditioned_norms or not config.token_routing):
        raise ValueError(
            f"norm_table {config.norm_table!r} needs token_routing=True and conditioned_norms="
            f"False, not {config.token_routing} and {config.conditioned_norms}: it keeps what "
            "conditioned norms computed for a slice that routes tokens; leave it to slicing"
        )
    is_divided = config.delta_kind != "dense" or config.token_routing
    bases = (config.base_attention_heads, config.base_intermediate_size)
    if not is_divided and bases == (None, None):
        return
    if config.attention_bias or config.mlp_bias:
        raise ValueError(
            "attention_bias and mlp_bias must be False where there is a base slice "
            f"(delta_kind {config.delta_kind!r}, token_routing {config.token_routing}, "
            f"base_attention_heads {bases[0]}, base_intermediate_size {bases[1]})"
        )
    _fill_base(config)


def check_choice_of_tokens(config: Any) -> None:
    """Check the settings that say which tokens get the delta.

    Models ask again in each pass, because these settings may be changed at any time.

    Raises:
        ValueError: with the value, the allowed range and the fix.
    """
    ratio, threshold = config.delta_token_ratio, config.delta_token_threshold
    if ratio is not None and not (_is_number(ratio) and 0.0 <= ratio <= 1.0):
        raise ValueError(f"delta_token_ratio {ratio!r} must be in [0, 1], or None for all tokens")
    scores = {
        "delta_token_threshold": threshold,
        "learned_token_threshold": config.learned_token_threshold,
    }
    for name, value in scores.items():
        # No score lies above NaN, which alone does not equal itself.
        if value is not None and not (_is_number(value) and value == value):
            raise ValueError(f"{name} {value!r} must be a number, or None")
    if not config.token_routing:
        given = {"delta_token_ratio": ratio, **scores}
        if any(value is not None for value in given.values()):
            raise ValueError(
                f"{' and '.join(given)} need token_routing=True: without a preview network "
                "nothing says which tokens get the delta"
            )
        return
    first, layers = config.routing_layer, config.num_hidden_layers
    if not _is_whole(first) or not 0 <= first < layers:
        raise ValueError(
            f"routing_layer {first!r} must be in 0..{layers - 1}: the layers before it run on all "
            "tokens; choose an earlier one, or token_routing=False"
        )


def choose_tokens_by_share(config: Any, ratio: float) -> None:
    """Let this share of the real tokens get the delta, in place of what said so before.

    Raises:
        ValueError: for a model without a preview network, or a share outside [0, 1].
    """
    if not config.token_routing:
        raise ValueError(
            f"delta_token_ratio {ratio!r} needs a model with a preview network; train one with "
            "model.token_routing=true, or leave the ratio out"
        )
    config.delta_token_ratio, config.delta_token_threshold = ratio, None
    check_choice_of_tokens(config)


def choose_tokens_by_threshold(config: Any, threshold: float | str) -> float:
    """Let the real tokens that score above a threshold get the delta, in place of a share.

    Args:
        config: the configuration, which is changed.
        threshold: a number, or ``"learned"`` for the one that training noted.

    Returns:
        The threshold as a number.

    Raises:
        ValueError: for a model without a preview network or a learned threshold, or for no number.
    """
    if not config.token_routing:
        raise ValueError(
            f"delta_token_threshold {threshold} needs a model with a preview network; train one "
            "with model.token_routing=true, or leave the threshold out"
        )
    chosen = config.learned_token_threshold if threshold == LEARNED else threshold
    if chosen is None:
        raise ValueError(
            f"delta_token_threshold {threshold} needs a learned_token_threshold, and the model has "
            "none; give a number, or train longer: routed passes learn it"
        )
    # No JSON holds infinity.
    if isinstance(chosen, str) or not _is_number(chosen) or not math.isfinite(chosen):
        raise ValueError(
            f"delta_token_threshold {threshold!r} must be a finite number, or {LEARNED!r}"
        )
    config.delta_token_ratio, config.delta_token_threshold = None, float(chosen)
    check_choice_of_tokens(config)
    return float(chosen)


def delta_share(config: Any) -> float:
    """Return the share of the tokens that get the delta: 1 for all, and with a threshold.

    How many tokens lie above a threshold depends on the text; 1 is the most it can be.
    """
    ratio = config.delta_token_ratio
    return 1.0 if ratio is None or config.delta_token_threshold is not None else float(ratio)


def _fill_base(config: Any) -> None:
    """Take half of the heads and channels as the base slice unless one is given."""
    heads, channels = config.num_attention_heads, config.intermediate_sizes()
    if config.base_attention_heads is None:
        config.base_attention_heads = max(1, heads // 2)
    if config.base_intermediate_size is None:
        halves = [max(1, size // 2) for size in channels]
        config.base_intermediate_size = halves[0] if len(set(halves)) == 1 else halves
    base_heads = config.base_attention_heads
    if not _is_whole(base_heads) or not 1 <= base_heads <= heads:
        raise ValueError(f"base_attention_heads {base_heads!r} must be in 1..{heads}")
    base = config.base_intermediate_size
    if isinstance(base, list | tuple) and len(base) < len(channels):
        raise ValueError(
            f"base_intermediate_size has {len(base)} entries for {len(channels)} layers; "
            "give one per layer, or one number for all"
        )
    each = base[: len(channels)] if isinstance(base, list | tuple) else [base] * len(channels)
    for value, size in zip(each, channels, strict=True):
        if not _is_whole(value) or not 1 <= value <= size:
            raise ValueError(f"base_intermediate_size {value!r} must be in 1..{size}")


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
