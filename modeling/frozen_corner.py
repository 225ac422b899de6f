"""Train what lies outside a smaller model without touching the smaller model.

Weights are nested as leading corners, so a larger model can run on weights whose leading corner
lets no gradient through. Whatever a loss on that run asks for, the smaller model stays as it is.
"""

from typing import Any

import torch
from torch import Tensor, nn

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
    frozen: Tensor = _FreezeCorner.apply(tensor, shape)
    return frozen


def frozen_parameters(model: Any, smaller: DeltaBudget) -> dict[str, Tensor]:
    """Return the parameters of ``model`` for `torch.func.functional_call`, ``smaller`` frozen.

    The network behind conditioned norms belongs to every budget, so it is frozen whole.

    Args:
        model: a nested encoder with any head.
        smaller: the budget whose function must not change.
    """
    corners = corner_shapes(model, smaller)
    frozen: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters():
        part = name.removeprefix(f"{model.base_model_prefix}.").split(".")[0]
        if part == "conditioner":
            frozen[name] = parameter.detach()
        elif part == "exit_affine":
            depths = torch.arange(parameter.shape[0], device=parameter.device) + 1
            is_free = (depths != smaller.depth).view(-1, 1, 1)
            frozen[name] = torch.where(is_free, parameter, parameter.detach())
        elif name in corners:
            frozen[name] = freeze_corner(parameter, corners[name])
    return frozen


class _PlainForward(nn.Module):
    """Runs the forward of a model's class, not the one a trainer put around the instance's.

    That is one autocast context for all calls (Accelerate), and entered twice it is never left.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, **arguments: Any) -> Any:
        return type(self.model).forward(self.model, **arguments)


def run_frozen(model: Any, smaller: DeltaBudget, **arguments: Any) -> Any:
    """Run ``model`` so that no gradient reaches what ``smaller`` consists of.

    May be called from within the forward of ``model`` itself.

    Args:
        model: a nested encoder with any head.
        smaller: the budget whose function must not change.
        arguments: of the forward of ``model``.
    """
    frozen = {f"model.{name}": value for name, value in frozen_parameters(model, smaller).items()}
    return torch.func.functional_call(_PlainForward(model), frozen, kwargs=arguments)


def corner_shapes(model: Any, smaller: DeltaBudget) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the corners of stored weights that ``smaller`` is made of."""
    # The vocabulary may be resized after the first call.
    key = (smaller, model.config.vocab_size)
    shapes = model._corner_shapes.get(key)
    if shapes is None:
        with torch.device("meta"):
            cut = type(model)(model.sliced_config(smaller))
        stored = dict(model.named_parameters())
        shapes = {
            name: tuple(map(min, tensor.shape, stored[name].shape))
            for name, tensor in cut.named_parameters()
            if name in stored  # the table of a slice comes from the conditioner, frozen whole
        }
        shapes.update(_built_corners(model, smaller))
        model._corner_shapes[key] = shapes
    return shapes


def _built_corners(model: Any, smaller: DeltaBudget) -> dict[str, tuple[int, ...]]:
    """Return the same for the factors of built deltas."""
    trunk = model.base_model
    if trunk.deltas is None:
        return {}
    prefix = "" if trunk is model else f"{model.base_model_prefix}."
    shape = smaller.shape(model.config)
    return {
        f"{prefix}deltas.blocks.{kind}.{name}": corner
        for kind, size in trunk.deltas.sizes(shape).items()
        for name, corner in trunk.deltas.blocks[kind].corners(shape.layers, *size).items()
    }
