"""Rows of a benchmark file, for tables. Torch-free: whoever shows a result need not measure."""

from collections.abc import Mapping
from typing import Any

KIND = "benchmark"
SCHEMA_VERSION = 1


def summary_rows(content: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the summary as rows with equal keys, for a table on the terminal.

    What is measured is CPU time; a suite that has wall-clock time beside it gets a column more.

    Args:
        content: what `bench.bench_report.report` returned.
    """
    summary = content["summary"]
    columns = {name: name for name in ("predicted", "measured", "target", "met")}
    if any(isinstance(value, Mapping) and "wall_clock" in value for value in summary.values()):
        ends = {name: columns.pop(name) for name in ("target", "met")}
        columns |= {"wall_clock": "wall clock", **ends}
    return [
        {"what": name, **{title: value.get(column) for column, title in columns.items()}}
        if isinstance(value, Mapping)
        else {"what": name, **dict.fromkeys(columns.values()), "measured": value}
        for name, value in summary.items()
    ]


def case_rows(content: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the latencies, throughput, bandwidth and memory of the cases of a benchmark.

    Args:
        content: a benchmark file; suites that keep no cases give no rows.
    """
    rows = []
    for row in content.get("results", []):
        if "case" not in row:
            continue
        latency, peak = row.get("latency_ms", {}), row.get("peak_memory_bytes")
        rows.append(
            {
                "case": row["case"],
                **{f"{name} ms": latency.get(name) for name in ("p50", "p95", "p99")},
                "tokens/s": _whole(row.get("tokens_per_second")),
                "GB/s": row.get("gigabytes_per_second"),
                "of a copy": row.get("share_of_copy"),
                "peak MB": None if peak is None else peak / 1e6,
            }
        )
    return rows


def case_note(content: Mapping[str, Any]) -> str:
    """Return what the numbers of `case_rows` are: clock, iterations, kind of memory."""
    rows = [row for row in content["results"] if "case" in row]
    clocks = {f"{row['clock']} time" for row in rows if "clock" in row}
    counts = {str(row["latency_ms"]["iterations"]) for row in rows if "latency_ms" in row}
    kinds = {row["peak_memory_is"] for row in rows if "peak_memory_is" in row}
    return (
        f"{' or '.join(sorted(clocks))} of {' or '.join(sorted(counts))} iterations on "
        f"{content['threads']} threads; of a copy: beside a copy of as many bytes; peak MB: "
        f"{', '.join(sorted(kinds))}"
    )


def _whole(value: float | None) -> int | None:
    return None if value is None else round(value)
