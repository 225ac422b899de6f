"""Rewrites as compiled code does them best: few passes over the state, and few sums for a token.

A rewrite adds ``a h^T`` with ``a = r beta (v - r X h)`` in R^(d_v), ``r = 1 / sqrt(|h|^2 + eps^2)``
and h what the sublayer gives: the direction ``k = r h`` is never built, so X h and |h|^2 are summed
side by side, and one sum is enough in the backward pass.

Until the next block, only the read of the new state and its product with the next h are needed;
both follow from the state before and (h, a)::

    sum_j w_j X'_j = sum_j w_j X_j + (sum_j w_j a_j) h        X' h2 = X h2 + a (h . h2)

so X' need not exist: the state is written once a block, and as much less is kept and fetched in the
backward pass. Equal to `delta_residual.rewrite` up to rounding.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from .carried_state import CarriedState
from .delta_residual import at_least_fp32
from .token_sums import sum_over_tokens


class Deferred(NamedTuple):
    """A rewrite that is not in the state yet.

    Attributes:
        raw: (batch, tokens, d), h in fp32 or fp64.
        step: (batch, tokens, d_v), a.
    """

    raw: Tensor
    step: Tensor

    @property
    def change(self) -> Tensor:
        """What it adds to the state, (batch, tokens, d_v, d)."""
        return self.step.unsqueeze(-1) * self.raw.unsqueeze(-2)


def defer_rewrite(
    state: Tensor,
    raw: Tensor,
    value: Tensor,
    beta: Tensor,
    eps: float,
    earlier: Deferred | None = None,
    carried: CarriedState | None = None,
) -> Deferred:
    """Return the rewrite of a state, or of the state after an earlier one that is not in it yet.

    Args:
        state: (batch, tokens, d_v, d).
        raw: (batch, tokens, d), what the sublayer gives.
        value: (batch, tokens, d_v).
        beta: (batch, tokens, 1).
        eps: guard of the direction, see `delta_residual.direction_of`.
        earlier: of the same state.
        carried: gives the state back in the backward pass, so that none is kept here.
    """
    raw = at_least_fp32(raw)
    scale = (raw.square().sum(-1, keepdim=True) + eps * eps).rsqrt()
    if carried is None:
        along = (state * raw.unsqueeze(-2)).sum(-1)
    else:
        along = carried.along(state, raw)
    if earlier is not None:
        along = along + earlier.step * (earlier.raw * raw).sum(-1, keepdim=True)
    return Deferred(raw, scale * beta * (value - scale * along))


def read_after(read: Tensor, weights: Tensor, rewrite: Deferred) -> Tensor:
    """Return the read by channels of the state after a rewrite, from the read before it.

    Args:
        read: (batch, tokens, d).
        weights: (d_v, d) of that read.
        rewrite: of the state that was read.
    """
    gain: Tensor = _WeightedSteps.apply(rewrite.step, weights)
    return (read + gain * rewrite.raw).to(read.dtype)


def with_rewrites(
    state: Tensor, *rewrites: Deferred, carried: CarriedState | None = None
) -> Tensor:
    """Return the state after one or more rewrites, in its dtype.

    Args:
        state: (batch, tokens, d_v, d).
        *rewrites: of it.
        carried: see `defer_rewrite`.
    """
    if carried is not None:
        return carried.rewritten(state, *(tensor for one in rewrites for tensor in one))
    changed = state
    for one in rewrites:
        changed = changed + one.change
    return changed.to(state.dtype)


class _WeightedSteps(torch.autograd.Function):
    """``sum_j w_j s_j``, (batch, tokens, d_v) by (d_v, d) to (batch, tokens, d)."""

    @staticmethod
    def forward(ctx: Any, step: Tensor, weights: Tensor) -> Tensor:
        ctx.save_for_backward(step, weights)
        return (step.unsqueeze(-1) * weights).sum(-2)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        step, weights = ctx.saved_tensors
        gradient = gradients[0].unsqueeze(-2)
        d_weights = sum_over_tokens((gradient * step.unsqueeze(-1)).flatten(0, -3), True)
        return (gradient * weights).sum(-1).to(step.dtype), d_weights.to(weights.dtype)
