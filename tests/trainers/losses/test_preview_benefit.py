"""Preview benefit term against a loop; only the router learns, and it learns the benefit."""

import math

import pytest
import torch
from nestling.trainers.losses.preview_benefit import PreviewBenefitLoss
from torch import Tensor


def inputs(seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Scores, base and full losses with gradient, and a selection."""
    generator = torch.Generator().manual_seed(seed)
    scores, base, full = (
        (3 * torch.randn(20, generator=generator)).requires_grad_() for _ in range(3)
    )
    return scores, base, full, torch.rand(20, generator=generator) < 0.35


def slow_sum(
    scores: Tensor, base: Tensor, full: Tensor, selected: Tensor, tau: float, weight: float
) -> float:
    """Huber with delta 1 and cross-entropy of the selection, token by token."""
    total = 0.0
    rows = zip(scores.tolist(), base.tolist(), full.tolist(), selected.tolist(), strict=True)
    for score, without, with_, chosen in rows:
        error = abs(score - (without - with_))
        total += error * error / 2 if error < 1 else error - 0.5
        probability = 1 / (1 + math.exp(-(score - tau)))
        total -= weight * math.log(probability if chosen else 1 - probability)
    return total


@pytest.mark.parametrize(("tau", "weight"), [(0.0, 0.0), (0.0, 0.1), (0.8, 2.0)])
def test_equals_the_slow_sum(tau: float, weight: float) -> None:
    values = inputs(0)
    loss = PreviewBenefitLoss(weight)(*values, threshold=tau)
    expected = slow_sum(*(value.detach() for value in values), tau, weight)
    assert loss.total.item() == pytest.approx(expected, rel=1e-5)
    assert loss.count == 20


def test_only_the_scores_learn() -> None:
    """A gradient into the losses would make the base worse to look beneficial."""
    scores, base, full, selected = inputs(1)
    threshold = torch.tensor(0.5, requires_grad=True)
    PreviewBenefitLoss(1.0)(scores, base, full, selected, threshold).total.backward()
    assert (scores.grad.abs() > 0).all()
    assert base.grad is None and full.grad is None and threshold.grad is None


def test_the_regression_moves_scores_to_the_benefit() -> None:
    """Up where the delta saves more than foreseen, down where less, by at most delta a token."""
    scores, base, full, selected = inputs(2)
    PreviewBenefitLoss(0.0)(scores, base, full, selected).total.backward()
    error = (scores - (base - full)).detach()
    torch.testing.assert_close(scores.grad, error.clamp(-1, 1))


def test_the_classifier_separates_the_selection_at_the_threshold() -> None:
    """Selected scores rise, the others fall; after training tau alone gives the selection."""
    _, base, _, selected = inputs(3)
    scores = torch.zeros(20, requires_grad=True)
    term = PreviewBenefitLoss(1.0)
    optimizer = torch.optim.SGD([scores], lr=0.5)
    benefit = torch.where(selected, 3.0, 1.0)  # both above 0, so a threshold of 0 would not do
    for _ in range(50):
        optimizer.zero_grad()
        term(scores, base, base - benefit, selected, 2.0).total.backward()
        optimizer.step()
    assert torch.equal(scores > 2.0, selected)


def test_extreme_bf16_scores_stay_finite() -> None:
    scores = torch.tensor([1e4, -1e4], dtype=torch.bfloat16, requires_grad=True)
    zeros = torch.zeros(2)
    total = PreviewBenefitLoss()(scores, zeros, zeros, torch.tensor([False, True])).total
    total.backward()
    assert total.dtype == torch.float32 and torch.isfinite(total)
    assert torch.isfinite(scores.grad).all()


def test_shapes_and_arguments() -> None:
    scores, base, full, selected = inputs(4)
    with pytest.raises(ValueError, match=r"scores \(20,\), base losses \(19,\)"):
        PreviewBenefitLoss()(scores, base[:19], full, selected)
    with pytest.raises(ValueError, match=r"selected \(19,\)"):
        PreviewBenefitLoss()(scores, base, full, selected[:19])
    with pytest.raises(ValueError, match=r"selection_weight is -1\.0"):
        PreviewBenefitLoss(-1.0)
    with pytest.raises(ValueError, match=r"huber_delta is 0\.0"):
        PreviewBenefitLoss(huber_delta=0.0)
