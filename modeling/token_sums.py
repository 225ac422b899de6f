"""Sums over tokens as compiled code does them well: gradients of small weights are such sums."""

from collections.abc import Sequence
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


class _WeighedSum(torch.autograd.Function):
    # Three arguments or more, always: with as many as there are names, a compiler that needs no
    # gradients takes the first of them for the context.
    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> Tensor:
        weights, _, *tensors = arguments
        ctx.save_for_backward(weights, *tensors)
        first, *others = (t * row for t, row in zip(tensors, weights.unbind(0), strict=True))
        return sum(others, start=first)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        weights, *tensors = ctx.saved_tensors
        (gradient,) = gradients
        d_weights = [sum_over_tokens((gradient * t).flatten(0, -2), True) for t in tensors]
        d_tensors = []
        for tensor, row in zip(tensors, weights.unbind(0), strict=True):
            product = gradient * row
            if tensor.shape[-1] != product.shape[-1]:
                product = product.sum(-1, keepdim=True)
            d_tensors.append(product.to(tensor.dtype))
        return torch.stack(d_weights).to(weights.dtype), None, *d_tensors


def weighed_sum(tensors: Sequence[Tensor], weights: Tensor) -> Tensor:
    """Return ``sum_j w_j t_j`` with weights that all tokens share, for compiled code.

    One function for all terms: a compiler traces each function by itself.

    Args:
        tensors: n tensors (..., d), or (..., 1) whose number every entry of the weight multiplies.
        weights: (n, d).

    Returns:
        (..., d).
    """
    result: Tensor = _WeighedSum.apply(weights, len(tensors), *tensors)
    return result


class _Dots(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, inputs: Tensor, rows: Tensor) -> tuple[Tensor, ...]:
        ctx.save_for_backward(inputs, rows)
        return tuple((inputs * row).sum(-1, keepdim=True) for row in rows.unbind(0))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        inputs, rows = ctx.saved_tensors
        first, *others = (g * row for g, row in zip(gradients, rows.unbind(0), strict=True))
        d_rows = [sum_over_tokens((g * inputs).flatten(0, -2), True) for g in gradients]
        return sum(others, start=first), torch.stack(d_rows)


def compiled_dots(inputs: Tensor, rows: Tensor) -> tuple[Tensor, ...]:
    """Return the products of (..., d) with a few rows (n, d), each (..., 1), for compiled code.

    A compiler fuses them with what computes the inputs, in fp32 without a copy of them in fp32; a
    matrix product would be a call of its own, three with its gradients, for next to no work.

    Args:
        inputs: in the dtype of the sums.
        rows: in the same.
    """
    result: tuple[Tensor, ...] = _Dots.apply(inputs, rows)
    return result
