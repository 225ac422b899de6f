"""How the plots of this package look, and how they are written: the same input, the same bytes."""

from collections.abc import Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .whole_file import write_whole

if TYPE_CHECKING:
    from collections.abc import Iterator

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Point = tuple[float, float]
FORMATS = ("png", "svg")

# Colours of Okabe and Ito, which colour-blind readers can tell apart.
OURS, POINTS = "#0072B2", "#8FB8D8"
REFERENCES = (
    ("#D55E00", "s"),
    ("#009E73", "^"),
    ("#CC79A7", "D"),
    ("#E69F00", "v"),
    ("#56B4E9", "P"),
    ("#555555", "X"),
)
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


@contextmanager
def plot_figure() -> "Iterator[tuple[Figure, Axes]]":
    """Yield an empty figure in the style of this package, and its axes."""
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


def label_ticks(axes: "Axes", costs: Sequence[float]) -> None:
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


def columns(points: Sequence[Point]) -> tuple[list[float], list[float]]:
    """Return what a line is drawn from: all x, and all y."""
    return [point[0] for point in points], [point[1] for point in points]


def cycle_of(count: int) -> list[tuple[str, str]]:
    """Return colour and marker of the first `count` references."""
    return [REFERENCES[index % len(REFERENCES)] for index in range(count)]


def save_plot(figure: "Figure", output: Path) -> list[Path]:
    """Write PNG and SVG beside each other; the suffix of `output` is replaced."""
    # Dates and versions in the metadata would make equal plots differ.
    metadata: dict[str, dict[str, Any]] = {"png": {"Software": None}, "svg": {"Date": None}}
    paths = []
    for name in FORMATS:
        path = output.with_suffix(f".{name}")
        write_whole(path, partial(figure.savefig, format=name, metadata=metadata[name]))
        paths.append(path)
    return paths
