"""A matrix state that compiled code keeps once: each block rebuilds its own, backwards.

A rewrite can be undone, ``X = X' - a h^T``, because its change is kept. So a block needs no state
of its own for its gradients if the block after it hands over the one it began with. In eager code
a `StateTape` does that. A compiler follows values only, so the state travels as values travel
backwards: each function here also returns a carrier, a tensor that is never read, and what comes
back as the "gradient" of a carrier is the state itself. The states of all blocks but the last need
no memory.

Every carrier goes to one function exactly, so nothing is ever added to a state on its way. Value
channels travel one by one: nothing here mixes them.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .token_sums import sum_over_tokens


class CarriedState:
    """The carriers of one pass, from the first block to the last.

    Args:
        state: d_v tensors (batch, tokens, d), that the first block begins with.
        blocks: how many blocks the pass runs.
    """

    def __init__(self, state: Sequence[Tensor], blocks: int) -> None:
        self.carriers: list[Tensor] = [_Begin.apply(channel) for channel in state]
        self.blocks = blocks

    def read(self, state: Sequence[Tensor], weights: Sequence[Tensor]) -> Tensor:
        """Read by channels, ``sum_j w_j[i] X_j[i]``, to (..., d).

        Args:
            state: d_v tensors (..., d).
            weights: d_v rows (d).
        """
        first, *others = self._each(_Read, state, weights)
        return sum(others, start=first)

    def along(self, state: Sequence[Tensor], raw: Tensor) -> tuple[Tensor, ...]:
        """Return ``X h``, d_v tensors (..., 1), of a state and h (..., d)."""
        return self._each(_Along, state, [raw] * len(state))

    def rewritten(
        self, state: Sequence[Tensor], *rewrites: tuple[Tensor, Sequence[Tensor]]
    ) -> tuple[Tensor, ...]:
        """Return the state after a block: ``X + sum a h^T`` of its rewrites.

        Args:
            state: d_v tensors (..., d).
            *rewrites: h (..., d) and d_v steps (..., 1) of each, one after the other.
        """
        self.blocks -= 1
        is_last = [self.blocks == 0] * len(state)
        changes = [part for raw, steps in rewrites for part in ([raw] * len(state), steps)]
        return self._each(_Rewritten, state, is_last, *changes)

    def _each(
        self, function: Any, state: Sequence[Tensor], *arguments: Sequence[Any]
    ) -> tuple[Tensor, ...]:
        """Apply a function to every channel and its carrier, and keep the new carriers."""
        calls = zip(state, self.carriers, *arguments, strict=True)
        results, carriers = zip(*(function.apply(*call) for call in calls), strict=True)
        self.carriers = list(carriers)
        return tuple(results)


def _carrier(state: Tensor) -> Tensor:
    """Return a tensor of the shape of a channel that takes no memory."""
    return state.new_zeros(()).expand_as(state)


class _Begin(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, state: Tensor) -> Tensor:
        return _carrier(state)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> None:
        return None


class _Read(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, state: Tensor, carrier: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(weights)
        return state * weights, _carrier(state)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        gradient, state = gradients
        (weights,) = ctx.saved_tensors
        d_weights = sum_over_tokens((gradient * state).flatten(0, -2), True)
        return (gradient * weights).to(state.dtype), state, d_weights.to(weights.dtype)


class _Along(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, state: Tensor, carrier: Tensor, raw: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(raw)
        return (state * raw).sum(-1, keepdim=True), _carrier(state)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        gradient, state = gradients
        (raw,) = ctx.saved_tensors
        return (gradient * raw).to(state.dtype), state, (gradient * state).to(raw.dtype)


class _Rewritten(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, state: Tensor, carrier: Tensor, is_last: bool, *changes: Tensor
    ) -> tuple[Tensor, Tensor]:
        updated = (state + _sum_of(changes)).to(state.dtype)
        # The last state is what the others are rebuilt from; nobody hands it back.
        ctx.save_for_backward(*changes, *([updated] if is_last else []))
        ctx.is_last = is_last
        return updated, _carrier(state)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:
        gradient, updated = gradients
        changes = ctx.saved_tensors
        if ctx.is_last:
            *changes, updated = changes
        # Not a difference to what the forward pass added: a compiler would keep that sum instead.
        before = (updated + _sum_of(changes, -1.0)).to(updated.dtype)
        d_changes = []
        for raw, step in zip(changes[::2], changes[1::2], strict=True):
            d_changes += [
                (gradient * step).to(raw.dtype),
                (gradient * raw).sum(-1, keepdim=True).to(step.dtype),
            ]
        return gradient, before, None, *d_changes


def _sum_of(changes: Sequence[Tensor], sign: float = 1.0) -> Tensor:
    """Return what rewrites add to a channel, or minus that."""
    first, *others = (
        (sign * step) * raw for raw, step in zip(changes[::2], changes[1::2], strict=True)
    )
    return sum(others, start=first)
