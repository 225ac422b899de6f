"""One block of a Deep Delta Learning decoder."""

from typing import Any

from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from ..configuration.configuration_ddl import DdlConfig
from .ddl_sublayers import DdlAttention, GatedMlp, RmsNorm
from .delta_gates import DeltaUpdate, Update
from .delta_residual import StateTape
from .state_reading import ChannelRead, ConvHistory, TokenRead

# Slots of the convolution histories in each layer of a cache, in the order they are declared.
ATTENTION_SLOT, MLP_SLOT, LAST_SLOT, EMBEDDING_SLOT = range(4)


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


def state_read(config: DdlConfig) -> nn.Module | None:
    """Return the module that reads a matrix state; None for a vector state."""
    if config.compression == "token":
        return TokenRead(config.d_value, config.hidden_size, config.conv_kernel)
    if config.compression == "channel":
        return ChannelRead(config.d_value, config.hidden_size)
    return None


class DdlLayer(GradientCheckpointingLayer):
    """One block: attention, update, gated MLP, update. Its activations can be recomputed."""

    def __init__(self, config: DdlConfig, layer_idx: int) -> None:
        super().__init__()
        size, eps = config.hidden_size, config.rms_norm_eps
        self.layer_idx = layer_idx
        self.read = state_read(config)  # one for both sublayers, as published
        self.attention_norm, self.mlp_norm = RmsNorm(size, eps), RmsNorm(size, eps)
        self.attention, self.mlp = DdlAttention(config, layer_idx), GatedMlp(config)
        is_baseline = config.variant == "baseline"
        self.attention_update = AddedResidual() if is_baseline else DeltaUpdate(config)
        self.mlp_update = AddedResidual() if is_baseline else DeltaUpdate(config)

    def forward(
        self,
        state: Tensor,
        tables: tuple[Tensor, Tensor],
        attention_mask: Any = None,
        past_key_values: Any = None,
        is_real: Tensor | None = None,
        tape: StateTape | None = None,
        notes: list[Update] | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """Return the state (batch, tokens, v, d) after the block, and the attention weights."""

        def history(slot: int) -> ConvHistory:
            return ConvHistory(past_key_values, self.layer_idx, slot, is_real)

        read = read_state(self.read, state, history(ATTENTION_SLOT), tape)
        context = self.attention_norm(read)
        output, weights = self.attention(
            context, tables, attention_mask, past_key_values, **kwargs
        )
        state = self.attention_update(state, output, context, read, tape, notes)
        read = read_state(self.read, state, history(MLP_SLOT), tape)
        context = self.mlp_norm(read)
        state = self.mlp_update(state, self.mlp(context), context, read, tape, notes)
        return state, weights


def read_state(
    read: nn.Module | None, state: Tensor, history: ConvHistory, tape: StateTape | None = None
) -> Tensor:
    """Read (batch, tokens, v, d) to (batch, tokens, d); a vector state is read as it is."""
    if read is None:
        return state.squeeze(-2)
    result: Tensor = read(state, history, tape)
    return result
