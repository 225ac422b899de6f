"""Accuracy, precision, recall and F1 of one class, and the threshold at which F1 is best."""

import math
from collections.abc import Sequence


def class_scores(
    predicted: Sequence[int], labels: Sequence[int], positive: int = 1
) -> dict[str, float]:
    """Score predictions against labels.

    Formula: with true positives T, predicted positives P and labelled positives N,
    `precision = T / P`, `recall = T / N`, `f1 = 2 T / (P + N)`; 0 where the denominator is 0.

    Args:
        predicted: Predicted classes.
        labels: True classes, in the same order.
        positive: The class that precision, recall and F1 are of.

    Raises:
        ValueError: If there are no labels, or more or fewer predictions.
    """
    if len(predicted) != len(labels) or not labels:
        raise ValueError(
            f"{len(predicted)} predictions for {len(labels)} labels; give one prediction for each "
            "of one or more labels"
        )
    pairs = list(zip(predicted, labels, strict=True))
    true = sum(guess == label == positive for guess, label in pairs)
    found = sum(guess == positive for guess in predicted)
    wanted = sum(label == positive for label in labels)
    return {
        "accuracy": sum(guess == label for guess, label in pairs) / len(pairs),
        "precision": true / found if found else 0.0,
        "recall": true / wanted if wanted else 0.0,
        "f1": 2 * true / (found + wanted) if found + wanted else 0.0,
    }


def best_f1_threshold(scores: Sequence[float], labels: Sequence[int]) -> float:
    """Return the threshold with which the rows scored above it have the best F1.

    Of several such thresholds the highest, half-way between the scores around it. Choose it on
    other rows than those it is measured on.

    Args:
        scores: Higher for rows that are more likely positive.
        labels: 1 for the positive rows, in the same order.

    Raises:
        ValueError: If no row is positive, there are more or fewer scores than labels, or a score is
            not finite.
    """
    if 1 not in labels:
        raise ValueError(f"none of {len(labels)} rows is positive; no threshold has an F1 above 0")
    if len(scores) != len(labels) or not all(map(math.isfinite, scores)):
        raise ValueError(
            f"{len(scores)} scores for {len(labels)} labels; give one finite score for each"
        )
    ordered = sorted(zip(scores, labels, strict=True), reverse=True)
    wanted = sum(label == 1 for label in labels)
    best, threshold, true = 0.0, 0.0, 0
    for found, (score, label) in enumerate(ordered, start=1):
        true += label == 1
        after = ordered[found][0] if found < len(ordered) else score - 2.0
        # Rows of equal scores are on the same side.
        if after < score and 2 * true / (found + wanted) > best:
            best, threshold = 2 * true / (found + wanted), (score + after) / 2
    return threshold
