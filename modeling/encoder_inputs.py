"""From the arguments of a call to what all its passes share: positions, rotary tables, masks."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..configuration.configuration_delta_encoder import DeltaEncoderConfig
from .document_attention import plan_attention, reset_positions
from .input_checks import is_traced, require_mask, require_positions, require_tokens
from .rotary_embedding import rotary_tables


class Inputs(NamedTuple):
    """What all passes of a call share.

    Attributes:
        input_ids: (batch, tokens) or None.
        embeds: (batch, tokens, hidden) or None.
        is_real: (batch, tokens) False at padding; None if every token is real.
        plan: masks of the layers.
        tables: rotary tables of the layers.
        device: where the input is.
        shape: (batch, tokens).
    """

    input_ids: Tensor | None
    embeds: Tensor | None
    is_real: Tensor | None
    plan: Any
    tables: dict[str, Any]
    device: torch.device
    shape: tuple[int, int]


def prepare_inputs(
    config: DeltaEncoderConfig,
    input_ids: Tensor | None,
    attention_mask: Tensor | None,
    position_ids: Tensor | None,
    embeds: Tensor | None,
) -> Inputs:
    """Work out positions, rotary tables and masks, once for all budgets of a call."""
    rows, tokens = require_tokens(input_ids, embeds, config.hidden_size)
    source = input_ids if input_ids is not None else embeds
    assert source is not None
    if attention_mask is not None:
        require_mask(attention_mask, rows, tokens)
        if not is_traced() and bool((attention_mask == 1).all()):
            attention_mask = None
    is_real = None if attention_mask is None else attention_mask != 0
    if position_ids is not None:
        require_positions(position_ids, rows, tokens)
    else:
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
    return Inputs(input_ids, embeds, is_real, plan, tables, source.device, (rows, tokens))
