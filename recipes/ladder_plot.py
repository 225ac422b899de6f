"""The quality-against-compute plot of a budget ladder, drawn from evaluation files only."""

import os
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .cli_errors import UsageError
from .evaluation_file import describe_flops, read_evaluation
from .label_placement import place_labels
from .whole_file import write_whole

if TYPE_CHECKING:
    from collections.abc import Iterator

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Source = str | os.PathLike[str] | Mapping[str, Any]
Point = tuple[float, float]

QUALITIES = {
    "cross_entropy": "Cross-entropy (nats per masked token)",
    "perplexity": "Perplexity of masked tokens",
    "accuracy": "Accuracy on masked tokens",
}
HIGHER_IS_BETTER = ("accuracy",)
FORMATS = ("png", "svg")

# Colours of Okabe and Ito, which colour-blind readers can tell apart.
_OURS, _POINTS, _TEXT = "#0072B2", "#8FB8D8", "#222222"
_REFERENCES = (("#D55E00", "s"), ("#009E73", "^"), ("#CC79A7", "D"), ("#E69F00", "v"))
_STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.edgecolor": "#666666",
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#E6E6E6",
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    # Ids in SVG files are random otherwise.
    "svg.hashsalt": "nestling",
}


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
    with _figure() as (figure, axes):
        _draw(axes, content, others, quality)
        axes.set_title(_title(content) if title is None else title, loc="left", fontsize=10)
        figure.draw_without_rendering()
        place_labels(axes, _named_points(content, quality), _all_points(content, others, quality))
        return _save(figure, Path(output))


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


@contextmanager
def _figure() -> "Iterator[tuple[Figure, Axes]]":
    # The object interface picks no global backend, so importing this module changes nothing.
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    # Settings of the user's machine must not change the plot.
    defaults = {k: v for k, v in matplotlib.rcParamsDefault.items() if "backend" not in k}
    with matplotlib.rc_context({**defaults, **_STYLE}):
        figure = Figure(figsize=(6.4, 4.0), dpi=200, layout="constrained")
        FigureCanvasAgg(figure)
        yield figure, figure.add_subplot()


def _draw(
    axes: "Axes", content: dict[str, Any], others: dict[str, dict[str, Any]], quality: str
) -> None:
    higher = quality in HIGHER_IS_BETTER
    points = points_of(content, quality)
    for (name, other), (colour, marker) in zip(others.items(), _cycle(len(others)), strict=True):
        curve = pareto_front(points_of(other, quality), higher)
        axes.plot(*_columns(curve), color=colour, marker=marker, ms=4, lw=1.2, ls="--", label=name)
    axes.plot(*_columns(points), color=_POINTS, marker="o", ms=4, ls="", label="every budget")
    front = _columns(pareto_front(points, higher))
    axes.plot(*front, color=_OURS, marker="o", ms=4.5, lw=1.6, label="Pareto front")
    axes.plot(
        *_columns([point for point, _ in _named_points(content, quality)]),
        marker="o", ms=8, ls="", markerfacecolor="none", markeredgecolor=_OURS, mew=1.2,
    )  # fmt: skip
    axes.set_xscale("log")
    _label_ticks(axes, [cost for cost, _ in _all_points(content, others, quality)])
    axes.set_ylabel(QUALITIES[quality])
    axes.set_xlabel(f"FLOPs per {describe_flops(content)}")
    axes.margins(x=0.08, y=0.12)
    axes.legend(loc="lower right" if higher else "upper right")


def _label_ticks(axes: "Axes", costs: Sequence[float]) -> None:
    """Choose ticks by the span, since a ladder often covers less than one decade."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    is_wide = max(costs) / min(costs) > 8
    steps = (1.0, 2.0, 5.0) if is_wide else (1.0, 1.2, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 8.0)
    axes.xaxis.set_major_locator(LogLocator(subs=steps))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: format_flops(value)))


def format_flops(flops: float) -> str:
    """Print FLOPs with a unit: ``120 M``, ``1.5 G``."""
    for size, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if flops >= size:
            return f"{flops / size:.3g} {unit}"
    return f"{flops:.3g}"


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


def _columns(points: Sequence[Point]) -> tuple[list[float], list[float]]:
    return [point[0] for point in points], [point[1] for point in points]


def _cycle(count: int) -> list[tuple[str, str]]:
    return [_REFERENCES[index % len(_REFERENCES)] for index in range(count)]


def _save(figure: "Figure", output: Path) -> list[Path]:
    # Dates and versions in the metadata would make equal plots differ.
    metadata: dict[str, dict[str, Any]] = {"png": {"Software": None}, "svg": {"Date": None}}
    paths = []
    for name in FORMATS:
        path = output.with_suffix(f".{name}")
        write_whole(path, partial(figure.savefig, format=name, metadata=metadata[name]))
        paths.append(path)
    return paths
