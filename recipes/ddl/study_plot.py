"""The plot of a study: what each method gains over the baseline, with its interval."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..plot_style import OURS, POINTS, plot_figure, save_plot
from .study_methods import BASELINE


def plot_study(summary: Mapping[str, Any], output: Path) -> list[Path]:
    """Draw the paired difference of every method to the baseline; write PNG and SVG.

    A dot is the mean over the seeds, a bar its 95 % interval, small marks are the seeds. Left of
    the line is better than the baseline.

    Args:
        summary: a study file.
        output: path whose suffix is replaced by .png and .svg.
    """
    found = {
        name: method["minus_baseline"]
        for name, method in summary["methods"].items()
        if method["minus_baseline"] and name != BASELINE and "@" not in name
    }
    if not found:
        return []
    names = sorted(found, key=lambda name: -found[name]["mean"])
    with plot_figure() as (figure, axes):
        for place, name in enumerate(names):
            one = found[name]
            if one["low"] is not None:
                axes.plot([one["low"], one["high"]], [place, place], color=OURS, lw=1.6)
            axes.plot(one["values"], [place] * len(one["values"]), "|", color=POINTS, ms=9)
            axes.plot([one["mean"]], [place], "o", color=OURS, ms=5)
        axes.axvline(0.0, color="#666666", lw=0.9)
        axes.set_yticks(range(len(names)), names)
        axes.set_xlabel("cross-entropy minus that of the baseline, nats per token, equal tokens")
        return save_plot(figure, output)
