"""One layer of the nested encoder: rotary attention and a gated MLP, both prefix-sliceable.

Weights are laid out so that every slice is a leading corner of a matrix. Queries, keys and values
share one matrix ordered head by head, (heads, 3, head_dim), so the first h heads are its first
rows: one product, no copy. The two halves of the gated MLP are separate matrices for the same
reason.

The outputs of heads and of MLP channels add up, so a layer splits exactly into a base slice and a
delta. With a `TokenRoute` the base slice runs on every token and the delta on the chosen ones;
the keys and values of the delta's heads are still those of all tokens.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

from torch import Tensor, nn
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from ..configuration.configuration_delta_encoder import LOCAL, DeltaEncoderConfig
from .eager_attention import eager_attention
from .nested_layers import AS_STORED, NestedLayerNorm, NestedLinear, NormPass
from .rotary_embedding import rotate
from .token_routing import TokenRoute

NO_TAILS: Mapping[str, Tensor] = {}


class LayerPass(NamedTuple):
    """What one pass computes in one layer.

    Attributes:
        heads: heads that run.
        channels: MLP channels that run.
        tails: built parts of the weights by name; see `DeltaBlocks`.
        attention_norm: how the attention norm runs.
        mlp_norm: the same of the MLP norm.
        route: tokens on which the delta runs; None means all.
        kept: (batch, 1, 1) factor on what the layer adds, for stochastic depth; None means 1.
    """

    heads: int
    channels: int
    tails: Mapping[str, Tensor] = NO_TAILS
    attention_norm: NormPass = AS_STORED
    mlp_norm: NormPass = AS_STORED
    route: TokenRoute | None = None
    kept: Tensor | None = None


class EncoderAttention(nn.Module):
    """Bidirectional multi-head attention over the first heads."""

    def __init__(self, config: DeltaEncoderConfig, layer_idx: int) -> None:
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx
        self.head_dim = config.head_dim
        self.is_causal = False
        # Flash attention counts the token itself; local_attention // 2 neighbours lie on each side.
        is_local = config.layer_types[layer_idx] == LOCAL
        self.sliding_window = config.local_attention // 2 + 1 if is_local else None
        is_stored = config.delta_kind == "dense"
        heads = config.num_attention_heads if is_stored else config.base_attention_heads
        self.base_heads: int = config.base_attention_heads or heads
        inner = heads * config.head_dim
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
        now: LayerPass,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """Map (batch, tokens, n) to the same shape, with the weights if the back-end has them."""
        route = now.route if now.heads > self.base_heads else None
        everywhere = now.heads if route is None else self.base_heads
        hidden = hidden_states.shape[-1]
        tails = now.tails if route is None else NO_TAILS
        states = self.query_key_value(
            hidden_states, 3 * everywhere * self.head_dim, tails.get("query_key_value")
        )
        states = states.view(*states.shape[:2], everywhere, 3, self.head_dim).transpose(1, 2)
        query, key, value = states.unbind(dim=3)  # (batch, heads, tokens, head_dim) each
        query, key = rotate(query, *rotary), rotate(key, *rotary)
        mixed, weights = self._attend(query, key, value, attention_mask, **kwargs)
        mixed = self.output(mixed.flatten(2), hidden, tails.get("output"))
        if route is not None:
            mixed = self._add_delta(mixed, hidden_states, attention_mask, rotary, now, route)
        return self.output_dropout(mixed), weights

    def _attend(
        self, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor | None]:
        """Return (batch, queries, heads, head_dim) and the weights."""
        implementation = self.config._attn_implementation
        attend = (
            eager_attention
            if implementation == "eager"
            else ALL_ATTENTION_FUNCTIONS[implementation]
        )
        mixed, weights = attend(
            self,
            query,
            key,
            value,
            attention_mask,
            dropout=self.config.attention_dropout if self.training else 0.0,
            scaling=self.head_dim**-0.5,
            sliding_window=self.sliding_window,
            **kwargs,
        )
        return mixed, weights

    def _add_delta(
        self,
        mixed: Tensor,
        hidden_states: Tensor,
        attention_mask: Tensor | None,
        rotary: tuple[Tensor, Tensor],
        now: LayerPass,
        route: TokenRoute,
    ) -> Tensor:
        """Add the delta's heads at the chosen tokens: their queries, the keys of all tokens."""
        if not route.columns.shape[1]:
            return mixed
        batch, tokens, hidden = hidden_states.shape
        heads, size = now.heads - self.base_heads, self.head_dim
        first, last = self.base_heads * size, now.heads * size

        def rows(joined: Tensor, of: slice) -> Tensor:
            by_head = joined[3 * first : 3 * last, :hidden].view(heads, 3, size, hidden)
            return by_head[:, of].reshape(-1, hidden)

        project = partial(self.query_key_value, tail=now.tails.get("query_key_value"))
        states = project(hidden_states, part=partial(rows, of=slice(1, 3)))
        key, value = states.view(batch, tokens, heads, 2, size).transpose(1, 2).unbind(dim=3)
        query = project(route.gather(hidden_states), part=partial(rows, of=slice(0, 1)))
        query = query.view(batch, -1, heads, size).transpose(1, 2)
        tables = [_rows_of(table, route.columns) for table in rotary]
        mask = None if attention_mask is None else _rows_of(attention_mask, route.columns)
        found, _ = self._attend(rotate(query, *tables), rotate(key, *rotary), value, mask)
        delta = self.output(
            found.flatten(2),
            tail=now.tails.get("output"),
            part=lambda joined: joined[:hidden, first:last],
        )
        return route.add(mixed, delta)


