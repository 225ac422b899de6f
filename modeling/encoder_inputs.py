"""From the arguments of a call to what all its passes share: positions, rotary tables, masks."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..configuration.configuration_delta_encoder import DeltaEncoderConfig
from .document_attention import plan_attention, reset_positions
from .rotary_embedding import rotary_tables


def is_traced() -> bool:
    """Whether the call is being compiled or traced, when values must not decide the path."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing()  # type: ignore[attr-defined]


class Inputs(NamedTuple):
    """What all passes of a call share.

    Attributes:
        input_ids: (batch, tokens) or None.
        embeds: (batch, tokens, hidden) or None.
        is_real: (batch, tokens) False at padding; None if every token is real.
        plan: masks of the layers.
        tables: rotary tables of the layers.
    """

    input_ids: Tensor | None
    embeds: Tensor | None
    is_real: Tensor | None
    plan: Any
    tables: dict[str, Any]


def prepare_inputs(
    config: DeltaEncoderConfig,
    input_ids: Tensor | None,
    attention_mask: Tensor | None,
    position_ids: Tensor | None,
    embeds: Tensor | None,
) -> Inputs:
    """Work out positions, rotary tables and masks, once for all budgets of a call."""
    if (input_ids is None) == (embeds is None):
        raise ValueError("give exactly one of input_ids and inputs_embeds")
    source = input_ids if input_ids is not None else embeds
    assert source is not None
    rows, tokens = source.shape[:2]
    if embeds is not None and embeds.shape[-1] != config.hidden_size:
        raise ValueError(
            f"inputs_embeds have {embeds.shape[-1]} channels; "
            f"give all {config.hidden_size}, a budget takes the first of them"
        )
    if attention_mask is not None and not is_traced():
        if attention_mask.shape != (rows, tokens):
            raise ValueError(
                f"attention_mask has shape {tuple(attention_mask.shape)}, "
                f"the input ({rows}, {tokens}); they must be equal"
            )
        if bool((attention_mask == 1).all()):
            attention_mask = None
    is_real = None if attention_mask is None else attention_mask != 0
    if position_ids is None:
        position_ids = (
            torch.arange(tokens, device=source.device)[None]
            if attention_mask is None
            else reset_positions(attention_mask)
        )
    plan = plan_attention(
        config._attn_implementation,
        attention_mask,
        (rows, tokens),
        config.local_attention,
        source.device,
    )
    thetas = {
        "full_attention": config.global_rope_theta,
        "sliding_attention": config.local_rope_theta,
    }
    tables = {
        name: rotary_tables(position_ids, config.head_dim, theta)
        for name, theta in thetas.items()
        if name in config.layer_types
    }
    return Inputs(input_ids, embeds, is_real, plan, tables)
