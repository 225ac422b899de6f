"""The budget ladder as rows, Markdown and CSV, all from the evaluation JSON."""

import csv
import io
from collections.abc import Mapping
from typing import Any

Row = dict[str, str | int | float | None]


# What fits 100 columns of a terminal; perplexity and parameters follow from what is shown.
CONSOLE_COLUMNS = (
    "budget", "cross-entropy", "accuracy", "ECE", "ECE at T", "MFLOPs", "MB", "ms", "safe alias"
)  # fmt: skip


def console_rows(evaluation: Mapping[str, Any]) -> list[Row]:
    """Return the columns of `ladder_rows` that a terminal has room for."""
    rows = []
    for row in ladder_rows(evaluation):
        shown = {name: row[name] for name in CONSOLE_COLUMNS if name in row}
        for name in ("ECE", "ECE at T"):
            if isinstance(value := shown.get(name), float):
                shown[name] = round(value, 4)
        rows.append(shown)
    return rows


def ladder_rows(evaluation: Mapping[str, Any]) -> list[Row]:
    """Return one row per budget, the cheapest first; a column without any value is left out.

    ``ECE at T`` is the calibration error on the evaluation rows after dividing the logits by the
    temperature fitted to the calibration rows.
    """
    rows = [
        _row(entry) for entry in sorted(evaluation["budgets"], key=lambda entry: entry["flops"])
    ]
    empty = {name for name in rows[0] if all(row[name] is None for row in rows)}
    return [{name: value for name, value in row.items() if name not in empty} for row in rows]


def notes(evaluation: Mapping[str, Any]) -> list[str]:
    """Return the lines below the table: on how many tokens the delta ran, whose, and its bytes."""
    lines = []
    if pack := evaluation.get("delta_pack"):
        lines.append(f"Delta of the upgrade pack {pack['file']} (SHA-256 {pack['sha256']}).")
    if (ratio := evaluation.get("delta_token_ratio")) is not None:
        lines.append(f"Delta on {100 * ratio:g} % of the tokens of each row.")
    if (threshold := evaluation.get("delta_token_threshold")) is not None:
        every = [entry.get("delta_token_share") for entry in evaluation["budgets"]]
        shares = sorted({f"{100 * share:.3g}" for share in every if share is not None}, key=float)
        spread = " to ".join(dict.fromkeys([shares[0], shares[-1]])) if shares else "0"
        lines.append(
            f"Delta on the tokens that score above {threshold:g}, {spread} % of all by budget; "
            "FLOPs and times are those of the measured share."
        )
    if delta := evaluation.get("delta"):
        names = {"pack": "upgrade pack", "atom": "atoms", "dense": "dense"}
        bytes_of = {names[name]: delta[f"{name}_bytes"] for name in names}
        each = ", ".join(f"{name} {count:,} bytes" for name, count in bytes_of.items())
        lines.append(f"Delta outside the base slice ({delta['kind']}): {each}.")
    return lines


def _row(entry: Mapping[str, Any]) -> Row:
    latency = entry["latency_ms"]
    alias = entry["safe_alias"]
    return {
        "budget": entry["budget"],
        "cross-entropy": entry["cross_entropy"],
        "perplexity": entry["perplexity"],
        "accuracy": entry["accuracy"],
        "ECE": entry["ece"],
        "ECE at T": entry.get("ece_after_temperature"),
        "parameters": entry["parameters"],
        "delta share": entry.get("delta_token_share"),
        "MFLOPs": entry["flops"] / 1e6,
        "MB": entry["bytes"] / 1e6,
        "ms": None if latency is None else latency["median"],
        "safe alias": "itself" if alias == entry["budget"] else alias,
    }


def markdown_table(evaluation: Mapping[str, Any]) -> str:
    """Return a GitHub table and its `notes`; numbers are rounded, the JSON holds them in full."""
    rows = ladder_rows(evaluation)
    names = list(rows[0])
    align = ["---:" if _is_number(rows[0][name]) else "---" for name in names]
    lines = [names, align, *([format_value(row[name]) for name in names] for row in rows)]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"
    return table + "".join(f"\n{note}\n" for note in notes(evaluation))


def csv_table(evaluation: Mapping[str, Any]) -> str:
    """Return CSV with the numbers in full."""
    rows = ladder_rows(evaluation)
    stream = io.StringIO()
    writer = csv.DictWriter(stream, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue()


def format_value(value: str | int | float | None) -> str:
    """Print a cell: four significant digits, thousands separated, ``-`` for nothing."""
    if value is None:
        return "-"
    if isinstance(value, str):
        return value
    if isinstance(value, int) or abs(value) >= 1e4:
        return f"{value:,.0f}"
    return f"{value:#.4g}".rstrip(".")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float)