def _rows_of(table: Tensor, columns: Tensor) -> Tensor:
    """Take rows (batch, k) of axis 2 of (batch or 1, 1, tokens, size)."""
    size = table.shape[-1]
    index = columns[:, None, :, None].expand(-1, -1, -1, size)
    return table.expand(columns.shape[0], -1, -1, -1).gather(2, index)


class GatedMlp(nn.Module):
    """``down(act(up(x)) * gate(x))`` over the first channels."""

    def __init__(self, config: DeltaEncoderConfig, layer_idx: int) -> None:
        super().__init__()
        hidden, channels = config.hidden_size, config.intermediate_sizes()[layer_idx]
        self.base_channels = channels
        if config.base_intermediate_size is not None:
            self.base_channels = config.base_intermediate_sizes()[layer_idx]
        if config.delta_kind != "dense":
            channels = self.base_channels
        self.up = NestedLinear(hidden, channels, config.mlp_bias)
        self.gate = NestedLinear(hidden, channels, config.mlp_bias)
        self.down = NestedLinear(channels, hidden, config.mlp_bias, role="residual")
        self.activation = ACT2FN[config.hidden_activation]
        self.dropout = nn.Dropout(config.mlp_dropout)

    def forward(self, hidden_states: Tensor, now: LayerPass) -> Tensor:
        """Map (batch, tokens, n) to the same shape."""
        route = now.route if now.channels > self.base_channels else None
        everywhere = now.channels if route is None else self.base_channels
        tails = now.tails if route is None else NO_TAILS
        inner = self.activation(self.up(hidden_states, everywhere, tails.get("up")))
        inner = inner * self.gate(hidden_states, everywhere, tails.get("gate"))
        added = self.down(self.dropout(inner), hidden_states.shape[-1], tails.get("down"))
        if route is None:
            return added
        return self._add_delta(added, hidden_states, now, route)

    def _add_delta(
        self, added: Tensor, hidden_states: Tensor, now: LayerPass, route: TokenRoute
    ) -> Tensor:
        """Add the delta's channels at the chosen tokens."""
        if not route.columns.shape[1]:
            return added
        hidden, first, last = hidden_states.shape[-1], self.base_channels, now.channels

        def rows(joined: Tensor) -> Tensor:
            return joined[first:last, :hidden]

        states = route.gather(hidden_states)
        inner = self.activation(self.up(states, tail=now.tails.get("up"), part=rows))
        inner = inner * self.gate(states, tail=now.tails.get("gate"), part=rows)
        delta = self.down(
            self.dropout(inner),
            tail=now.tails.get("down"),
            part=lambda joined: joined[:hidden, first:last],
        )
        return route.add(added, delta)


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
        now: LayerPass,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """Return the new hidden states (batch, tokens, n) and the attention weights, if any."""
        normed = hidden_states
        if isinstance(self.attention_norm, NestedLayerNorm):
            normed = self.attention_norm(hidden_states, now.attention_norm)
        mixed, weights = self.attention(normed, attention_mask, rotary, now, **kwargs)
        hidden_states = hidden_states + (mixed if now.kept is None else mixed * now.kept)
        added = self.mlp(self.mlp_norm(hidden_states, now.mlp_norm), now)
        return hidden_states + (added if now.kept is None else added * now.kept), weights
