"""Area under the trade-off curve (AUTC) between compute and accuracy, with fixed anchors.

Normalising accuracy or compute per model makes families incomparable: one that collapses at every
budget could score high. Here both axes are absolute and the two anchors belong to the study.
"""

import math
from collections.abc import Sequence


def upper_envelope(
    flops: Sequence[float], accuracies: Sequence[float]
) -> list[tuple[float, float]]:
    """Return the Pareto front: `(FLOPs, accuracy)`, both strictly rising.

    Args:
        flops: FLOPs of each model, > 0.
        accuracies: Accuracy of each model, in [0, 1].

    Raises:
        ValueError: If the lists are empty, of different length, or out of range.
    """
    if not flops or len(flops) != len(accuracies):
        raise ValueError(
            f"got {len(flops)} FLOP numbers and {len(accuracies)} accuracies; give one or more "
            "models and both numbers for each"
        )
    if not all(math.isfinite(value) and value > 0 for value in flops):
        raise ValueError(f"FLOPs must be finite and above 0, got {list(flops)}")
    if not all(0.0 <= value <= 1.0 for value in accuracies):
        raise ValueError(
            f"accuracies must lie in [0, 1], got {list(accuracies)}; divide percentages by 100"
        )
    front: list[tuple[float, float]] = []
    for cost, accuracy in sorted(zip(flops, accuracies, strict=True), key=lambda p: (p[0], -p[1])):
        if not front or accuracy > front[-1][1]:
            front.append((cost, accuracy))
    return front


def area_under_tradeoff_curve(
    flops: Sequence[float], accuracies: Sequence[float], anchors: tuple[float, float]
) -> float:
    """Average the best accuracy within a compute limit, over the logarithm of the limit.

    Formula: `AUTC = 1 / (ln F1 - ln F0) * integral from F0 to F1 of A*(F) d ln F`, where `A*(F)`
    is the highest accuracy of any model with at most F FLOPs, and 0 where there is none. `A*` is a
    staircase, so the integral is exact.

    Args:
        flops: FLOPs of each model.
        accuracies: Absolute accuracy of each model, in [0, 1].
        anchors: `(F0, F1)` with 0 < F0 < F1, the same for all families that are compared.

    Returns:
        A number in [0, 1].

    Raises:
        ValueError: If the anchors or the lists are out of range.
    """
    low, high = anchors
    if not (math.isfinite(high) and 0 < low < high):
        raise ValueError(
            f"AUTC anchors are {low} and {high}; they must be finite with 0 < F0 < F1, "
            "such as the FLOPs of the smallest and the largest budget of the study"
        )
    front = upper_envelope(flops, accuracies)
    ends = [cost for cost, _ in front[1:]] + [math.inf]
    area = 0.0
    for (start, accuracy), end in zip(front, ends, strict=True):
        left, right = max(start, low), min(end, high)
        if left < right:
            area += accuracy * math.log(right / left)
    return area / math.log(high / low)


def autc_ratio(
    curve: tuple[Sequence[float], Sequence[float]],
    reference: tuple[Sequence[float], Sequence[float]],
    anchors: tuple[float, float],
) -> float:
    """Divide the AUTC of one family by that of another at the same anchors.

    Args:
        curve: `(flops, accuracies)` of the family.
        reference: `(flops, accuracies)` to compare with, say separately trained models.
        anchors: `(F0, F1)` of both.

    Raises:
        ValueError: If the reference has no area, besides the errors of
            `area_under_tradeoff_curve`.
    """
    below = area_under_tradeoff_curve(*reference, anchors)
    if below == 0:
        raise ValueError(
            f"the reference curve has AUTC 0 between {anchors[0]} and {anchors[1]}; "
            "choose anchors that its models reach"
        )
    return area_under_tradeoff_curve(*curve, anchors) / below
