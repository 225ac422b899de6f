"""Cross-entropy of class labels against a loop."""

import math

import pytest
import torch
from nestling.trainers.losses.label_cross_entropy import LabelCrossEntropyLoss


def slow_sum(logits: list[list[float]], labels: list[int]) -> float:
    """Sum `log sum exp z - z_y` over the labels that are not -100."""
    return sum(
        math.log(sum(math.exp(z) for z in row)) - row[label]
        for row, label in zip(logits, labels, strict=True)
        if label != -100
    )


def test_labels_of_rows_and_of_tokens_equal_the_slow_sum() -> None:
    logits = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([[1, -100, 4], [-100, 0, -100]])
    of_tokens = LabelCrossEntropyLoss()(logits, labels)
    assert of_tokens.total.item() == pytest.approx(
        slow_sum(logits.flatten(0, 1).tolist(), labels.flatten().tolist()), rel=1e-6
    )
    assert int(of_tokens.count) == 3
    of_rows = LabelCrossEntropyLoss()(logits[:, 0], torch.tensor([3, 2]))
    assert of_rows.total.item() == pytest.approx(
        slow_sum(logits[:, 0].tolist(), [3, 2]), rel=1e-6
    )
    assert int(of_rows.count) == 2


def test_the_gradient_raises_the_label_and_nothing_where_there_is_none() -> None:
    logits = torch.zeros(2, 3, requires_grad=True)
    LabelCrossEntropyLoss()(logits, torch.tensor([1, -100])).total.backward()
    expected = torch.tensor([[1 / 3, -2 / 3, 1 / 3], [0.0, 0.0, 0.0]])
    torch.testing.assert_close(logits.grad, expected)


def test_shapes_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match=r"logits \(2, 3\) do not fit labels \(3,\)"):
        LabelCrossEntropyLoss()(torch.zeros(2, 3), torch.zeros(3, dtype=torch.long))
