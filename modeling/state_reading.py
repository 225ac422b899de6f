"""From the matrix state to what a sublayer reads, and from the embedding to the first state.

The state is stored value channels first, (batch, tokens, d_v, d), because products over contiguous
channels are several times faster than over strided ones; compiled code holds a tensor a value
channel, see `deferred_rewrite`. Every map here starts as an identity: at initialisation the first
sublayer reads exactly the embedding.

Source: Deep Delta Learning, https://arxiv.org/abs/2601.00417, section 3 (compression by a token
convolution or by channels, embedding convolution).
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .deferred_rewrite import Channels
from .delta_residual import StateTape, read_channels
from .parameter_start import fill_start
from .token_sums import weighed_sum


class ConvHistory:
    """The columns before the present ones that a causal convolution needs, kept in a cache.

    Args:
        cache: a transformers cache with convolution slots, or None for a whole sequence.
        layer: layer of the cache.
        slot: slot of that layer.
        is_real: (batch, tokens) 0 at padding, or None; padding must not reach later tokens.
    """

    def __init__(
        self, cache: Any = None, layer: int = 0, slot: int = 0, is_real: Tensor | None = None
    ) -> None:
        self.cache, self.layer, self.slot, self.is_real = cache, layer, slot, is_real

    def without_padding(self, states: Tensor) -> Tensor:
        """Return (batch, tokens, ...) with zeros at padding."""
        if self.is_real is None:
            return states
        shape = (*self.is_real.shape, *[1] * (states.dim() - 2))
        return states * self.is_real.view(shape).to(states.dtype)

    def extend(self, states: Tensor, columns: int) -> Tensor:
        """Return (batch, columns + tokens, ...), zeros where nothing came before.

        Args:
            states: (batch, tokens, ...).
            columns: how many columns back the convolution looks.
        """
        states = self.without_padding(states)
        tokens = states.shape[1]
        if self.cache is None or columns == 0:
            return F.pad(states, (*[0, 0] * (states.dim() - 2), columns, 0))
        flat = states.flatten(2).transpose(1, 2)  # (batch, channels, tokens)
        seen = self.cache.update_conv_state(
            flat, self.layer, state_idx=self.slot, conv_kernel_size=columns
        )
        seen = F.pad(seen, (max(0, columns + tokens - seen.shape[-1]), 0))
        seen = seen[..., -(columns + tokens) :]
        return seen.transpose(1, 2).unflatten(2, states.shape[2:])


def fill_slot(cache: Any, layer: int, slot: int, states: Tensor) -> None:
    """Keep a convolution slot that a layer does not use as long as the others are.

    A cache cuts all its slots when speculative tokens are taken back, so none may stay empty.
    """
    empty = states.new_zeros(states.shape[0], 1, states.shape[1])
    cache.update_conv_state(empty, layer, state_idx=slot, conv_kernel_size=1)


class ChannelRead(nn.Module):
    """``x[i] = sum_j w_j[i] X_j[i]``: every channel weighs its own value channels.

    Starts as `starting_shares`, by default the mean over the value channels. At a smaller budget
    the weights of the first v of d_v are scaled by d_v / v, so that a mean stays a mean.

    Args:
        value_size: d_v.
        hidden_size: d.
        favoured: value channel that is read most at the start, or None.
    """

    looks_back = 0

    def __init__(self, value_size: int, hidden_size: int, favoured: int | None = None) -> None:
        super().__init__()
        self.favoured = favoured
        self.weight = nn.Parameter(torch.empty(value_size, hidden_size))
        self.reset()

    def reset(self) -> None:
        """Set the weights of an identity read."""
        fill_start(self.weight, starting_shares(len(self.weight), self.favoured))

    def forward(
        self, state: Tensor, history: ConvHistory | None = None, tape: StateTape | None = None
    ) -> Tensor:
        """Read (batch, tokens, v, d) to (batch, tokens, d)."""
        return read_channels(state, self.columns(state.shape[-2])[0], tape)

    def columns(self, values: int) -> Tensor:
        """Return the weights of the first value channels, (1, v, d): the present token alone."""
        return budget_rows(self.weight, values)[None]

    def join(self, reads: Sequence[Tensor], history: ConvHistory) -> Tensor:
        """Return the read of its one column."""
        return reads[0]


class TokenRead(nn.Module):
    """A causal convolution over time of every state channel, then one weight per value channel.

    ``x[t, i] = sum_j w_j sum_s c_j[i, s] X_j[t - s, i]``: the two maps are folded into one, so the
    (d_v x d)-wide result of the convolution alone is never built. Starts as `starting_shares` of
    the present token, by default the mean over the value channels.

    Args:
        value_size: d_v.
        hidden_size: d.
        kernel: tokens that the convolution sees.
        favoured: value channel that is read most at the start, or None.
    """

    def __init__(
        self, value_size: int, hidden_size: int, kernel: int, favoured: int | None = None
    ) -> None:
        super().__init__()
        self.favoured = favoured
        self.kernel_change = nn.Parameter(torch.empty(kernel, value_size, hidden_size))
        self.weight = nn.Parameter(torch.empty(value_size, 1))
        self.reset()

    @property
    def looks_back(self) -> int:
        """Columns before the present one."""
        return len(self.kernel_change) - 1

    def reset(self) -> None:
        """Set the weights of an identity read."""
        nn.init.zeros_(self.kernel_change)
        fill_start(self.weight, starting_shares(len(self.weight), self.favoured))

    def forward(
        self, state: Tensor, history: ConvHistory | None = None, tape: StateTape | None = None
    ) -> Tensor:
        """Read (batch, tokens, v, d) to (batch, tokens, d).

        Raises:
            ValueError: if the state is to be rebuilt: a convolution needs those of earlier tokens.
        """
        if tape is not None:
            raise ValueError("rebuild_state does not go with a token convolution")
        history, weight = history or ConvHistory(), self.columns(state.shape[-2])
        if history.cache is not None:
            return self._read_on(history, state, weight)
        return self.join([read_channels(state, column) for column in weight], history)

    def columns(self, values: int) -> Tensor:
        """Return the weights of the first value channels, (kernel, v, d), the present one first."""
        return present_plus(self.kernel_change, values) * budget_rows(self.weight, values)

    def join(self, reads: Sequence[Tensor], history: ConvHistory) -> Tensor:
        """Return the sum of the reads of all columns, each (batch, tokens, d), as it comes back.

        Reads are shifted, not the state, which is d_v times as large.
        """
        read = history.without_padding(reads[0])
        for back, earlier in enumerate(reads[1:], start=1):
            shifted = F.pad(history.without_padding(earlier), (0, 0, back, 0))
            read = read + shifted[:, : read.shape[1]]
        return read

    def _read_on(self, history: ConvHistory, state: Tensor, weight: Tensor) -> Tensor:
        """Read with the columns of a cache before the present ones."""
        tokens = state.shape[1]
        extended = history.extend(state, self.looks_back)
        read = state.new_zeros(())
        for back, column in enumerate(weight):
            first = self.looks_back - back
            read = read + (extended[:, first : first + tokens] * column).sum(-2)
        return read


class EmbeddingSpread(nn.Module):
    """A causal convolution over time that gives each value channel its own view of the embedding.

    ``X_j[t, i] = sum_s c_j[i, s] e[t - s, i]``. Starts as plain repetition.
    """

    def __init__(self, value_size: int, hidden_size: int, kernel: int) -> None:
        super().__init__()
        self.kernel_change = nn.Parameter(torch.zeros(kernel, value_size, hidden_size))

    def reset(self) -> None:
        """Set the weights of a repetition."""
        nn.init.zeros_(self.kernel_change)

    def forward(self, embeds: Tensor, values: int, history: ConvHistory | None = None) -> Tensor:
        """Spread (batch, tokens, d) over the first value channels: (batch, tokens, v, d)."""
        kernel = present_plus(self.kernel_change, values)
        tokens, back = embeds.shape[1], len(kernel) - 1
        padded = (history or ConvHistory()).extend(embeds, back).unsqueeze(2)
        state = embeds.new_zeros(())
        for column, weight in enumerate(kernel):
            first = back - column
            state = state + padded[:, first : first + tokens] * weight
        return state

    def apart(self, embeds: Tensor, values: int, history: ConvHistory) -> Channels:
        """Do as `forward`, for compiled code: a tensor (batch, tokens, d) a value channel."""
        kernel = present_plus(self.kernel_change, values)
        tokens, back = embeds.shape[1], len(kernel) - 1
        padded = history.extend(embeds, back)
        views = [padded[:, back - column : back - column + tokens] for column in range(back + 1)]
        return tuple(weighed_sum(views, rows) for rows in kernel.unbind(1))


def state_of(
    spread: EmbeddingSpread | None, embeds: Tensor, values: int, history: ConvHistory
) -> Tensor:
    """Return the first state (batch, tokens, v, d): the embedding in every channel, or spread."""
    if spread is None:
        return embeds.unsqueeze(-2).expand(-1, -1, values, -1)
    state: Tensor = spread(embeds, values, history)
    return state


def channels_of(
    spread: EmbeddingSpread | None, embeds: Tensor, values: int, history: ConvHistory
) -> Channels:
    """Do as `state_of`, for compiled code: a tensor (batch, tokens, d) a value channel."""
    if spread is None:
        # Tensors of their own: a compiler takes none twice as input of one function.
        return tuple(embeds.view_as(embeds) for _ in range(values))
    return spread.apart(embeds, values, history)


def stacked(state: Tensor | Channels) -> Tensor:
    """Return a state as (batch, tokens, v, d)."""
    return torch.stack(state, dim=-2) if isinstance(state, tuple) else state


def present_plus(change: Tensor, values: int) -> Tensor:
    """Return the kernel of a convolution over the first value channels.

    It is stored as its difference to a copy of the present token, which is then zero at the start.

    Args:
        change: (columns, d_v, d), column 0 the present token.
        values: value channels that are kept.
    """
    present = change.new_zeros(len(change), 1, 1)
    present[0] = 1.0
    return change[:, :values] + present


def starting_shares(value_size: int, favoured: int | None = None) -> Tensor:
    """Return (d_v, 1), what each value channel weighs in a fresh read; they sum to 1.

    Equal shares, or half of that and the other half on one channel. The first v of d_v, scaled by
    d_v / v, read equal channels as one of them times 1; with a favoured channel times
    1/2 + d_v / (2 v) where it is among them and v < d_v, and times 1/2 where it is not. The norm
    that follows a read takes this factor out.

    Args:
        value_size: d_v.
        favoured: value channel with the other half, or None.
    """
    if favoured is None:
        return torch.full((value_size, 1), 1.0 / value_size)
    shares = torch.full((value_size, 1), 0.5 / value_size)
    shares[favoured] += 0.5
    return shares


def budget_rows(weight: Tensor, values: int) -> Tensor:
    """Return the first rows of a read's weight, scaled so that an average stays one."""
    full = len(weight)
    return weight if values == full else weight[:values] * (full / values)
