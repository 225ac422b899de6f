"""Monotone upgrade term: it makes the larger budget better and never the smaller one worse."""

import math

import pytest
import torch
from nestling.trainers.losses.masked_lm import token_losses
from nestling.trainers.losses.monotone_upgrade import MonotoneUpgradeLoss


def slow_losses(logits: list[list[float]], labels: list[int]) -> list[float]:
    """Cross-entropy of each token."""
    rows = zip(logits, labels, strict=True)
    return [math.log(sum(math.exp(z) for z in row)) - row[label] for row, label in rows]


def logits_and_labels(seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Logits of the larger and the smaller budget, with gradient, and labels."""
    generator = torch.Generator().manual_seed(seed)
    larger, smaller = (torch.randn(12, 7, generator=generator).requires_grad_() for _ in range(2))
    return larger, smaller, torch.randint(7, (12,), generator=generator)


@pytest.mark.parametrize("margin", [0.0, 0.3])
def test_equals_the_slow_sum(margin: float) -> None:
    larger, smaller, labels = logits_and_labels(0)
    pairs = zip(
        slow_losses(larger.tolist(), labels.tolist()),
        slow_losses(smaller.tolist(), labels.tolist()),
        strict=True,
    )
    expected = sum(max(0.0, ours - theirs + margin) for ours, theirs in pairs)
    loss = MonotoneUpgradeLoss(margin)(larger, token_losses(smaller, labels), labels)
    assert loss.total.item() == pytest.approx(expected, rel=1e-5)
    assert int(loss.count) == 12


def test_the_smaller_budget_gets_no_gradient() -> None:
    """Neither directly nor through a weight that both share: only its use in the larger counts."""
    larger, smaller, labels = logits_and_labels(1)
    term = MonotoneUpgradeLoss()
    gradients = []
    for also_in_smaller in (True, False):
        shared = torch.ones((), requires_grad=True)
        scaled = shared * smaller if also_in_smaller else smaller
        term(shared * larger.detach(), token_losses(scaled, labels), labels).total.backward()
        gradients.append(shared.grad)
    assert smaller.grad is None
    assert torch.equal(*gradients) and gradients[0] != 0


def test_a_step_lowers_the_larger_loss_exactly_where_it_was_worse() -> None:
    """The gradient is softmax - one-hot on violated tokens and zero on the others."""
    larger, smaller, labels = logits_and_labels(2)
    smaller_losses = token_losses(smaller, labels).detach()
    before = token_losses(larger, labels).detach()
    is_violated = before > smaller_losses
    assert 0 < is_violated.sum() < 12
    MonotoneUpgradeLoss()(larger, smaller_losses, labels).total.backward()
    expected = larger.detach().softmax(-1)
    expected[range(12), labels] -= 1
    expected[~is_violated] = 0
    torch.testing.assert_close(larger.grad, expected)
    after = token_losses(larger.detach() - 0.1 * larger.grad, labels)
    assert (after[is_violated] < before[is_violated]).all()
    assert torch.equal(after[~is_violated], before[~is_violated])


def test_zero_where_the_larger_budget_is_better_by_the_margin() -> None:
    larger, _, labels = logits_and_labels(3)
    losses = token_losses(larger, labels)
    assert MonotoneUpgradeLoss(0.2)(larger, losses + 0.3, labels).total == 0
    assert MonotoneUpgradeLoss(0.2)(larger, losses + 0.1, labels).total.item() == pytest.approx(
        12 * 0.1, rel=1e-4
    )


def test_ignored_labels_do_not_count() -> None:
    """Not even for the margin."""
    larger, smaller, labels = logits_and_labels(4)
    some = labels.clone()
    some[::2] = -100
    kept = some != -100
    term = MonotoneUpgradeLoss(0.5)
    whole = term(larger, token_losses(smaller, some), some)
    part = term(larger[kept], token_losses(smaller[kept], labels[kept]), labels[kept])
    assert whole.total.item() == pytest.approx(part.total.item(), rel=1e-6)
    assert int(whole.count) == int(part.count) == 6


def test_shapes_that_do_not_fit() -> None:
    """Logits in place of losses are a likely slip."""
    larger, smaller, labels = logits_and_labels(5)
    with pytest.raises(ValueError, match=r"smaller losses \(12, 7\).*token_losses"):
        MonotoneUpgradeLoss()(larger, smaller, labels)
    with pytest.raises(ValueError, match=r"logits \(12, 7\) and labels \(11,\)"):
        MonotoneUpgradeLoss()(larger, torch.zeros(11), labels[:11])


@pytest.mark.parametrize("margin", [-0.1, math.nan, math.inf])
def test_bad_margin(margin: float) -> None:
    with pytest.raises(ValueError, match=f"margin is {margin}"):
        MonotoneUpgradeLoss(margin)
