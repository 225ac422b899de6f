"""The finished cells of a study on disk: TABLE/METHOD-SEED/metrics.json."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..cli_errors import DataError
from ..evaluation_file import predicted_tokens_of, read_evaluation
from .train import METRICS_FILE

TOKENS, COMPUTE, ABLATIONS = "tokens", "compute", "ablations"
TABLES = (TOKENS, COMPUTE, ABLATIONS)
# Table -> method -> seed -> evaluation.
Cells = Mapping[str, Mapping[str, Mapping[int, dict[str, Any]]]]


def cell_folder(study: Path, table: str, method: str, seed: int) -> Path:
    """Return the folder of a cell."""
    return study / table / f"{method}-{seed}"


def read_cells(study: Path) -> dict[str, dict[str, dict[int, dict[str, Any]]]]:
    """Read the finished cells of a study: table -> method -> seed -> evaluation.

    Raises:
        DataError: if cells were measured on other rows, or their FLOPs count other work.
    """
    cells: dict[str, dict[str, dict[int, dict[str, Any]]]] = {}
    measures: dict[tuple[Any, ...], str] = {}
    for table in TABLES:
        for path in sorted((study / table).glob(f"*/{METRICS_FILE}")):
            method, _, seed = path.parent.name.rpartition("-")
            if not method or not seed.isdigit():
                continue
            cell = read_evaluation(path)
            cells.setdefault(table, {}).setdefault(method, {})[int(seed)] = cell
            measures.setdefault(_measure_of(cell), f"{table}/{path.parent.name}")
    if len(measures) > 1:
        raise DataError(
            f"cells of {study} were measured in different ways and do not compare: "
            f"{' and '.join(measures.values())}; measure all of them again with --reevaluate"
        )
    return cells


def _measure_of(cell: Mapping[str, Any]) -> tuple[Any, ...]:
    data = cell["data"]
    rows = data.get("rows"), data.get("calibration_rows", 0)
    return cell["sequence_length"], predicted_tokens_of(cell), *rows
