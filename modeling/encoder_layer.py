"""One layer of the nested encoder: rotary attention and a gated MLP, both prefix-sliceable.

Weights are laid out so that every slice is a leading corner of a matrix. Queries, keys and values
share one matrix ordered head by head, (heads, 3, head_dim), so the first h heads are its first
rows: one product, no copy. The two halves of the gated MLP are separate matrices for the same
reason.
"""

from typing import Any

from torch import Tensor, nn
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from ..configuration.configuration_delta_encoder import LOCAL, DeltaEncoderConfig
from .document_attention import eager_attention
from .nested_layers import NestedLayerNorm, NestedLinear
from .rotary_embedding import rotate


class EncoderAttention(nn.Module):
    """Bidirectional multi-head attention over the first ``heads`` heads."""

    def __init__(self, config: DeltaEncoderConfig, layer_idx: int) -> None:
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx
        self.head_dim = config.head_dim
        self.is_causal = False
        # Flash attention counts the token itself; local_attention // 2 neighbours lie on each side.
        is_local = config.layer_types[layer_idx] == LOCAL
        self.sliding_window = config.local_attention // 2 + 1 if is_local else None
        inner = config.num_attention_heads * config.head_dim
        self.query_key_value = NestedLinear(config.hidden_size, 3 * inner, config.attention_bias)
        self.output = NestedLinear(
            inner, config.hidden_size, config.attention_bias, role="residual"
        )
        self.output_dropout = nn.Dropout(config.attention_dropout)

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Any,
        rotary: tuple[Tensor, Tensor],
        heads: int,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """Map (batch, tokens, n) to the same shape, with the weights if the back-end has them."""
        batch, tokens, hidden = hidden_states.shape
        states = self.query_key_value(hidden_states, 3 * heads * self.head_dim)
        states = states.view(batch, tokens, heads, 3, self.head_dim).transpose(1, 2)
        query, key, value = states.unbind(dim=3)  # (batch, heads, tokens, head_dim) each
        implementation = self.config._attn_implementation
        attend = (
            eager_attention
            if implementation == "eager"
            else ALL_ATTENTION_FUNCTIONS[implementation]
        )
        mixed, weights = attend(
            self,
            rotate(query, *rotary),
            rotate(key, *rotary),
            value,
            attention_mask,
            dropout=self.config.attention_dropout if self.training else 0.0,
            scaling=self.head_dim**-0.5,
            sliding_window=self.sliding_window,
            **kwargs,
        )
        mixed = mixed.reshape(batch, tokens, heads * self.head_dim)
        return self.output_dropout(self.output(mixed, hidden)), weights


class GatedMlp(nn.Module):
    """``down(act(up(x)) * gate(x))`` over the first ``channels`` channels."""

    def __init__(self, config: DeltaEncoderConfig, layer_idx: int) -> None:
        super().__init__()
        hidden, channels = config.hidden_size, config.intermediate_sizes()[layer_idx]
        self.up = NestedLinear(hidden, channels, config.mlp_bias)
        self.gate = NestedLinear(hidden, channels, config.mlp_bias)
        self.down = NestedLinear(channels, hidden, config.mlp_bias, role="residual")
        self.activation = ACT2FN[config.hidden_activation]
        self.dropout = nn.Dropout(config.mlp_dropout)

    def forward(self, hidden_states: Tensor, channels: int) -> Tensor:
        """Map (batch, tokens, n) to the same shape."""
        inner = self.activation(self.up(hidden_states, channels)) * self.gate(
            hidden_states, channels
        )
        return self.down(self.dropout(inner), hidden_states.shape[-1])


class EncoderLayer(GradientCheckpointingLayer):
    """Pre-norm residual layer; the first layer has no attention norm, as in ModernBERT."""

    def __init__(self, config: DeltaEncoderConfig, layer_idx: int) -> None:
        super().__init__()
        self.attention_type = config.layer_types[layer_idx]
        size, eps, bias = config.hidden_size, config.norm_eps, config.norm_bias
        self.attention_norm = (
            nn.Identity() if layer_idx == 0 else NestedLayerNorm(size, eps, bias)
        )
        self.attention = EncoderAttention(config, layer_idx)
        self.mlp_norm = NestedLayerNorm(size, eps, bias)
        self.mlp = GatedMlp(config, layer_idx)

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Any,
        rotary: tuple[Tensor, Tensor],
        heads: int,
        channels: int,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """Return the new hidden states (batch, tokens, n) and the attention weights, if any."""
        mixed, weights = self.attention(
            self.attention_norm(hidden_states), attention_mask, rotary, heads, **kwargs
        )
        hidden_states = hidden_states + mixed
        return hidden_states + self.mlp(self.mlp_norm(hidden_states), channels), weights
