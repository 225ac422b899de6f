"""Delta residual term against a loop, its landmarks, and who learns from it."""

import math

import pytest
import torch
from nestling.trainers.losses.delta_residual import DeltaResidualLoss
from torch import Tensor


def slow_sum(upgraded: Tensor, smaller: Tensor, teacher: Tensor, eps: float) -> float:
    """Sum `||delta - r||^2 / (||r||^2 + n eps)` as it is defined."""
    total = 0.0
    for u, s, t in zip(upgraded.tolist(), smaller.tolist(), teacher.tolist(), strict=True):
        n = min(len(u), len(s), len(t))
        delta = [u[i] - s[i] for i in range(n)]
        residual = [t[i] - s[i] for i in range(n)]
        gap = sum((d - r) ** 2 for d, r in zip(delta, residual, strict=True))
        total += gap / (sum(r * r for r in residual) + n * eps)
    return total


def states(seed: int, rows: int = 5, channels: int = 6) -> list[Tensor]:
    """Three random sets of states with gradient."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(rows, channels, generator=generator).requires_grad_() for _ in range(3)]


@pytest.mark.parametrize("eps", [1e-3, 0.5])
def test_equals_the_slow_sum(eps: float) -> None:
    upgraded, smaller, teacher = states(0)
    loss = DeltaResidualLoss(eps)(upgraded, smaller, teacher)
    expected = slow_sum(upgraded.detach(), smaller.detach(), teacher.detach(), eps)
    assert loss.total.item() == pytest.approx(expected, rel=1e-5)
    assert loss.count == 5


def test_is_the_share_of_the_missing_residual() -> None:
    """1 if the upgrade adds nothing, 0 if it arrives, 1/4 half-way, 4 in the wrong direction."""
    _, smaller, teacher = states(1)
    missing = teacher - smaller
    term = DeltaResidualLoss(1e-9)
    for step, share in ((0.0, 1.0), (1.0, 0.0), (0.5, 0.25), (-1.0, 4.0)):
        total, count = term(smaller + step * missing, smaller, teacher)
        assert total.item() / count == pytest.approx(share, abs=1e-4)


def test_only_the_upgraded_states_learn_and_they_move_to_the_teacher() -> None:
    """The numerator's gradient is 2 (h_b+ - h_T) over the size of the residual."""
    upgraded, smaller, teacher = states(2)
    term = DeltaResidualLoss(1e-3)
    term(upgraded, smaller, teacher).total.backward()
    size = (teacher - smaller).square().sum(-1, keepdim=True) + 6e-3
    torch.testing.assert_close(upgraded.grad, (2 * (upgraded - teacher) / size).detach())
    assert smaller.grad is None and teacher.grad is None
    closer = upgraded.detach() - 0.1 * upgraded.grad
    assert (closer - teacher).norm() < (upgraded - teacher).norm()


def test_tokens_on_which_the_budgets_agree_do_not_shout() -> None:
    """Where the upgrade adds nothing, a token's gradient is at most 1 / sqrt(n eps)."""
    _, smaller, teacher = states(3, rows=64)
    for distance in (1e-3, 1e-1, 1.0, 10.0):
        upgraded = smaller.detach().clone().requires_grad_()
        far = smaller.detach() + distance * (teacher - smaller).detach()
        for term in (DeltaResidualLoss(), DeltaResidualLoss(1e-3)):
            (gradient,) = torch.autograd.grad(term(upgraded, smaller, far).total, upgraded)
            assert gradient.norm(dim=1).max() <= (6 * term.eps) ** -0.5 + 1e-6
    upgraded = smaller.detach().clone().requires_grad_()
    close = smaller.detach() + 1e-3
    (gradient,) = torch.autograd.grad(DeltaResidualLoss()(upgraded, smaller, close).total, upgraded)
    # 2 |r| / (n eps) where |r| is small: less than the distance itself.
    torch.testing.assert_close(
        gradient.norm(dim=1), torch.full((64,), 2 * 1e-3 * 6**0.5 / 6), rtol=1e-3, atol=0
    )


def test_nested_hidden_widths_compare_the_leading_channels() -> None:
    """What lies beyond the narrowest width does not matter and gets no gradient."""
    upgraded, smaller, teacher = states(3)
    narrow = smaller.detach()[:, :4]
    loss = DeltaResidualLoss()(upgraded, narrow, teacher)
    assert loss.total.item() == pytest.approx(
        slow_sum(upgraded.detach(), narrow, teacher.detach(), 1.0), rel=1e-5
    )
    loss.total.backward()
    assert upgraded.grad[:, 4:].abs().max() == 0 and upgraded.grad[:, :4].abs().min() > 0


def test_a_solved_token_stays_finite() -> None:
    """Residual 0: the floor divides, in bf16 states too."""
    same = torch.randn(3, 4, generator=torch.Generator().manual_seed(4)).bfloat16()
    upgraded = (same + 0.1).requires_grad_()
    loss = DeltaResidualLoss()(upgraded, same, same).total
    loss.backward()
    assert loss.dtype == torch.float32 and torch.isfinite(loss)
    assert torch.isfinite(upgraded.grad).all()


def test_no_tokens_give_zero() -> None:
    empty = torch.zeros(0, 4)
    assert DeltaResidualLoss()(empty, empty, empty) == (0.0, 0)


def test_shapes_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match=r"upgraded \(3, 4\), smaller \(2, 4\)"):
        DeltaResidualLoss()(torch.zeros(3, 4), torch.zeros(2, 4), torch.zeros(3, 4))
    with pytest.raises(ValueError, match=r"\(num_labelled, hidden\)"):
        DeltaResidualLoss()(torch.zeros(4), torch.zeros(4), torch.zeros(4))


@pytest.mark.parametrize("eps", [0.0, -1.0, math.nan, math.inf])
def test_bad_eps(eps: float) -> None:
    with pytest.raises(ValueError, match=f"eps is {eps}"):
        DeltaResidualLoss(eps)
