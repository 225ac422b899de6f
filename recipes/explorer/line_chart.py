"""Line charts in braille: every cell holds two by four dots. Pure: numbers in, styled text out."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from rich.text import Text

from .run_state import Mark

# Bit of the dot at (column, row) in the braille block of Unicode.
DOTS = ((0x01, 0x02, 0x04, 0x40), (0x08, 0x10, 0x20, 0x80))
BLANK = 0x2800
AXIS_STYLE, MARK_STYLE = "dim", "yellow"
LABEL_WIDTH = 10


@dataclass(frozen=True)
class Curve:
    """One line of a chart.

    Attributes:
        name: Stands in the legend.
        colour: Of the line.
        points: (x, y) in the order of x; y is None where it was not finite, which breaks the line.
        marker: Character at each point, in place of a line: for few points over a line of many.
    """

    name: str
    colour: str
    points: Sequence[tuple[float, float | None]]
    marker: str | None = None


class Canvas:
    """A grid of dots that becomes lines of braille."""

    def __init__(self, width: int, height: int) -> None:
        self.width, self.height = width, height
        self.bits = [[0] * width for _ in range(height)]
        self.owner: list[list[int | None]] = [[None] * width for _ in range(height)]
        self.markers: dict[tuple[int, int], str] = {}

    def dot(self, x: int, y: int, owner: int) -> None:
        """Set the dot in column x (of 2 x width) and row y from the top (of 4 x height)."""
        self.bits[y // 4][x // 2] |= DOTS[x % 2][y % 4]
        self.owner[y // 4][x // 2] = owner

    def mark(self, x: int, y: int, marker: str, owner: int) -> None:
        """Put a character over the cell of a dot."""
        self.markers[y // 4, x // 2] = marker
        self.owner[y // 4][x // 2] = owner

    def line(self, start: tuple[int, int], end: tuple[int, int], owner: int) -> None:
        """Set the dots from start to end."""
        (x0, y0), (x1, y1) = start, end
        steps = max(abs(x1 - x0), abs(y1 - y0), 1)
        for index in range(steps + 1):
            share = index / steps
            self.dot(round(x0 + (x1 - x0) * share), round(y0 + (y1 - y0) * share), owner)

    def cell(self, row: int, column: int) -> str:
        """Return the character of a cell."""
        if (row, column) in self.markers:
            return self.markers[row, column]
        bits = self.bits[row][column]
        return chr(BLANK + bits) if bits else " "


def draw_chart(
    curves: Sequence[Curve],
    width: int,
    height: int,
    x_end: float | None = None,
    marks: Sequence[Mark] = (),
) -> Text:
    """Draw curves over one x axis.

    Args:
        curves: Lines; later ones are drawn over earlier ones.
        width: Cells of the whole chart, with its labels.
        height: Lines of the whole chart: a legend above, two lines for the x axis below.
        x_end: Where the x axis ends at least, such as the planned steps.
        marks: Steps with a vertical line, named below the axis.
    """
    plot_width, plot_height = width - LABEL_WIDTH - 1, height - 3
    seen = [(x, y) for curve in curves for x, y in curve.points if y is not None]
    if plot_width < 8 or plot_height < 2:
        return Text("too small for a chart", style=AXIS_STYLE)
    if not seen:
        return Text("no finite values yet", style=AXIS_STYLE)
    left = min(x for x, _ in seen)
    right = max(max(x for x, _ in seen), x_end if x_end is not None else -math.inf)
    low, high = _y_range([y for _, y in seen])
    right = right if right > left else left + 1

    def place(x: float, y: float) -> tuple[int, int]:
        return (
            round((x - left) / (right - left) * (2 * plot_width - 1)),
            round((high - y) / (high - low) * (4 * plot_height - 1)),
        )

    canvas = Canvas(plot_width, plot_height)
    for owner, curve in enumerate(curves):
        if curve.marker is None:
            _draw(canvas, curve.points, place, owner)
            continue
        for x, y in curve.points:
            if y is not None:
                canvas.mark(*place(x, y), curve.marker, owner)
    inside = [mark for mark in marks if left <= mark.step <= right]
    at = {place(mark.step, high)[0] // 2: mark.label for mark in inside}
    text = _legend(curves)
    for row in range(plot_height):
        label = _y_label(row, plot_height, low, high)
        text.append(f"\n{label:>{LABEL_WIDTH}}{'┤' if label else '│'}", AXIS_STYLE)
        for column in range(plot_width):
            owner_here = canvas.owner[row][column]
            if owner_here is not None:
                text.append(canvas.cell(row, column), curves[owner_here].colour)
            elif column in at:
                text.append("┊", MARK_STYLE)
            else:
                text.append(" ")
    return text.append_text(_x_axis(plot_width, left, right, at))


def _draw(
    canvas: Canvas,
    points: Sequence[tuple[float, float | None]],
    place: Callable[[float, float], tuple[int, int]],
    owner: int,
) -> None:
    """Connect neighbouring points; a value that was not finite leaves a gap."""
    previous: tuple[int, int] | None = None
    column: dict[int, tuple[int, int]] = {}
    for x, y in points:
        if y is None:
            previous = None
            continue
        dot = place(x, y)
        if previous is None or dot[0] != previous[0]:
            column.clear()
            canvas.line(previous or dot, dot, owner)
        else:
            # Of many points in one column only its range is visible.
            low, high = column.get(dot[0], (previous[1], previous[1]))
            if not low <= dot[1] <= high:
                canvas.line(previous, dot, owner)
            column[dot[0]] = min(low, dot[1]), max(high, dot[1])
        previous = dot


def _y_range(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    if low < high:
        return low, high
    half = abs(low) * 0.05 or 0.5
    return low - half, high + half


def _y_label(row: int, height: int, low: float, high: float) -> str:
    """Return the value at the top, the middle and the bottom of the axis."""
    if row not in (0, (height - 1) // 2, height - 1):
        return ""
    return f"{high - (high - low) * row / max(1, height - 1):.4g}"


def _legend(curves: Sequence[Curve]) -> Text:
    text = Text(" " * (LABEL_WIDTH + 1))
    for curve in curves:
        text.append(f"{curve.marker or '━'} ", curve.colour).append(f"{curve.name}   ")
    return text


def _x_axis(width: int, left: float, right: float, marks: Mapping[int, str]) -> Text:
    """Return the line of the axis, then its labels with the names of the marks between them."""
    text = Text(f"\n{'':>{LABEL_WIDTH}}└", AXIS_STYLE)
    text.append("".join("┴" if column in marks else "─" for column in range(width)))
    first, last = f"{left:,.0f}", f"{right:,.0f}"
    labels = [" "] * width
    styles: list[tuple[int, int]] = []
    _put(labels, 0, first)
    _put(labels, width - len(last), last)
    for column, label in sorted(marks.items()):
        start = min(column, width - len(label))
        around = labels[max(0, start - 1) : start + len(label) + 1]
        if start >= 0 and not "".join(around).strip():
            _put(labels, start, label)
            styles.append((start, start + len(label)))
    line = Text("".join(labels), AXIS_STYLE)
    for start, end in styles:
        line.stylize(f"not dim {MARK_STYLE}", start, end)
    return text.append("\n" + " " * (LABEL_WIDTH + 1)).append_text(line)


def _put(labels: list[str], start: int, label: str) -> None:
    if start >= 0:
        labels[start : start + len(label)] = label
