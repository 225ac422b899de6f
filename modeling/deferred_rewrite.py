"""Rewrites as compiled code does them best: few passes over the state, and few sums for a token.

A rewrite adds ``a h^T`` with ``a = r beta (v - r X h)`` in R^(d_v), ``r = 1 / sqrt(|h|^2 + eps^2)``
and h what the sublayer gives: the direction ``k = r h`` is never built, so X h and |h|^2 are summed
side by side, and one sum is enough in the backward pass.

Until the next block, only the read of the new state and its product with the next h are needed;
both follow from the state before and (h, a)::

    sum_j w_j X'_j = sum_j w_j X_j + (sum_j w_j a_j) h        X' h2 = X h2 + a (h . h2)

so X' need not exist: the state is written once a block, and as much less is kept and fetched in the
backward pass. Equal to `delta_residual.rewrite` up to rounding.

A state is a tensor for each value channel here. Then all that happens to a token is one loop over
its d channels, and a compiler fuses the sums, the rewrite and the next read into one pass.
"""

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from .carried_state import CarriedState
from .delta_residual import at_least_fp32
from .token_sums import weighed_sum

# d_v tensors, each (batch, tokens, d).
Channels = tuple[Tensor, ...]


class Deferred(NamedTuple):
    """A rewrite that is not in the state yet.

    Attributes:
        raw: (batch, tokens, d), h.
        steps: d_v tensors (batch, tokens, 1), a.
    """

    raw: Tensor
    steps: tuple[Tensor, ...]


def defer_rewrite(
    state: Channels,
    raw: Tensor,
    value: Sequence[Tensor],
    beta: Tensor,
    eps: float,
    earlier: Deferred | None = None,
    carried: CarriedState | None = None,
    erases: bool = True,
) -> Deferred:
    """Return the rewrite of a state, or of the state after an earlier one that is not in it yet.

    Args:
        state: d_v tensors (batch, tokens, d).
        raw: (batch, tokens, d), what the sublayer gives.
        value: d_v tensors (batch, tokens, 1).
        beta: (batch, tokens, 1).
        eps: guard of the direction, see `delta_residual.direction_of`.
        earlier: of the same state.
        carried: gives the state back in the backward pass, so that none is kept here.
        erases: whether what the state holds along h is taken out; else ``a = r beta v``.
    """
    raw = at_least_fp32(raw)
    scale = (raw.square().sum(-1, keepdim=True) + eps * eps).rsqrt()
    strength = scale * beta
    if not erases:
        return Deferred(raw, tuple(strength * v for v in value))
    if carried is None:
        along = tuple((channel * raw).sum(-1, keepdim=True) for channel in state)
    else:
        along = carried.along(state, raw)
    if earlier is not None:
        shared = (earlier.raw * raw).sum(-1, keepdim=True)
        along = tuple(a + step * shared for a, step in zip(along, earlier.steps, strict=True))
    steps = (strength * (v - scale * a) for v, a in zip(value, along, strict=True))
    return Deferred(raw, tuple(steps))


def read_columns(
    state: Channels, weights: Tensor, carried: CarriedState | None = None
) -> list[Tensor]:
    """Return ``sum_j w_j[i] X_j[i]`` for every column of a read, each (batch, tokens, d).

    Args:
        state: d_v tensors (batch, tokens, d).
        weights: (columns, d_v, d).
        carried: see `defer_rewrite`.
    """
    if carried is not None:
        return [carried.read(state, column.unbind(0)) for column in weights.unbind(0)]
    return [weighed_sum(state, column) for column in weights.unbind(0)]


def changed_columns(rewrite: Deferred, weights: Tensor) -> list[Tensor]:
    """Return what a rewrite adds to the columns of a read, each (batch, tokens, d).

    Args:
        rewrite: of the state that was read.
        weights: of that read, (columns, d_v, d).
    """
    return [weighed_sum(rewrite.steps, column) * rewrite.raw for column in weights.unbind(0)]


def with_rewrites(
    state: Channels, *rewrites: Deferred, carried: CarriedState | None = None
) -> Channels:
    """Return the state after one or more rewrites, in its dtype.

    Args:
        state: d_v tensors (batch, tokens, d).
        *rewrites: of it.
        carried: see `defer_rewrite`.
    """
    if carried is not None:
        return carried.rewritten(state, *rewrites)
    changed = list(state)
    for raw, steps in rewrites:
        changed = [channel + step * raw for channel, step in zip(changed, steps, strict=True)]
    return tuple(new.to(old.dtype) for new, old in zip(changed, state, strict=True))
