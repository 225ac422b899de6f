"""The quality-against-compute plot of a budget ladder, drawn from evaluation files only."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .cli_errors import UsageError
from .evaluation_file import describe_flops, read_evaluation
from .label_placement import place_labels
from .plot_style import OURS, POINTS, Point, columns, cycle_of, label_ticks, plot_figure, save_plot

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Source = str | os.PathLike[str] | Mapping[str, Any]

QUALITIES = {
    "cross_entropy": "Cross-entropy (nats per masked token)",
    "perplexity": "Perplexity of masked tokens",
    "accuracy": "Accuracy on masked tokens",
}
HIGHER_IS_BETTER = ("accuracy",)


def plot_ladder(
    evaluation: Source,
    output: str | os.PathLike[str],
    *,
    quality: str = "cross_entropy",
    references: Mapping[str, Source] | None = None,
    title: str | None = None,
) -> list[Path]:
    """Draw every budget, the Pareto front and optional reference curves; write PNG and SVG.

    The same input gives the same bytes.

    Args:
        evaluation: evaluation file or its content.
        output: path whose suffix is replaced by .png and .svg.
        quality: ``cross_entropy``, ``perplexity`` or ``accuracy``.
        references: label -> evaluation file, such as ``"post-hoc slicing"`` or
            ``"trained separately"``.
        title: heading; None names the family and the data.

    Returns:
        The written files.

    Raises:
        UsageError: for an unknown quality.
        DataError: if a file is no evaluation.
    """
    if quality not in QUALITIES:
        raise UsageError(f"quality {quality!r} must be one of {', '.join(QUALITIES)}")
    content = read_evaluation(evaluation)
    others = {name: read_evaluation(source) for name, source in (references or {}).items()}
    with plot_figure() as (figure, axes):
        _draw(axes, content, others, quality)
        axes.set_title(_title(content) if title is None else title, loc="left", fontsize=10)
        figure.draw_without_rendering()
        place_labels(axes, _named_points(content, quality), _all_points(content, others, quality))
        return save_plot(figure, Path(output))


def pareto_front(points: Sequence[Point], higher_is_better: bool = False) -> list[Point]:
    """Return the points that no cheaper point matches or beats, the cheapest first."""
    sign = -1.0 if higher_is_better else 1.0
    front: list[Point] = []
    for cost, value in sorted(points, key=lambda point: (point[0], sign * point[1])):
        if not front or sign * value < sign * front[-1][1]:
            front.append((cost, value))
    return front


def points_of(evaluation: Mapping[str, Any], quality: str) -> list[Point]:
    """Return (FLOPs, quality) of every budget whose quality is a finite number."""
    entries = evaluation["budgets"]
    return [(e["flops"], e[quality]) for e in entries if e[quality] is not None]


def _draw(
    axes: "Axes", content: dict[str, Any], others: dict[str, dict[str, Any]], quality: str
) -> None:
    higher = quality in HIGHER_IS_BETTER
    points = points_of(content, quality)
    for (name, other), (colour, marker) in zip(others.items(), cycle_of(len(others)), strict=True):
        curve = pareto_front(points_of(other, quality), higher)
        axes.plot(*columns(curve), color=colour, marker=marker, ms=4, lw=1.2, ls="--", label=name)
    axes.plot(*columns(points), color=POINTS, marker="o", ms=4, ls="", label="every budget")
    front = columns(pareto_front(points, higher))
    axes.plot(*front, color=OURS, marker="o", ms=4.5, lw=1.6, label="Pareto front")
    axes.plot(
        *columns([point for point, _ in _named_points(content, quality)]),
        marker="o", ms=8, ls="", markerfacecolor="none", markeredgecolor=OURS, mew=1.2,
    )  # fmt: skip
    axes.set_xscale("log")
    label_ticks(axes, [cost for cost, _ in _all_points(content, others, quality)])
    axes.set_ylabel(QUALITIES[quality])
    axes.set_xlabel(f"FLOPs per {describe_flops(content)}")
    axes.margins(x=0.08, y=0.12)
    axes.legend(loc="lower right" if higher else "upper right")


def _named_points(content: Mapping[str, Any], quality: str) -> list[tuple[Point, str]]:
    """Return the points of smallest, middle and largest with their labels."""
    by_budget = {entry["budget"]: entry for entry in content["budgets"]}
    labels: dict[str, list[str]] = {}
    for name in ("smallest", "middle", "largest"):
        labels.setdefault(content["summary"][name], []).append(name)
    return [
        ((by_budget[b]["flops"], by_budget[b][quality]), f"{' = '.join(names)}\n{b}")
        for b, names in labels.items()
        if b in by_budget and by_budget[b][quality] is not None
    ]


def _all_points(
    content: dict[str, Any], others: dict[str, dict[str, Any]], quality: str
) -> list[Point]:
    return [point for one in (content, *others.values()) for point in points_of(one, quality)]


def _title(content: Mapping[str, Any]) -> str:
    family = str(content["family"]).replace("_", " ")
    data = content["data"]
    name = data.get("name") or data.get("path")
    return f"{family}: {len(content['budgets'])} budgets" + (f" on {name}" if name else "")
