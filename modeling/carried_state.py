"""A matrix state that compiled code keeps once: each block rebuilds its own, backwards.

A rewrite can be undone, ``X = X' - a h^T``, because its change is kept. So a block needs no state
of its own for its gradients if the block after it hands over the one it began with. In eager code
a `StateTape` does that. A compiler follows values only, so the state travels as values travel
backwards: each function here also returns a carrier, a tensor that is never read, and what comes
back as the "gradient" of a carrier is the state itself. The states of all blocks but the last need
no memory.

Every carrier goes to one function exactly, so nothing is ever added to a state on its way.
"""

from typing import Any

import torch
from torch import Tensor

from .token_sums import sum_over_tokens


class CarriedState:
    """The carrier of one pass, from the first block to the last.

    Args:
        state: (batch, tokens, d_v, d), that the first block begins with.
        blocks: how many blocks the pass runs.
    """

    def __init__(self, state: Tensor, blocks: int) -> None:
        self.carrier: Tensor = _Begin.apply(state)
        self.blocks = blocks

    def read(self, state: Tensor, weights: Tensor) -> Tensor:
        """Read by channels, ``sum_j w_j[i] X_j[i]``, (..., d_v, d) by (d_v, d) to (..., d)."""
        read, self.carrier = _Read.apply(state, self.carrier, weights)
        return read

    def along(self, state: Tensor, raw: Tensor) -> Tensor:
        """Return ``X h``, (..., d_v, d) by (..., d) to (..., d_v)."""
        along, self.carrier = _Along.apply(state, self.carrier, raw)
        return along

    def rewritten(self, state: Tensor, *changes: Tensor) -> Tensor:
        """Return the state after a block: ``X + sum a h^T`` of its rewrites.

        Args:
            state: (..., d_v, d).
            *changes: h (..., d) and a (..., d_v) of each rewrite, one after the other.
        """
        self.blocks -= 1
        updated, self.carrier = _Rewritten.apply(state, self.carrier, self.blocks == 0, *changes)
        return updated


def _carrier(state: Tensor) -> Tensor:
    """Return a tensor of the shape of a state that takes no memory."""
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
    def forward(
        ctx: Any, state: Tensor, carrier: Tensor, weights: Tensor
    ) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(weights)
        return (state * weights).sum(-2), _carrier(state)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        gradient, state = gradients[0].unsqueeze(-2), gradients[1]
        (weights,) = ctx.saved_tensors
        d_weights = sum_over_tokens((gradient * state).flatten(0, -3), True)
        return (gradient * weights).to(state.dtype), state, d_weights.to(weights.dtype)


class _Along(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, state: Tensor, carrier: Tensor, raw: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(raw)
        return (state * raw.unsqueeze(-2)).sum(-1), _carrier(state)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        gradient, state = gradients[0].unsqueeze(-1), gradients[1]
        (raw,) = ctx.saved_tensors
        d_state = gradient * raw.unsqueeze(-2)
        return d_state.to(state.dtype), state, (gradient * state).sum(-2).to(raw.dtype)


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
                (gradient * step.unsqueeze(-1)).sum(-2).to(raw.dtype),
                (gradient * raw.unsqueeze(-2)).sum(-1).to(step.dtype),
            ]
        return gradient, before, None, *d_changes


def _sum_of(changes: Any, sign: float = 1.0) -> Tensor:
    """Return what rewrites add to a state, or minus that."""
    terms = [
        (sign * step).unsqueeze(-1) * raw.unsqueeze(-2)
        for raw, step in zip(changes[::2], changes[1::2], strict=True)
    ]
    return sum(terms[1:], start=terms[0])
