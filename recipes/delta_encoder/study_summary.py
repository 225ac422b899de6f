"""Means and intervals over the finished cells of a study."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from ...trainers.metrics.autc import area_under_tradeoff_curve, autc_ratio
from ..cli_errors import DataError
from ..evaluation_file import predicted_tokens_of, read_evaluation
from ..ladder_plot import plot_ladder
from ..recipe_schema import DeltaEncoderRecipe
from .evaluation_summary import named_budgets
from .study_costs import training_costs
from .train import METRICS_FILE

SCHEMA_VERSION = 1
METHODS = ("nested", "post-hoc", "separate-smallest", "separate-middle", "separate-largest")
Cells = Mapping[str, Mapping[int, dict[str, Any]]]


def read_cells(folder: Path) -> dict[str, dict[int, dict[str, Any]]]:
    """Read the finished cells of a study: method -> seed -> evaluation.

    Args:
        folder: folder of the study; a cell is ``METHOD-SEED/metrics.json``.

    Raises:
        DataError: if cells were measured on other rows, or their FLOPs count other work.
    """
    cells: dict[str, dict[int, dict[str, Any]]] = {}
    measures: dict[tuple[Any, ...], str] = {}
    for method in METHODS:
        for path in folder.glob(f"{method}-*/{METRICS_FILE}"):
            seed = path.parent.name.removeprefix(f"{method}-")
            if seed.isdigit():
                cell = cells.setdefault(method, {})[int(seed)] = read_evaluation(path)
                measures.setdefault(_measure_of(cell), path.parent.name)
    if len(measures) > 1:
        raise DataError(
            f"cells of {folder} were measured in different ways and do not compare: "
            f"{' and '.join(measures.values())}; measure all of them again with --reevaluate"
        )
    return {method: dict(sorted(cells[method].items())) for method in METHODS if method in cells}


def _measure_of(cell: Mapping[str, Any]) -> tuple[Any, ...]:
    data = cell["data"]
    rows = data.get("rows"), data.get("calibration_rows", 0)
    return cell["sequence_length"], predicted_tokens_of(cell), *rows


def complete_seeds(cells: Cells) -> list[int]:
    """Return the seeds for which every method has a finished cell."""
    return sorted(set.intersection(*(set(cells.get(method, {})) for method in METHODS)))


def summarise(
    cells: Cells, recipe: DeltaEncoderRecipe, config: Any, counts: Mapping[str, int]
) -> dict[str, Any]:
    """Sum up the finished cells.

    Args:
        cells: what `read_cells` returns.
        recipe: the nested recipe.
        config: configuration of the nested model.
        counts: ``rows`` and ``tokens`` of the training split.

    Returns:
        ``methods``: per method its seeds, and per budget the mean cross-entropy and accuracy with
        95 % t-intervals (None below 2 seeds); ``comparison`` (see `compare`); ``training`` (see
        `training_costs`); and what was held equal.
    """
    named = named_budgets(config)
    methods: dict[str, Any] = {}
    for method, of_method in cells.items():
        budgets = _budgets(method, of_method, named)
        methods[method] = {"seeds": list(of_method), "budgets": budgets}
        if method in ("nested", "post-hoc"):
            summaries = [cell["summary"] for cell in of_method.values()]
            methods[method]["autc"] = interval([s["autc"] for s in summaries])
            for key in ("raw_violations", "alias_violations"):
                methods[method][key] = [s["monotonicity"][key] for s in summaries]
    section, seeds = recipe.training, list(cells.get("nested", {})) or [recipe.seed]
    return {
        "schema_version": SCHEMA_VERSION,
        "kind": "study",
        "family": recipe.family,
        "named_budgets": named,
        "equal": {
            "max_steps": section.max_steps,
            "epochs": section.epochs,
            "rows_per_step": section.batch_size * section.gradient_accumulation_steps,
            "max_length": recipe.data.max_length,
            "lr": section.lr,
        },
        "methods": methods,
        "comparison": compare(cells, named),
        "training": training_costs(recipe, config, counts, named, seeds),
    }


def compare(cells: Cells, named: Mapping[str, str]) -> dict[str, Any] | None:
    """Compare the nested model with the alternatives, seed by seed.

    Args:
        cells: finished cells.
        named: budget of ``smallest``, ``middle`` and ``largest``.

    Returns:
        None unless a seed has all cells; else, over these ``seeds``, means with intervals and the
        value of each seed: ``autc`` of ``nested``, ``post-hoc`` and ``separate`` (its three
        models) between the anchors of the nested cell; ``autc_ratio`` of nested over either (None
        where a reference is never right); ``gap_percent``, by how much the cross-entropy of the
        nested model lies above that of the model trained alone.
    """
    seeds = complete_seeds(cells)
    if not seeds:
        return None
    autc: dict[str, list[float]] = {"nested": [], "post-hoc": [], "separate": []}
    ratios: dict[str, list[float]] = {"post-hoc": [], "separate": []}
    gaps: dict[str, list[float]] = {name: [] for name in named}
    for seed in seeds:
        nested = cells["nested"][seed]
        alone = {name: cells[f"separate-{name}"][seed]["budgets"][0] for name in named}
        curves = {
            "nested": _curve(nested["budgets"]),
            "post-hoc": _curve(cells["post-hoc"][seed]["budgets"]),
            "separate": _curve(list(alone.values())),
        }
        anchors = tuple(nested["summary"]["autc_anchors"])
        for name, curve in curves.items():
            autc[name].append(area_under_tradeoff_curve(*curve, anchors))
        for name, of_seed in ratios.items():
            if autc[name][-1] > 0:
                of_seed.append(autc_ratio(curves["nested"], curves[name], anchors))
        losses = {entry["budget"]: entry["cross_entropy"] for entry in nested["budgets"]}
        for name, budget in named.items():
            gaps[name].append(100 * (losses[budget] / alone[name]["cross_entropy"] - 1))
    return {
        "seeds": seeds,
        "autc": {name: interval(values) for name, values in autc.items()},
        "autc_ratio": {
            name: interval(values) if len(values) == len(seeds) else None
            for name, values in ratios.items()
        },
        "gap_percent": {name: interval(values) for name, values in gaps.items()},
    }


def _curve(entries: Sequence[Mapping[str, Any]]) -> tuple[list[float], list[float]]:
    return [entry["flops"] for entry in entries], [entry["accuracy"] for entry in entries]


def plot_study(cells: Cells, seed: int, named: Mapping[str, str], output: Path) -> list[Path]:
    """Draw one seed: the nested ladder, post-hoc slices and separately trained models.

    Args:
        cells: finished cells, all methods for ``seed``.
        seed: the seed to draw.
        named: budget of ``smallest``, ``middle`` and ``largest``.
        output: path whose suffix is replaced by .png and .svg.
    """
    nested = cells["nested"][seed]
    separate = [
        {**cells[f"separate-{shape}"][seed]["budgets"][0], "budget": budget}
        for shape, budget in named.items()
    ]
    references = {
        "post-hoc slicing": cells["post-hoc"][seed],
        "trained separately": {**nested, "budgets": separate},
    }
    return plot_ladder(nested, output, references=references)


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
