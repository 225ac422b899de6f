"""Linear and normalisation layers whose leading corner is itself a layer.

Prefix nesting needs one rule only: a smaller layer is the first rows and columns of a larger one.
The weight is sliced *before* the product, so what is cut is not computed.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class NestedLinear(nn.Linear):
    """``y = x W[:out, :in]^T + b[:out]``, with ``in`` read from the input.

    ``W`` is the stored weight, or the stored weight followed by a ``tail``: the part of the rows
    (or, with ``role="residual"``, of the columns) that is built from few parameters instead of
    being stored.

    Args:
        in_features: columns of the stored weight.
        out_features: rows of the stored weight.
        bias: whether there is a bias.
        role: what the weight does, which sets its initial scale: ``"inner"``, ``"residual"``
            (its output joins the residual stream), ``"classifier"``, ``"features"`` (reads a
            few numbers) or ``"change"`` (starts at zero).
    """

    def __init__(
        self, in_features: int, out_features: int, bias: bool, role: str = "inner"
    ) -> None:
        super().__init__(in_features, out_features, bias=bias)
        self.role = role

    def forward(
        self,
        input: Tensor,
        out_features: int | None = None,
        tail: Tensor | None = None,
        part: Callable[[Tensor], Tensor] | None = None,
    ) -> Tensor:
        """Map (..., in) to (..., out_features); None keeps all stored rows.

        Args:
            input: (..., in).
            out_features: rows that are used.
            tail: what follows the stored weight, or None.
            part: picks another part of the weight than its leading corner; the layer must not
                have a bias. Going through this call, it finds a weight that is kept elsewhere.
        """
        if part is not None:
            return F.linear(input, part(self.joined(tail)))
        out_features = out_features or self.out_features
        bias: Tensor | None = self.bias
        if bias is not None and out_features != self.out_features:
            bias = bias[:out_features]
        return F.linear(input, self.corner(out_features, input.shape[-1], tail), bias)

    def corner(self, rows: int, columns: int, tail: Tensor | None = None) -> Tensor:
        """Return the first rows and columns of the stored weight, followed by ``tail`` if given."""
        weight = self.joined(tail)
        return weight if weight.shape == (rows, columns) else weight[:rows, :columns]

    def joined(self, tail: Tensor | None) -> Tensor:
        """Return the stored weight, cut to the side of ``tail`` that it shares and followed by it.

        The shared side is that of the rows for ``role="residual"``, else that of the columns.
        """
        weight: Tensor = self.weight
        if tail is None:
            return weight
        if self.role == "residual":
            return torch.cat((weight[: tail.shape[0]], tail.to(weight.dtype)), dim=1)
        return torch.cat((weight[:, : tail.shape[1]], tail.to(weight.dtype)), dim=0)


class NormPass(NamedTuple):
    """How a norm runs in one pass; see `NestedLayerNorm.folded` for what a change is.

    Attributes:
        change: of gain and bias; None leaves them as they are.
        chosen: (batch, tokens) bool: the tokens that get ``change``; None for all.
        others: what the other tokens get instead.
    """

    change: Tensor | None = None
    chosen: Tensor | None = None
    others: Tensor | None = None

    def at(self, where: Tensor) -> "NormPass":
        """Return the same for the tokens at these places of (batch x tokens,)."""
        if self.chosen is None:
            return self
        return self._replace(chosen=self.chosen.flatten().index_select(0, where))


AS_STORED = NormPass()


class NestedLayerNorm(nn.LayerNorm):
    """Layer normalisation over however many leading channels the input has.

    The statistics are those of the channels present, so the first n channels of a wide model are
    normalised exactly as a model of width n normalises them.
    """

    def __init__(self, size: int, eps: float, bias: bool) -> None:
        super().__init__(size, eps=eps, bias=bias)

    def forward(self, input: Tensor, now: NormPass = AS_STORED) -> Tensor:
        """Normalise (..., n) with the first n gains, changed as ``now`` says."""
        normed = self._normalise(input, now.change)
        if now.chosen is None:
            return normed
        return torch.where(now.chosen[..., None], normed, self._normalise(input, now.others))

    def _normalise(self, input: Tensor, change: Tensor | None) -> Tensor:
        size = input.shape[-1]
        gain, bias = self.folded(change)
        return F.layer_norm(
            input, (size,), gain[:size], None if bias is None else bias[:size], self.eps
        )

    def folded(self, change: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Return gain and bias of the plain norm that ``change`` amounts to.

        ``gain (1 + change[0])`` and ``bias + change[1]``: zero changes nothing.

        Args:
            change: (1 or 2, size), the second row where the norm has a bias.
        """
        bias: Tensor | None = self.bias
        if change is None:
            return self.weight, bias
        change = change.to(self.weight.dtype)
        return self.weight * (1 + change[0]), None if bias is None else bias + change[1]


def leading_corner(tensor: Tensor, shape: torch.Size) -> Tensor:
    """Return a contiguous copy of the first ``shape`` entries of ``tensor`` along every axis."""
    return tensor[tuple(slice(0, size) for size in shape)].clone(
        memory_format=torch.contiguous_format
    )
