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


class _Weighed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, inputs: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(inputs, weight)
        return inputs * weight

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        inputs, weight = ctx.saved_tensors
        (gradient,) = gradients
        d_weight = sum_over_tokens((gradient * inputs).flatten(0, -2), True)
        d_inputs = gradient * weight
        if inputs.shape[-1] != d_inputs.shape[-1]:
            d_inputs = d_inputs.sum(-1, keepdim=True)
        return d_inputs.to(inputs.dtype), d_weight.to(weight.dtype)


def weighed(inputs: Tensor, weight: Tensor) -> Tensor:
    """Return ``inputs * weight`` for a weight that all tokens share, for compiled code.

    Args:
        inputs: (..., d), or (..., 1) which every entry of the weight multiplies.
        weight: (d).

    Returns:
        (..., d).
    """
    result: Tensor = _Weighed.apply(inputs, weight)
    return result


def compiled_dots(inputs: Tensor, rows: Tensor) -> tuple[Tensor, ...]:
    """Return the products of (..., d) with a few rows (n, d), each (..., 1), for compiled code.

    A compiler fuses them with what computes the inputs, in fp32 without a copy of them in fp32; a
    matrix product would be a call of its own, three with its gradients, for next to no work.

    Args:
        inputs: in the dtype of the sums.
        rows: in the same.
    """
    return tuple(weighed(inputs, row).sum(-1, keepdim=True) for row in rows.unbind(0))
