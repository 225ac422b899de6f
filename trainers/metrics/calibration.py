"""How far a model's confidence is from its accuracy.

Source: Guo et al., On Calibration of Modern Neural Networks, https://arxiv.org/abs/1706.04599.
"""

import numpy as np
from numpy.typing import ArrayLike

DEFAULT_BINS = 15


class CalibrationBins:
    """Expected calibration error over a stream of predictions.

    Formula: `ECE = sum_m n_m / n * |accuracy_m - confidence_m|` over equally wide bins
    `((m - 1) / M, m / M]` of the confidence, the probability of the predicted class.

    Args:
        bins: M, >= 1.

    Raises:
        ValueError: If `bins` is below 1.
    """

    def __init__(self, bins: int = DEFAULT_BINS) -> None:
        """Start with empty bins."""
        if bins < 1:
            raise ValueError(f"calibration bins are {bins}, give 1 or more (15 is common)")
        self.bins = bins
        self.counts = np.zeros(bins)
        self.confidences = np.zeros(bins)
        self.hits = np.zeros(bins)

    def update(self, confidences: ArrayLike, is_correct: ArrayLike) -> None:
        """Add predictions.

        Args:
            confidences: `(n,)` in [0, 1].
            is_correct: `(n,)` booleans.

        Raises:
            ValueError: If shapes differ or a confidence is outside [0, 1].
        """
        confidence = np.asarray(confidences, dtype=np.float64)
        hit = np.asarray(is_correct, dtype=np.float64)
        if confidence.shape != hit.shape or confidence.ndim != 1:
            raise ValueError(
                f"confidences {confidence.shape} and is_correct {hit.shape} must have the same "
                "shape (n,)"
            )
        # Rounding may lift a probability of 1 by a few units in the last place.
        if confidence.size and not (confidence.min() >= 0 and confidence.max() <= 1 + 1e-6):
            raise ValueError("confidences must lie in [0, 1]; pass probabilities, not logits")
        index = np.clip(np.ceil(confidence * self.bins).astype(int) - 1, 0, self.bins - 1)
        self.counts += np.bincount(index, minlength=self.bins)
        self.confidences += np.bincount(index, weights=confidence, minlength=self.bins)
        self.hits += np.bincount(index, weights=hit, minlength=self.bins)

    def error(self) -> float:
        """Return the expected calibration error in [0, 1].

        Raises:
            ValueError: If nothing was added.
        """
        total = self.counts.sum()
        if total == 0:
            raise ValueError("no predictions were added, so there is no calibration error")
        return float(np.abs(self.hits - self.confidences).sum() / total)


def expected_calibration_error(
    confidences: ArrayLike, is_correct: ArrayLike, bins: int = DEFAULT_BINS
) -> float:
    """Return the expected calibration error of one array, see `CalibrationBins`."""
    stream = CalibrationBins(bins)
    stream.update(confidences, is_correct)
    return stream.error()


def negative_log_likelihood(probabilities: ArrayLike, labels: ArrayLike) -> float:
    """Return the mean of `-ln p[label]`, infinite where a label has probability 0.

    Args:
        probabilities: `(n, classes)`.
        labels: `(n,)` class indices.

    Raises:
        ValueError: If the shapes do not fit.
    """
    table, index = np.asarray(probabilities, dtype=np.float64), np.asarray(labels, dtype=int)
    if table.ndim != 2 or index.shape != table.shape[:1] or not index.size:
        raise ValueError(
            f"probabilities {table.shape} must be (n, classes) and labels {index.shape} (n,), "
            "with n >= 1"
        )
    with np.errstate(divide="ignore"):
        return float(-np.log(table[np.arange(index.size), index]).mean())
