"""The two sublayers of a Deep Delta Learning block: causal attention and a gated MLP."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .delta_residual import at_least_fp32
from .eager_attention import eager_attention
from .rotary_embedding import rotate


class RmsNorm(nn.Module):
    """``g x / sqrt(mean(x^2) + eps)`` over the last axis, in fp32; fp64 stays fp64."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, states: Tensor) -> Tensor:
        """Normalise (..., size)."""
        wide = at_least_fp32(states)
        wide = wide * (wide.square().mean(-1, keepdim=True) + self.eps).rsqrt()
        return (wide * self.weight.to(wide.dtype)).to(states.dtype)


class ValueResidual(nn.Module):
    """``v <- l1 v + l2 v_0``: attention values take part of those of the first layer.

    Both weights are learned, one pair a layer, and start at 0.5 as published. Source: Value
    Residual Learning (ResFormer), https://arxiv.org/abs/2410.17897.
    """

    def __init__(self) -> None:
        super().__init__()
        self.shares = nn.Parameter(torch.full((2,), 0.5))

    def reset(self) -> None:
        """Set both weights to a half."""
        nn.init.constant_(self.shares, 0.5)

    def forward(self, value: Tensor, first_value: Tensor) -> Tensor:
        """Mix (batch, heads, tokens, head_dim) with the values that the same tokens had first."""
        own, first = self.shares.to(value.dtype)
        return own * value + first * first_value


class DdlAttention(nn.Module):
    """Causal self-attention with rotary positions and normalised queries and keys."""

    def __init__(self, config: Any, layer_idx: int) -> None:
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx
        self.heads, self.head_dim = config.num_attention_heads, config.head_dim
        self.scaling = self.head_dim**-0.5
        self.is_causal = True
        width = self.heads * self.head_dim
        self.query = nn.Linear(config.hidden_size, width, bias=False)
        self.key = nn.Linear(config.hidden_size, width, bias=False)
        self.value = nn.Linear(config.hidden_size, width, bias=False)
        self.output = nn.Linear(width, config.hidden_size, bias=False)
        has_norm = config.qk_norm
        self.query_norm = RmsNorm(self.head_dim, config.rms_norm_eps) if has_norm else None
        self.key_norm = RmsNorm(self.head_dim, config.rms_norm_eps) if has_norm else None
        self.rotates_first: bool = config.rope_before_qk_norm
        self.gives_value: bool = config.value_residual
        takes_value = config.value_residual and layer_idx > 0
        self.value_residual = ValueResidual() if takes_value else None

    def forward(
        self,
        hidden_states: Tensor,
        tables: tuple[Tensor, Tensor],
        attention_mask: Any = None,
        first_value: Tensor | None = None,
        past_key_values: Any = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Attend over (batch, tokens, d).

        Args:
            hidden_states: normed input.
            tables: cosine and sine of the positions.
            attention_mask: as the attention function wants it.
            first_value: (batch, heads, tokens, head_dim) of the first layer, where one is given.
            past_key_values: cache, or None.
            **kwargs: passed on to the attention function.

        Returns:
            (batch, tokens, d), the attention weights where the function gives them, and the
            values of the first layer where later ones need them.
        """
        shape = (*hidden_states.shape[:-1], self.heads, self.head_dim)
        query, key, value = (
            layer(hidden_states).view(shape).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        query, key = self._position(query, self.query_norm, tables), self._position(
            key, self.key_norm, tables
        )
        if self.value_residual is not None:
            # Before the cache, which then holds what is attended to.
            value = self.value_residual(value, first_value)
        elif self.gives_value:
            first_value = value
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, self.layer_idx)
        attend: Any = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention
        )
        mixed, weights = attend(
            self,
            query,
            key,
            value,
            attention_mask,
            dropout=0.0,
            scaling=self.scaling,
            **kwargs,
        )
        output: Tensor = self.output(mixed.reshape(*hidden_states.shape[:-1], -1).contiguous())
        return output, weights, first_value

    def _position(
        self, states: Tensor, norm: nn.Module | None, tables: tuple[Tensor, Tensor]
    ) -> Tensor:
        if self.rotates_first:
            states = rotate(states, *tables)
        if norm is not None:
            states = norm(states)
        return states if self.rotates_first else rotate(states, *tables)


class GatedMlp(nn.Module):
    """``W_down (silu(W_gate x) * W_up x)``."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.gate = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Map (..., d) to (..., d)."""
        output: Tensor = self.down(F.silu(self.gate(hidden_states)) * self.up(hidden_states))
        return output
