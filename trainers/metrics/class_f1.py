"""Accuracy, precision, recall and F1 of one class of a classification task."""

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
