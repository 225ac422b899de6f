"""Checks of the settings that concern deltas, norms that know their budget, and routing."""

from typing import Any

DELTA_KINDS = ("dense", "dictionary", "low_rank")


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
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} {value!r} must be a whole number >= 1")
    if not 0.0 <= config.drop_path < 1.0:
        raise ValueError(f"drop_path {config.drop_path!r} must be in [0, 1)")
    ratio = config.delta_token_ratio
    if ratio is not None and not 0.0 <= ratio <= 1.0:
        raise ValueError(f"delta_token_ratio {ratio!r} must be in [0, 1], or None for all tokens")
    if (ratio is not None or config.delta_token_threshold is not None) and not config.token_routing:
        raise ValueError(
            "delta_token_ratio and delta_token_threshold need token_routing=True: without a "
            "preview network nothing says which tokens get the delta"
        )
    if config.delta_kind == "dense" and not config.token_routing:
        return
    if config.attention_bias or config.mlp_bias:
        raise ValueError(
            "attention_bias and mlp_bias must be False where the delta is built or routed "
            f"(delta_kind {config.delta_kind!r}, token_routing {config.token_routing})"
        )
    _fill_base(config)
    first = config.routing_layer
    if config.token_routing and not 0 <= first < config.num_hidden_layers:
        raise ValueError(
            f"routing_layer {first!r} must be in 0..{config.num_hidden_layers - 1}: the layers "
            "before it run on all tokens"
        )


def _fill_base(config: Any) -> None:
    """Take half of the heads and channels as the base slice unless one is given."""
    heads, channels = config.num_attention_heads, config.intermediate_sizes()
    if config.base_attention_heads is None:
        config.base_attention_heads = max(1, heads // 2)
    if config.base_intermediate_size is None:
        config.base_intermediate_size = [max(1, size // 2) for size in channels]
        if len(set(channels)) == 1:
            config.base_intermediate_size = config.base_intermediate_size[0]
    base_heads = config.base_attention_heads
    if not 1 <= base_heads <= heads:
        raise ValueError(f"base_attention_heads {base_heads} must be in 1..{heads}")
    for base, size in zip(config.base_intermediate_sizes(), channels, strict=True):
        if not 1 <= base <= size:
            raise ValueError(f"base_intermediate_size {base} must be in 1..{size}")
