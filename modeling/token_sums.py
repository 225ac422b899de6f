"""Sums over tokens as compiled code does them well: gradients of small weights are such sums."""

from typing import Any

import torch
from torch import Tensor

# Tokens whose states fit into the first-level cache of a core together.
NEIGHBOURS = 16


def sum_over_tokens(products: Tensor, is_compiled: bool) -> Tensor:
    """Sum the first axis.

    A compiled sum walks down one column after the other. Over a few neighbours, which stay in the
    cache, it does not fetch everything once a column; what is left to sum is small.

    Args:
        products: (tokens, ...).
        is_compiled: whether the sum is part of compiled code.
    """
    tokens = len(products)
    if is_compiled and tokens % NEIGHBOURS == 0:
        products = products.unflatten(0, (tokens // NEIGHBOURS, NEIGHBOURS)).sum(1)
    return products.sum(0)


class _Dots(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, inputs: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(inputs, weight)
        return (inputs.unsqueeze(-2) * weight).sum(-1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        inputs, weight = ctx.saved_tensors
        gradient = gradients[0].unsqueeze(-1)
        products = (gradient * inputs.unsqueeze(-2)).flatten(0, -3)
        return (gradient * weight).sum(-2), sum_over_tokens(products, True)


def compiled_dots(inputs: Tensor, weight: Tensor) -> Tensor:
    """Return (..., d) by a few rows (n, d) to (..., n), for compiled code.

    A compiler fuses it with what computes the inputs, in fp32 without a copy of them in fp32; a
    matrix product would be a call of its own, three with its gradients, for next to no work.

    Args:
        inputs: in the dtype of the sums.
        weight: in the same.
    """
    result: Tensor = _Dots.apply(inputs, weight)
    return result
