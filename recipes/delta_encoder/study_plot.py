"""The curves of a study: cross-entropy against FLOPs, mean over the seeds, one line per method."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..ladder_plot import QUALITIES, pareto_front
from ..plot_style import OURS, columns, cycle_of, label_ticks, plot_figure, save_plot
from .study_cells import TOKENS
from .study_methods import METHODS, NESTED, SEPARATE
from .study_methods import OURS as VARIANTS


def plot_study(
    summary: Mapping[str, Any], output: Path, table: str = TOKENS, quality: str = "cross_entropy"
) -> list[Path]:
    """Draw the best mean of each method within a compute limit; write PNG and SVG.

    A filled mark is a budget that the method trains, a hollow one a slice that it does not.
    Variants of ours lie too close to it to be told apart here; they are in the tables.

    Args:
        summary: a study file.
        output: path whose suffix is replaced by .png and .svg.
        table: which table of the study.
        quality: ``cross_entropy`` or ``accuracy``.

    Returns:
        The written files; none where the table has no cell.
    """
    methods = summary["tables"].get(table, {}).get("methods", {})
    if not methods:
        return []
    rivals = [name for name in methods if name not in VARIANTS]
    looks = dict(zip(rivals, cycle_of(len(rivals)), strict=True))
    costs: list[float] = []
    with plot_figure() as (figure, axes):
        for name in (*rivals, NESTED):
            if name not in methods:
                continue
            colour, marker = looks.get(name, (OURS, "o"))
            budgets = methods[name]["budgets"]
            points = {b: (e["flops"], e[quality]["mean"]) for b, e in budgets.items()}
            costs += [cost for cost, _ in points.values()]
            front = pareto_front(list(points.values()), quality == "accuracy")
            is_ours = name == NESTED
            trained = [b for b, p in points.items() if b in methods[name]["trained_budgets"]]
            filled = [points[b] for b in trained if points[b] in front]
            hollow = [point for point in front if point not in filled]
            axes.plot(
                *columns(front), color=colour, lw=1.8 if is_ours else 1.1,
                ls="-" if is_ours else "--",
            )  # fmt: skip
            axes.plot(
                *columns(filled), color=colour, marker=marker, ms=4.5, ls="", label=title_of(name)
            )
            axes.plot(
                *columns(hollow), color=colour, marker=marker, ms=4.5, ls="",
                markerfacecolor="white",
            )  # fmt: skip
        axes.set_xscale("log")
        label_ticks(axes, costs)
        axes.set_ylabel(QUALITIES[quality])
        axes.set_xlabel("FLOPs per sequence, head included")
        axes.legend(loc="lower right" if quality == "accuracy" else "upper right", fontsize=8)
        return save_plot(figure, output)


def title_of(method: str) -> str:
    """Return how a method is called in tables and plots."""
    if method == SEPARATE:
        return "separate models"
    return METHODS[method].title if method in METHODS else method
