"""The result of `growth_study` as Markdown."""

from collections.abc import Mapping
from typing import Any

from .study_tables import difference, markdown_rows, measure

STARTS = {
    "fresh": "fresh, random weights",
    "grown": "grown: new units write zeros",
    "grown-from-target": "grown, filled from the target",
    "sorted": "target, units sorted",
}
TIMES = ("before", "after")


def growth_table(study: Mapping[str, Any]) -> str:
    """Return the loss at the named budgets before and after training, by start."""
    named = study["named_budgets"]
    heads = [f"{name} {budget}, {when}" for name, budget in named.items() for when in TIMES]
    rows = [["start", *heads, *(f"{name} minus grown" for name in named)]]
    for start, entry in study["starts"].items():
        less = entry["minus_grown"] or {}
        rows.append(
            [
                STARTS[start],
                *(measure(entry[when][name]) for name in named for when in TIMES),
                *(difference(less.get(name)) for name in named),
            ]
        )
    seeds = max(len(entry["seeds"]) for entry in study["starts"].values())
    note = (
        f"Cross-entropy in nats before and after {study['steps']:,} steps of "
        f"{study['rows_per_step']} rows, mean and 95 % interval over {seeds} seeds, from "
        f"{study['checkpoints']}, whose own training is not counted. Differences after training to "
        "the grown start by seed, bold where the interval excludes 0, not corrected for the number "
        "of intervals."
    )
    return "\n".join([*markdown_rows(rows), "", note]) + "\n"
