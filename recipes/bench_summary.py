"""Rows of a benchmark file, for tables. Torch-free: whoever shows a result need not measure."""

from collections.abc import Mapping
from typing import Any

KIND = "benchmark"


def summary_rows(content: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the summary as rows with equal keys, for a table on the terminal.

    Args:
        content: what `bench.bench_report.report` returned.
    """
    columns = ("predicted", "measured", "target", "met")
    return [
        {"what": name, **{column: value.get(column) for column in columns}}
        if isinstance(value, Mapping)
        else {"what": name, **dict.fromkeys(columns), "measured": value}
        for name, value in content["summary"].items()
    ]
