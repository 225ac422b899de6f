"""F1 of one class, and its best threshold, against scikit-learn."""

import math
import random

import pytest
from nestling.trainers.metrics.class_f1 import best_f1_threshold, class_scores
from sklearn.metrics import accuracy_score, f1_score, precision_recall_fscore_support


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


@pytest.mark.parametrize("seed", range(5))
def test_no_threshold_is_better(seed: int) -> None:
    """Against every threshold there is, with scores that come in ties."""
    generator = random.Random(seed)
    labels = [int(generator.random() < 0.2) for _ in range(60)]
    scores = [round(label + generator.gauss(0, 1), 1) for label in labels]
    threshold = best_f1_threshold(scores, labels)
    tried = {
        cut: f1_score(labels, [int(score > cut) for score in scores])
        for cut in [threshold, *scores, min(scores) - 1]
    }
    assert tried[threshold] == max(tried.values()) > 0
    # Half-way between two scores, as far from both as can be.
    assert threshold not in scores


def test_thresholds_at_the_edges() -> None:
    assert best_f1_threshold([1.0, 2.0], [1, 1]) == 0.0
    assert best_f1_threshold([1.0, 2.0], [0, 1]) == 1.5
    assert best_f1_threshold([2.0, 2.0], [0, 1]) == 1.0
    with pytest.raises(ValueError, match="none of 2 rows is positive"):
        best_f1_threshold([1.0, 2.0], [0, 0])
    for scores in ([1.0], [1.0, math.nan], [1.0, math.inf]):
        with pytest.raises(ValueError, match="finite score"):
            best_f1_threshold(scores, [1, 0])
