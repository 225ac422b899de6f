"""Which shapes a stock class of transformers computes. Imports neither torch nor transformers.

So a recipe learns it before anything is trained, and an export from the same lines.
"""

from collections.abc import Sequence
from typing import Any


def encoder_shape_obstacle(
    heads: int, head_dim: int, hidden: int, intermediate: Sequence[int]
) -> str | None:
    """Return why stock ModernBERT does not have an encoder's sizes, or None if it has.

    Args:
        heads: attention heads.
        head_dim: channels of a head.
        hidden: hidden channels.
        intermediate: MLP channels of each layer.
    """
    if heads * head_dim != hidden:
        return f"heads x head_dim = {heads} x {head_dim} is not the hidden size {hidden}"
    if len(set(intermediate)) > 1:
        return f"intermediate_size differs between layers: {list(intermediate)}"
    return None


def stock_decoder_obstacle(config: Any) -> str | None:
    """Return why no stock class computes a decoder, at any budget, or None if one does.

    Args:
        config: a `DdlConfig`, or what a recipe says of one.
    """
    if config.variant != "baseline":
        return f"variant {config.variant!r} rewrites its state, only 'baseline' adds"
    if config.value_residual:
        return "value_residual mixes attention values across layers"
    if config.qk_norm and config.rope_before_qk_norm:
        return "rope_before_qk_norm rotates queries and keys before their norm"
    if not config.qk_norm and config.hidden_size % config.num_attention_heads:
        return (
            f"num_attention_heads {config.num_attention_heads} does not divide hidden_size "
            f"{config.hidden_size}"
        )
    return None
