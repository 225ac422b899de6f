"""Masked LM term against a loop."""

import math

import pytest
import torch
from nestling.trainers.losses.masked_lm import MaskedLmLoss, token_losses


def slow_sum(logits: list[list[float]], labels: list[int]) -> float:
    """Sum `log sum exp z - z_y` over the labelled positions."""
    total = 0.0
    for row, label in zip(logits, labels, strict=True):
        if label != -100:
            total += math.log(sum(math.exp(z) for z in row)) - row[label]
    return total


def test_equals_the_slow_sum_in_any_shape() -> None:
    """Dense (batch, seq, vocab) and selected rows give one sum and one count."""
    logits = torch.randn(2, 5, 7, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([[1, -100, 3, -100, 6], [-100, -100, -100, 0, 2]])
    expected = slow_sum(logits.flatten(0, 1).tolist(), labels.flatten().tolist())
    dense = MaskedLmLoss()(logits, labels)
    sparse = MaskedLmLoss()(logits[labels != -100], labels[labels != -100])
    assert dense.total.item() == pytest.approx(expected, rel=1e-6)
    assert sparse.total.item() == pytest.approx(expected, rel=1e-6)
    assert int(dense.count) == int(sparse.count) == 5


def test_gradient_is_softmax_minus_one_hot() -> None:
    """Labelled rows only."""
    logits = torch.randn(3, 4, requires_grad=True)
    labels = torch.tensor([2, -100, 0])
    MaskedLmLoss()(logits, labels).total.backward()
    expected = logits.detach().softmax(-1)
    expected[0, 2] -= 1
    expected[2, 0] -= 1
    expected[1] = 0
    torch.testing.assert_close(logits.grad, expected)


def test_bf16_logits_are_summed_in_fp32() -> None:
    """A long sum would drift in bf16."""
    logits = torch.zeros(4096, 3, dtype=torch.bfloat16)
    loss = MaskedLmLoss()(logits, torch.zeros(4096, dtype=torch.long))
    assert loss.total.dtype == torch.float32
    assert loss.total.item() == pytest.approx(4096 * math.log(3), rel=1e-5)


def test_no_labels_give_a_zero_with_gradient() -> None:
    """An unlabelled micro-batch of a larger window is no error."""
    logits = torch.randn(2, 3, requires_grad=True)
    total, count = MaskedLmLoss()(logits, torch.full((2,), -100))
    total.backward()
    assert total.item() == 0 and int(count) == 0 and logits.grad.abs().sum() == 0


def test_shapes_that_do_not_fit() -> None:
    """The error names both."""
    with pytest.raises(ValueError, match=r"\(2, 3\) do not fit labels \(3,\)"):
        MaskedLmLoss()(torch.zeros(2, 3), torch.zeros(3, dtype=torch.long))


def test_losses_of_single_tokens() -> None:
    """They add up to the term, in fp32, and an ignored one is 0."""
    logits = torch.randn(4, 7, generator=torch.Generator().manual_seed(1)).bfloat16()
    labels = torch.tensor([1, -100, 3, 6])
    losses = token_losses(logits, labels)
    assert losses.dtype == torch.float32 and losses.shape == (4,) and losses[1] == 0
    for row in (0, 2, 3):
        expected = slow_sum([logits[row].tolist()], [int(labels[row])])
        assert losses[row].item() == pytest.approx(expected, rel=1e-5)
    torch.testing.assert_close(losses.sum(), MaskedLmLoss()(logits, labels).total)
    with pytest.raises(ValueError, match=r"logits \(4, 7\) and labels \(3,\)"):
        token_losses(logits, labels[:3])
