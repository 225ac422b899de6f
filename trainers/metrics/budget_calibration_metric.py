"""Calibration as an `evaluate` metric: `evaluate.load(".../budget_calibration_metric.py")`."""

from typing import Any

import datasets
import evaluate
import numpy as np

from .calibration import expected_calibration_error, negative_log_likelihood

_DESCRIPTION = "Expected calibration error, negative log-likelihood and accuracy of one budget."
_INPUTS = """
Args:
    predictions (list of list of float): class probabilities of each example.
    references (list of int): the label of each example.
    bins (int): equally wide confidence bins.
Returns:
    ece, nll, accuracy.
"""


class BudgetCalibration(evaluate.Metric):
    """See `calibration`."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation="",
            inputs_description=_INPUTS,
            features=datasets.Features(
                {
                    "predictions": datasets.Sequence(datasets.Value("float64")),
                    "references": datasets.Value("int64"),
                }
            ),
        )

    def _compute(
        self, predictions: list[list[float]], references: list[int], bins: int = 15
    ) -> dict[str, Any]:
        probabilities, labels = np.asarray(predictions), np.asarray(references)
        is_correct = probabilities.argmax(axis=1) == labels
        return {
            "ece": expected_calibration_error(probabilities.max(axis=1), is_correct, bins),
            "nll": negative_log_likelihood(probabilities, labels),
            "accuracy": float(is_correct.mean()),
        }
