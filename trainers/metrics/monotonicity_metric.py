"""Monotonicity as an `evaluate` metric: `evaluate.load(".../metrics/monotonicity_metric.py")`."""

from typing import Any

import datasets
import evaluate
import numpy as np

from .monotonicity import bootstrap_means, find_violations

_DESCRIPTION = "Nested pairs whose larger model has the higher loss, with a paired bootstrap."
_INPUTS = """
Args:
    predictions (list of list of float): for each row, its summed loss under each model.
    references (list of int): predicted tokens of each row.
    pairs (list of pairs of int): (contained model, containing model).
    samples (int): bootstrap resamples of the rows.
    seed (int): seed of the resamples.
Returns:
    pairs, raw_violations, significant_violations.
"""


class BudgetMonotonicity(evaluate.Metric):
    """See `monotonicity.find_violations`."""

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
        self,
        predictions: list[list[float]],
        references: list[int],
        pairs: list[tuple[int, int]],
        samples: int = 1000,
        seed: int = 0,
    ) -> dict[str, Any]:
        losses = np.asarray(predictions, dtype=np.float64).T
        tokens = np.asarray(references, dtype=np.float64)
        means = bootstrap_means(losses, tokens, samples, seed)
        report = find_violations(losses, tokens, pairs, means)
        return {
            "pairs": report.pairs,
            "raw_violations": report.raw_violations,
            "significant_violations": report.significant_violations,
        }
