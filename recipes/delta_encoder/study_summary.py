"""Means and intervals over the finished cells of a study."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from ..evaluation_file import read_evaluation
from ..ladder_plot import plot_ladder
from ..recipe_schema import DeltaEncoderRecipe
from .train import METRICS_FILE

SCHEMA_VERSION = 1
METHODS = ("nested", "post-hoc", "separate-smallest", "separate-middle", "separate-largest")


def summarise(
    folder: Path, recipe: DeltaEncoderRecipe, named: Mapping[str, str]
) -> dict[str, Any]:
    """Collect the cells in ``folder``.

    Args:
        folder: folder of the study; a cell is ``METHOD-SEED/metrics.json``.
        recipe: the nested recipe.
        named: budget of ``smallest``, ``middle`` and ``largest``.

    Returns:
        ``methods``: per method its seeds, and per budget the mean cross-entropy and accuracy with
        95 % t-intervals (None below 2 seeds); and what was held equal.
    """
    methods: dict[str, Any] = {}
    for method in METHODS:
        cells = _cells(folder, method)
        if cells:
            methods[method] = {"seeds": sorted(cells), "budgets": _budgets(method, cells, named)}
            if method in ("nested", "post-hoc"):
                summaries = [cell["summary"] for cell in cells.values()]
                methods[method]["autc"] = interval([s["autc"] for s in summaries])
                methods[method]["raw_violations"] = [
                    s["monotonicity"]["raw_violations"] for s in summaries
                ]
                methods[method]["alias_violations"] = [
                    s["monotonicity"]["alias_violations"] for s in summaries
                ]
    training = recipe.training
    return {
        "schema_version": SCHEMA_VERSION,
        "kind": "study",
        "family": recipe.family,
        "named_budgets": dict(named),
        "equal": {
            "max_steps": training.max_steps,
            "epochs": training.epochs,
            "rows_per_step": training.batch_size * training.gradient_accumulation_steps,
            "max_length": recipe.data.max_length,
            "lr": training.lr,
        },
        "methods": methods,
    }


def plot_study(folder: Path, seed: int, named: Mapping[str, str], output: Path) -> list[Path]:
    """Draw one seed: the nested ladder, post-hoc slices and separately trained models.

    Args:
        folder: folder of the study.
        seed: the seed to draw.
        named: budget of ``smallest``, ``middle`` and ``largest``.
        output: path whose suffix is replaced by .png and .svg.
    """
    nested, post_hoc = (_cells(folder, method)[seed] for method in ("nested", "post-hoc"))
    separate = [
        {**_cells(folder, f"separate-{shape}")[seed]["budgets"][0], "budget": budget}
        for shape, budget in named.items()
    ]
    references = {
        "post-hoc slicing": post_hoc,
        "trained separately": {**nested, "budgets": separate},
    }
    return plot_ladder(nested, output, references=references)


def _cells(folder: Path, method: str) -> dict[int, dict[str, Any]]:
    found = {}
    for path in folder.glob(f"{method}-*/{METRICS_FILE}"):
        seed = path.parent.name.removeprefix(f"{method}-")
        if seed.isdigit():
            found[int(seed)] = read_evaluation(path)
    return dict(sorted(found.items()))


def _budgets(
    method: str, cells: Mapping[int, Mapping[str, Any]], named: Mapping[str, str]
) -> dict[str, Any]:
    """Return budget -> measures; a separate model is named by the budget whose shape it has."""
    collected: dict[str, list[Mapping[str, Any]]] = {}
    for cell in cells.values():
        for entry in cell["budgets"]:
            budget = entry["budget"]
            if method.startswith("separate-"):
                budget = named[method.removeprefix("separate-")]
            collected.setdefault(budget, []).append(entry)
    return {
        budget: {
            "flops": entries[0]["flops"],
            "parameters": entries[0]["parameters"],
            "cross_entropy": interval([entry["cross_entropy"] for entry in entries]),
            "accuracy": interval([entry["accuracy"] for entry in entries]),
        }
        for budget, entries in collected.items()
    }


def interval(values: Sequence[float]) -> dict[str, Any]:
    """Return the mean and its 95 % Student t-interval; None where one value has no interval."""
    mean = fmean(values)
    if len(values) < 2:
        return {"mean": mean, "low": None, "high": None, "values": list(values)}
    from scipy.stats import t

    half = float(t.ppf(0.975, len(values) - 1)) * stdev(values) / len(values) ** 0.5
    return {"mean": mean, "low": mean - half, "high": mean + half, "values": list(values)}
