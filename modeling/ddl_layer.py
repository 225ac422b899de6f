"""One block of a Deep Delta Learning decoder."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from ..configuration.configuration_ddl import DdlConfig
from .carried_state import CarriedState
from .ddl_cache_slots import ATTENTION_SLOT, MLP_SLOT
from .ddl_sublayers import DdlAttention, GatedMlp, RmsNorm
from .deferred_rewrite import Channels, Deferred, changed_columns, read_columns, with_rewrites
from .delta_gates import DeltaUpdate, Update
from .delta_residual import StateTape
from .hyper_connections import Connection, HyperConnection, read_streams, write_streams
from .state_reading import ChannelRead, ConvHistory, TokenRead

# Updates that treat all value channels alike at the start; hyper-connections read by themselves.
ALIKE_UPDATES = ("additive", "erase_only")


class AddedResidual(nn.Module):
    """The baseline: what a sublayer gives is added to the state."""

    def forward(
        self,
        state: Tensor,
        output: Tensor,
        context: Tensor,
        read: Tensor,
        tape: StateTape | None = None,
        notes: list[Update] | None = None,
    ) -> Tensor:
        """Return the sum; see `DeltaUpdate.forward`."""
        return state + output.unsqueeze(-2)


class WeightedAddition(nn.Module):
    """A control: ``X_j <- X_j + b_j h``, learned weights that start at 1.

    It has the value channels and the reads of the delta residual and neither gate, nor direction,
    nor erasure. Reads whose weights sum to 1 see what the baseline has, at the start.
    """

    def __init__(self, value_size: int) -> None:
        super().__init__()
        self.channel_gain = nn.Parameter(torch.ones(value_size))

    def reset(self) -> None:
        """Set the gains to 1."""
        nn.init.ones_(self.channel_gain)

    def forward(
        self,
        state: Tensor,
        output: Tensor,
        context: Tensor,
        read: Tensor,
        tape: StateTape | None = None,
        notes: list[Update] | None = None,
    ) -> Tensor:
        """Return the sum in the dtype of the state; see `DeltaUpdate.forward`."""
        gain = self.channel_gain[: state.shape[-2], None]
        return (state + gain * output.unsqueeze(-2)).to(state.dtype)

    def defers(self) -> bool:
        """See `DeltaUpdate.defers`."""
        return torch.compiler.is_compiling()

    def deferred(self, state: Channels, output: Tensor, *unused: Any, **ignored: Any) -> Deferred:
        """Return the sum as a change that is not in the state yet; see `DeltaUpdate.deferred`.

        Gates and what was there before are nothing to it.
        """
        gains = self.channel_gain[: len(state)].unbind(0)
        return Deferred(output, tuple(gain.expand(*output.shape[:-1], 1) for gain in gains))


def sublayer_update(config: DdlConfig, index: int) -> nn.Module:
    """Return the module that puts the output of sublayer ``index`` into the state."""
    if config.variant == "baseline":
        return AddedResidual()
    if config.residual_update == "additive":
        return WeightedAddition(config.d_value)
    if config.residual_update == "mhc":
        return HyperConnection(
            config.d_value,
            config.hidden_size,
            config.sinkhorn_iterations,
            config.rms_norm_eps,
            config.initializer_range,
            index,
        )
    return DeltaUpdate(config)


def state_read(config: DdlConfig, block: int | None = None) -> nn.Module | None:
    """Return the module that reads a matrix state; None for a vector state.

    Where an update treats all value channels alike, channels that are read alike get equal
    gradients and would stay one channel. The read of block i then favours channel i mod d_v at the
    start; so all d_v channels come apart in d_v - 1 blocks or more.

    Args:
        config: of the model.
        block: whose read it is; None for the last read, which starts as a mean.
    """
    favoured = None
    if block is not None and config.residual_update in ALIKE_UPDATES:
        favoured = block % config.d_value
    if config.compression == "token":
        return TokenRead(config.d_value, config.hidden_size, config.conv_kernel, favoured)
    if config.compression == "channel":
        return ChannelRead(config.d_value, config.hidden_size, favoured)
    return None


class DdlLayer(GradientCheckpointingLayer):
    """One block: attention, update, gated MLP, update. Its activations can be recomputed."""

    def __init__(self, config: DdlConfig, layer_idx: int) -> None:
        super().__init__()
        size, eps = config.hidden_size, config.rms_norm_eps
        self.layer_idx = layer_idx
        # One for both sublayers, as published. Hyper-connections read by themselves.
        self.read = None if config.residual_update == "mhc" else state_read(config, layer_idx)
        self.attention_norm, self.mlp_norm = RmsNorm(size, eps), RmsNorm(size, eps)
        self.attention, self.mlp = DdlAttention(config, layer_idx), GatedMlp(config)
        self.attention_update = sublayer_update(config, 2 * layer_idx)
        self.mlp_update = sublayer_update(config, 2 * layer_idx + 1)

    def forward(
        self,
        state: Any,
        tables: tuple[Tensor, Tensor],
        attention_mask: Any = None,
        first_value: Tensor | None = None,
        past_key_values: Any = None,
        is_real: Tensor | None = None,
        tape: StateTape | None = None,
        notes: list[Update] | None = None,
        carried: CarriedState | None = None,
        **kwargs: Any,
    ) -> tuple[Any, Tensor | None, Tensor | None]:
        """Run the block.

        Args:
            state: (batch, tokens, v, d), or v tensors (batch, tokens, d) if the layer `defers`.
            tables: cosine and sine of the positions.
            attention_mask: as the attention function wants it.
            first_value: attention values of the first layer, where later ones take part of them.
            past_key_values: cache.
            is_real: (batch, tokens) 0 at padding, or None.
            tape: keeps the state where states are rebuilt.
            notes: receives what the two updates did.
            carried: keeps the state once, in compiled code; with neither a tape nor notes.
            **kwargs: passed on to the attention function.

        Returns:
            The state after the block, the attention weights, and the values of the first layer.
        """

        def history(slot: int) -> ConvHistory:
            return ConvHistory(past_key_values, self.layer_idx, slot, is_real)

        if isinstance(state, tuple) and self.read is not None:
            attend = partial(
                self.attention, tables=tables, attention_mask=attention_mask,
                first_value=first_value, past_key_values=past_key_values, **kwargs,
            )  # fmt: skip
            return self._in_one_pass(state, attend, history(ATTENTION_SLOT), carried)
        update = self.attention_update
        read, connection = self._read(update, state, history(ATTENTION_SLOT), tape)
        context = self.attention_norm(read)
        output, weights, first_value = self.attention(
            context, tables, attention_mask, first_value, past_key_values, **kwargs
        )
        if connection is None:
            state = update(state, output, context, read, tape, notes)
        else:
            state = write_streams(state, output, connection)
        update = self.mlp_update
        read, connection = self._read(update, state, history(MLP_SLOT), tape)
        context = self.mlp_norm(read)
        output = self.mlp(context)
        if connection is None:
            state = update(state, output, context, read, tape, notes)
        else:
            state = write_streams(state, output, connection)
        return state, weights, first_value

    def defers(self) -> bool:
        """Whether a state may come as a tensor a value channel: compiled, and changed along h."""
        update = self.attention_update
        return isinstance(update, DeltaUpdate | WeightedAddition) and update.defers()

    def _in_one_pass(
        self,
        state: Channels,
        attend: Callable[[Tensor], tuple[Tensor, Any, Any]],
        history: ConvHistory,
        carried: CarriedState | None,
    ) -> tuple[Channels, Tensor | None, Tensor | None]:
        """Do as `forward`, with the matrix state written once."""
        attention_update: Any = self.attention_update
        mlp_update: Any = self.mlp_update
        reader: Any = self.read
        weights = reader.columns(len(state))
        read = reader.join(read_columns(state, weights, carried), history)
        context = self.attention_norm(read)
        output, attention_weights, first_value = attend(context)
        first = attention_update.deferred(state, output, context, read, carried=carried)
        change = reader.join(changed_columns(first, weights), history)
        read = (read + change).to(read.dtype)
        context = self.mlp_norm(read)
        second = mlp_update.deferred(state, self.mlp(context), context, read, first, carried)
        state = with_rewrites(state, first, second, carried=carried)
        return state, attention_weights, first_value

    def _read(
        self, update: nn.Module, state: Any, history: ConvHistory, tape: StateTape | None
    ) -> tuple[Tensor, Connection | None]:
        """Return what a sublayer reads, and how it is connected to streams if it is."""
        if isinstance(update, HyperConnection):
            connection: Connection = update(state)
            return read_streams(state, connection), connection
        return read_state(self.read, state, history, tape), None


def read_state(
    read: Any, state: Tensor | Channels, history: ConvHistory, tape: StateTape | None = None
) -> Tensor:
    """Read a state to (batch, tokens, d); a vector state is read as it is.

    Args:
        read: from `state_read`.
        state: (batch, tokens, v, d), or v tensors (batch, tokens, d).
        history: of the convolution.
        tape: keeps the state where states are rebuilt.
    """
    if isinstance(state, tuple):
        if read is None:
            return state[0]
        joined: Tensor = read.join(read_columns(state, read.columns(len(state))), history)
        return joined
    if read is None:
        return state.squeeze(-2)
    result: Tensor = read(state, history, tape)
    return result
