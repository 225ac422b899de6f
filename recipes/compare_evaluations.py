"""Compare finished evaluations. Torch-free.

They keep no loss per row, so differences between single runs are unpaired and their intervals
wider than those of `nestling compare --artifact`. Evaluations of other rows are not compared.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .cli_errors import DataError
from .compared_runs import curves_of, method_keys, method_names, origin_of
from .comparison_file import BITS, NATS, comparison, token_ratio_notes, training_token_notes
from .comparison_statistics import MeasuredRun, compare_runs

# Half the width of a 95 % interval, in standard errors.
HALF_WIDTH = 1.959964


def compare_evaluations(
    files: Sequence[Path], evaluations: Sequence[Mapping[str, Any]], budget: str
) -> dict[str, Any]:
    """Compare evaluations at one budget each.

    Args:
        files: Where they were read, beside the recipes of their runs.
        evaluations: Their contents.
        budget: Text, or smallest, middle or largest.

    Raises:
        DataError: If they are of other rows, or lack the budget.
    """
    rows = [_data_of(evaluation) for evaluation in evaluations]
    entries = [
        _budget_entry(evaluation, file, budget)
        for evaluation, file in zip(evaluations, files, strict=True)
    ]
    measure, key, scales = _measure(files, rows, entries)
    origins = [origin_of(file) for file in files]
    names = [str(file) for file in files]
    # One model with two upgrade packs is two models.
    parts = [
        f"{entry['budget']} {(evaluation.get('delta_pack') or {}).get('file', '')}"
        for entry, evaluation in zip(entries, evaluations, strict=True)
    ]
    keys = method_keys(origins, parts, names)
    labels = [
        origin.label or str(evaluation.get("family"))
        for origin, evaluation in zip(origins, evaluations, strict=True)
    ]
    methods = method_names(labels, keys, names)
    runs = [
        MeasuredRun(name, method, origin.seed, entry[key], None, _standard_error(entry, scale))
        for name, method, origin, entry, scale in zip(
            names, methods, origins, entries, scales, strict=True
        )
    ]
    models = [
        {
            "name": run.name,
            "method": run.method,
            "seed": run.seed,
            "budget": entry["budget"],
            "parameters": entry.get("parameters"),
            "training_tokens": origin.training_tokens,
            "cross_entropy": entry["cross_entropy"],
            "bits_per_byte": entry.get("bits_per_byte"),
            "settings": None if origin.settings is None else dict(origin.settings),
            "spectrum": evaluation.get("spectrum"),
            "curves": curves_of(origin.folder),
        }
        for run, origin, entry, evaluation in zip(runs, origins, entries, evaluations, strict=True)
    ]
    ratios = {
        name: entry.get("delta_token_share", evaluation.get("delta_token_ratio"))
        for name, entry, evaluation in zip(names, entries, evaluations, strict=True)
    }
    notes = [*training_token_notes(models), *token_ratio_notes(ratios)]
    return comparison(measure, rows[0], models, compare_runs(runs), notes)


def _data_of(evaluation: Mapping[str, Any]) -> dict[str, Any]:
    """Return what says which rows an evaluation measured."""
    known = ("source", "sha256", "counts", "split", "rows", "predicted_tokens", "mask_seed")
    return {name: evaluation["data"][name] for name in known if name in evaluation["data"]}


def _measure(
    files: Sequence[Path], rows: Sequence[dict[str, Any]], entries: Sequence[dict[str, Any]]
) -> tuple[str, str, list[float]]:
    """Return measure, its key in an entry, and for each entry one nat per token in that measure."""
    differing = [index for index, data in enumerate(rows) if data != rows[0]]
    if not differing:
        return NATS, "cross_entropy", [1.0] * len(entries)
    # Other tokenizers number other tokens of the same text, of which the bytes are the same.
    texts = [
        json.dumps([data.get("source"), (data.get("counts") or {}).get("bytes")], sort_keys=True)
        for data in rows
    ]
    has_bytes = all(entry.get("bits_per_byte") for entry in entries)
    if has_bytes and len(set(texts)) == 1:
        scales = [entry["bits_per_byte"] / entry["cross_entropy"] for entry in entries]
        return BITS, "bits_per_byte", scales
    raise DataError(
        f"{files[differing[0]]} was measured on other data than {files[0]}: losses of different "
        "rows do not compare; evaluate both with the same data.path, or give the models with "
        "--artifact and a --data-file"
    )


def _budget_entry(evaluation: Mapping[str, Any], file: Path, budget: str) -> dict[str, Any]:
    wanted = evaluation["summary"].get(budget, budget)
    for entry in evaluation["budgets"]:
        if entry["budget"] == wanted:
            if entry["cross_entropy"] is None:
                raise DataError(
                    f"{file}: the loss of budget {wanted} is not finite; evaluate an earlier "
                    "checkpoint"
                )
            return dict(entry)
    measured = ", ".join(str(entry["budget"]) for entry in evaluation["budgets"])
    raise DataError(f"{file} has no budget {wanted}; measured: {measured}")


def _standard_error(entry: Mapping[str, Any], scale: float) -> float | None:
    interval = entry.get("cross_entropy_ci")
    if not interval or None in interval:
        return None
    return scale * (interval[1] - interval[0]) / (2 * HALF_WIDTH)
