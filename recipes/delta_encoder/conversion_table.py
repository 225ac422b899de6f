"""The result of `conversion_study` as Markdown."""

from collections.abc import Mapping
from typing import Any

from .study_tables import difference, markdown_rows, measure


def conversion_table(study: Mapping[str, Any]) -> str:
    """Return what each form keeps of a dense delta, before and after its training."""
    largest, steps = study["largest"], study["steps"]
    rows = [
        [
            "delta",
            "pack, KB",
            "atoms, KB",
            "weights held",
            f"{largest}, converted",
            "recovered",
            f"after {steps} steps",
            "recovered",
            f"fresh, after {steps} steps",
            "recovered",
            "converted minus fresh",
        ]
    ]
    for form, entry in study["forms"].items():
        converted, fresh = entry["converted"], entry["fresh"]
        rows.append(
            [
                form,
                f"{entry['bytes']['pack'] / 1000:.1f}",
                f"{entry['bytes']['atoms'] / 1000:.1f}",
                measure(entry["held"], 2),
                measure(converted["before"]),
                measure(converted["recovered_before"], 2),
                measure(converted["after"]),
                measure(converted["recovered_after"], 2),
                measure(fresh["after"]),
                measure(fresh["recovered_after"], 2),
                difference(entry["converted_minus_fresh"]),
            ]
        )
    dense = study["dense"]
    note = (
        f"Cross-entropy in nats, mean and 95 % interval over {len(study['seeds'])} models with a "
        f"dense delta of {dense['bytes'] / 1000:.1f} KB: {measure(dense['base'])} at the base "
        f"slice {study['base']}, which no conversion and no training here changes, and "
        f"{measure(dense['largest'])} at {largest}. Recovered: the share of that difference, by "
        "model. Weights held: share of the squared norm of each matrix, mean of the five kinds. "
        "Fresh: factors drawn anew around the same base slice. Differences by model, bold where "
        "the interval excludes 0."
    )
    return "\n".join([*markdown_rows(rows), "", note]) + "\n"
