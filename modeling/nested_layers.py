"""Linear and normalisation layers whose leading corner is itself a layer.

Prefix nesting needs one rule only: a smaller layer is the first rows and columns of a larger one.
The weight is sliced *before* the product, so what is cut is not computed.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class NestedLinear(nn.Linear):
    """``y = x W[:out, :in]^T + b[:out]``, with ``in`` read from the input.

    Args:
        in_features: columns of the full weight.
        out_features: rows of the full weight.
        bias: whether there is a bias.
        role: what the weight does, which sets its initial scale: ``"inner"``, ``"residual"``
            (its output joins the residual stream) or ``"classifier"``.
    """

    def __init__(
        self, in_features: int, out_features: int, bias: bool, role: str = "inner"
    ) -> None:
        super().__init__(in_features, out_features, bias=bias)
        self.role = role

    def forward(self, input: Tensor, out_features: int | None = None) -> Tensor:
        """Map (..., in) to (..., out_features); None keeps all rows."""
        out_features = out_features or self.out_features
        weight: Tensor = self.weight
        bias: Tensor | None = self.bias
        if weight.shape != (out_features, input.shape[-1]):
            weight = weight[:out_features, : input.shape[-1]]
            bias = None if bias is None else bias[:out_features]
        return F.linear(input, weight, bias)


class NestedLayerNorm(nn.LayerNorm):
    """Layer normalisation over however many leading channels the input has.

    The statistics are those of the channels present, so the first n channels of a wide model are
    normalised exactly as a model of width n normalises them.
    """

    def __init__(self, size: int, eps: float, bias: bool) -> None:
        super().__init__(size, eps=eps, bias=bias)

    def forward(self, input: Tensor) -> Tensor:
        """Normalise (..., n) with the first n gains."""
        size = input.shape[-1]
        bias = None if self.bias is None else self.bias[:size]
        return F.layer_norm(input, (size,), self.weight[:size], bias, self.eps)


def leading_corner(tensor: Tensor, shape: torch.Size) -> Tensor:
    """Return a contiguous copy of the first ``shape`` entries of ``tensor`` along every axis."""
    return tensor[tuple(slice(0, size) for size in shape)].clone(
        memory_format=torch.contiguous_format
    )
