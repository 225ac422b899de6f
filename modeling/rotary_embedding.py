"""Rotary position embedding without buffers.

The tables are computed from the positions at each call. That costs a few thousand operations and
removes the state that goes stale when a model is loaded on the meta device.
Source: Su et al., RoFormer, arXiv 2104.09864; half-split pairing as in GPT-NeoX and ModernBERT.
"""

import torch
from torch import Tensor


def rotary_tables(position_ids: Tensor, head_dim: int, theta: float) -> tuple[Tensor, Tensor]:
    """Return cosine and signed sine of ``position * theta^(-2i / head_dim)``.

    The sine is negative for the first half of the channels, so that rotating is two products:
    ``x * cos + swap_halves(x) * sin``.

    Args:
        position_ids: (batch or 1, tokens).
        head_dim: channels per head, even.
        theta: rotary base.

    Returns:
        Two float32 tensors (batch or 1, 1, tokens, head_dim).
    """
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float32, device=position_ids.device)
    frequencies = 1.0 / (theta ** (exponents / head_dim))
    angles = position_ids[:, None, :, None].float() * frequencies
    cos, sin = angles.cos(), angles.sin()
    return torch.cat((cos, cos), dim=-1), torch.cat((-sin, sin), dim=-1)


def rotate(states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate channel i with channel i + head_dim / 2 by the angle of the position.

    Computed in float32 and returned in the dtype of ``states``.

    Args:
        states: (batch, heads, tokens, head_dim) queries or keys.
        cos: from `rotary_tables`.
        sin: from `rotary_tables`.
    """
    wide = states.float()
    first, second = wide.chunk(2, dim=-1)
    swapped = torch.cat((second, first), dim=-1)
    return torch.addcmul(wide * cos, swapped, sin).to(states.dtype)
