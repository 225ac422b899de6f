"""AUTC as an `evaluate` metric: `evaluate.load(".../metrics/autc_metric.py")`."""

from typing import Any

import datasets
import evaluate

from .autc import area_under_tradeoff_curve

_DESCRIPTION = "Mean over ln(FLOPs) of the best accuracy within a compute limit, fixed anchors."
_INPUTS = """
Args:
    predictions (list of float): accuracy of each model, in [0, 1].
    references (list of float): FLOPs of each model.
    anchors (pair of float): F0 < F1, the same for all families that are compared.
Returns:
    autc: a number in [0, 1].
"""


class AreaUnderTradeoffCurve(evaluate.Metric):
    """See `autc.area_under_tradeoff_curve`."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation="",
            inputs_description=_INPUTS,
            features=datasets.Features(
                {"predictions": datasets.Value("float64"), "references": datasets.Value("float64")}
            ),
        )

    def _compute(
        self, predictions: list[float], references: list[float], anchors: tuple[float, float]
    ) -> dict[str, Any]:
        low, high = anchors
        return {"autc": area_under_tradeoff_curve(references, predictions, (low, high))}
