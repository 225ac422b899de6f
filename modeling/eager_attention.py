"""Attention written out: what runs where no fused function does, and what tests compare with."""

from typing import Any

import torch
from torch import Tensor, nn


def eager_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[Tensor, Tensor]:
    """Spell out softmax attention; the only back-end that returns its weights.

    Args:
        module: the attention module, asked only whether it trains.
        query: (batch, heads, tokens, head_dim); ``key`` and ``value`` likewise.
        key: see ``query``.
        value: see ``query``.
        attention_mask: boolean, True where attention is allowed; or a float that is added to the
            scores; or None.
        scaling: factor on the scores.
        dropout: rate on the weights.
        **kwargs: ignored arguments of other back-ends.

    Returns:
        (batch, tokens, heads, head_dim) and the weights (batch, heads, tokens, tokens).
    """
    scores = torch.matmul(query, key.transpose(2, 3)) * scaling
    if attention_mask is not None and attention_mask.dtype == torch.bool:
        scores = scores.masked_fill(~attention_mask, torch.finfo(scores.dtype).min)
    elif attention_mask is not None:
        scores = scores + attention_mask[..., : key.shape[-2]]
    weights = torch.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)
    dropped = nn.functional.dropout(weights, p=dropout, training=module.training)
    return torch.matmul(dropped, value).transpose(1, 2), weights
