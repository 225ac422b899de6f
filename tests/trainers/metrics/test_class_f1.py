"""F1 of one class against scikit-learn."""

import random

import pytest
from nestling.trainers.metrics.class_f1 import class_scores
from sklearn.metrics import accuracy_score, precision_recall_fscore_support


@pytest.mark.parametrize("positive", [0, 1, 2])
def test_equals_scikit_learn(positive: int) -> None:
    generator = random.Random(positive)
    labels = [generator.randrange(3) for _ in range(100)]
    guesses = [generator.choice([label, generator.randrange(3)]) for label in labels]
    precision, recall, f1, _ = precision_recall_fscore_support(
        labels, guesses, labels=[positive], average=None
    )
    expected = {
        "accuracy": accuracy_score(labels, guesses),
        "precision": precision[0],
        "recall": recall[0],
        "f1": f1[0],
    }
    assert class_scores(guesses, labels, positive) == pytest.approx(expected)


def test_a_class_that_is_never_predicted_scores_zero() -> None:
    assert class_scores([0, 0], [1, 0]) == {
        "accuracy": 0.5, "precision": 0.0, "recall": 0.0, "f1": 0.0
    }  # fmt: skip


def test_lists_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match="1 predictions for 2 labels"):
        class_scores([1], [1, 0])
    with pytest.raises(ValueError, match="one or more"):
        class_scores([], [])
