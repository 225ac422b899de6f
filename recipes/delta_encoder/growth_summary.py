"""From the runs of a growth study to means and paired differences."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from .study_summary import interval

FRESH, GROWN, FILLED, SORTED = "fresh", "grown", "grown-from-target", "sorted"
STARTS = (FRESH, GROWN, FILLED, SORTED)
# Starts that the others are compared with.
REFERENCES = (FRESH, GROWN)


class Run(NamedTuple):
    """What a finished run measured: evaluations of its model before and after training."""

    seed: int
    before: Mapping[str, Any]
    after: Mapping[str, Any]


# Start -> its runs, one a seed.
Results = Mapping[str, Sequence[Run]]


def summarise_starts(results: Results, named: Mapping[str, str]) -> dict[str, Any]:
    """Return the loss of every start at the named budgets.

    Args:
        results: what the runs measured.
        named: name -> budget.

    Returns:
        Start -> ``seeds``; ``before`` and ``after``, the cross-entropy of each named budget with
        95 % t-interval; and ``minus_fresh`` and ``minus_grown``, the differences of ``after`` to
        these starts, seed by seed; None for that start itself and without it.
    """
    before, after = (
        {start: _losses(runs, named, when) for start, runs in results.items()}
        for when in ("before", "after")
    )
    return {
        start: {
            "seeds": [run.seed for run in runs],
            "before": {name: interval(values) for name, values in before[start].items()},
            "after": {name: interval(values) for name, values in after[start].items()},
            **{f"minus_{other}": _less(after, start, other) for other in REFERENCES},
        }
        for start, runs in results.items()
    }


def _losses(runs: Sequence[Run], named: Mapping[str, str], when: str) -> dict[str, list[float]]:
    return {name: [loss_at(getattr(run, when), b) for run in runs] for name, b in named.items()}


def _less(
    after: Mapping[str, Mapping[str, Sequence[float]]], start: str, other: str
) -> dict[str, Any] | None:
    if start == other or other not in after:
        return None
    return {
        name: interval([a - b for a, b in zip(values, after[other][name], strict=True)])
        for name, values in after[start].items()
    }


def loss_at(evaluation: Mapping[str, Any], budget: str) -> float:
    """Return the cross-entropy of a budget."""
    [found] = [entry for entry in evaluation["budgets"] if entry["budget"] == budget]
    return float(found["cross_entropy"])
