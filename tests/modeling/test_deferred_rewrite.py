"""Two rewrites in one pass over the state equal two passes, in fp64, gradients included."""

import pytest
import torch
from nestling.modeling.deferred_rewrite import (
    changed_columns,
    defer_rewrite,
    read_columns,
    with_rewrites,
)
from nestling.modeling.delta_residual import direction_of, rewrite
from torch import Tensor

EPS = 1e-3


def draw(values: int) -> list[Tensor]:
    """State, weights of the read, and two times what gives a direction, value and beta."""
    generator = torch.Generator().manual_seed(values)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64, requires_grad=True)

    update = [(16, 6), (16, values), (16, 1)] * 2  # 2 x 16 tokens: whole groups of neighbours
    return [normal(2, 16, values, 6), normal(values, 6), *(normal(2, *shape) for shape in update)]


def in_two_passes(state: Tensor, weights: Tensor, *parts: Tensor) -> list[Tensor]:
    middle = rewrite(state, direction_of(parts[0], EPS), *parts[1:3])
    last = rewrite(middle, direction_of(parts[3], EPS), *parts[4:])
    return [(middle * weights).sum(-2), last]


def in_one_pass(state: Tensor, weights: Tensor, *parts: Tensor) -> list[Tensor]:
    channels, columns = state.unbind(-2), weights[None]
    first, second = (
        (raw, value.split(1, dim=-1), beta) for raw, value, beta in (parts[:3], parts[3:])
    )
    [before] = read_columns(channels, columns)
    rewrite = defer_rewrite(channels, *first, EPS)
    [change] = changed_columns(rewrite, columns)
    read = (before + change).to(before.dtype)
    later = defer_rewrite(channels, *second, EPS, earlier=rewrite)
    return [read, torch.stack(with_rewrites(channels, rewrite, later), dim=-2)]


@pytest.mark.parametrize("values", [1, 3])
def test_one_pass_equals_two(values: int) -> None:
    inputs = draw(values)
    found, expected = in_one_pass(*inputs), in_two_passes(*inputs)
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-10, rtol=1e-10)
    gradients = [
        torch.autograd.grad(sum((output * output.sin()).sum() for output in outputs), inputs)
        for outputs in (found, expected)
    ]
    for mine, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-9, rtol=1e-9)


def test_results_keep_the_dtype_of_the_state() -> None:
    inputs = [tensor.detach().bfloat16() for tensor in draw(2)]
    assert {output.dtype for output in in_one_pass(*inputs)} == {torch.bfloat16}


def test_a_sublayer_that_gives_nothing_changes_nothing() -> None:
    state, _, raw, value, beta, *_ = draw(2)
    nothing = (0 * raw).detach().requires_grad_()
    channels = state.unbind(-2)
    rewrite = defer_rewrite(channels, nothing, value.split(1, dim=-1), beta, EPS)
    updated = torch.stack(with_rewrites(channels, rewrite), dim=-2)
    assert torch.equal(updated, state)
    gradients = torch.autograd.grad(updated.square().sum(), [state, nothing, value, beta])
    assert all(bool(gradient.isfinite().all()) for gradient in gradients)
