"""Train what lies outside a smaller model without touching the smaller model.

Weights are nested as leading corners, so a larger model can run on weights whose leading corner
lets no gradient through. Whatever a loss on that run asks for, the smaller model stays as it is.
"""

from typing import Any

import torch
from torch import Tensor

from ..configuration.delta_budget import DeltaBudget


class _FreezeCorner(torch.autograd.Function):
    """Identity whose backward sets the gradient of a leading corner to zero."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, shape: tuple[int, ...]) -> Tensor:
        ctx.shape = shape
        return tensor.view_as(tensor)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        gradient = gradients[0].clone()
        gradient[tuple(slice(0, size) for size in ctx.shape)] = 0
        return gradient, None


def freeze_corner(tensor: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Return ``tensor``; the first ``shape`` entries along every axis get no gradient."""
    if shape == tuple(tensor.shape):
        return tensor.detach()
    frozen: Tensor = _FreezeCorner.apply(tensor, shape)  # type: ignore[no-untyped-call]
    return frozen


def frozen_parameters(model: Any, smaller: DeltaBudget) -> dict[str, Tensor]:
    """Return the parameters of ``model`` for `torch.func.functional_call`, ``smaller`` frozen.

    What both budgets share without being a corner (the network behind conditioned norms, and
    atoms where ``smaller`` reaches beyond the base slice) is frozen whole.

    Args:
        model: a nested masked LM.
        smaller: the budget whose function must not change.
    """
    config = model.config
    shape = smaller.shape(config)
    corners = corner_shapes(model, smaller)
    uses_delta = config.delta_kind != "dense" and (
        shape.heads > config.base_attention_heads
        or any(map(int.__gt__, shape.intermediate, config.base_intermediate_sizes()))
    )
    frozen: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters():
        part = name.removeprefix("model.").split(".")[0]
        if part == "conditioner" or (part == "deltas" and uses_delta):
            frozen[name] = parameter.detach()
        elif part == "exit_affine":
            rows = torch.arange(parameter.shape[0], device=parameter.device) != shape.layers - 1
            mask = rows.view(-1, 1, 1)
            frozen[name] = torch.where(mask, parameter, parameter.detach())
        elif name in corners:
            frozen[name] = freeze_corner(parameter, corners[name])
    return frozen


def corner_shapes(model: Any, smaller: DeltaBudget) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the weights of ``smaller`` as they lie in the stored weights."""
    shapes = model._corner_shapes.get(smaller)
    if shapes is None:
        with torch.device("meta"):
            cut = type(model)(model.sliced_config(smaller))
        stored = dict(model.named_parameters())
        shapes = {
            name: tuple(map(min, tensor.shape, stored[name].shape))
            for name, tensor in cut.named_parameters()
        }
        model._corner_shapes[smaller] = shapes
    return shapes
