"""Text labels beside points of a plot, placed so that nothing overlaps."""

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Point = tuple[float, float]

# Preferred places around a point, in points of type size: near ones first, above before below.
_OFFSETS = [
    (dx * scale, dy * scale)
    for scale in (1.0, 1.8, 2.8, 4.0)
    for dx, dy in ((12, 12), (-12, 12), (12, -12), (-12, -12), (0, 16), (0, -16), (16, 0), (-16, 0))
]


def place_labels(
    axes: "Axes", labels: Sequence[tuple[Point, str]], obstacles: Sequence[Point]
) -> None:
    """Write each label at the first place free of points, lines, legend and other labels.

    Where no place is free, the one with the fewest collisions is taken.

    Args:
        axes: drawn axes, since pixel sizes are needed.
        labels: point in data coordinates and its text.
        obstacles: points in data coordinates that must stay visible.
    """
    renderer = axes.figure.canvas.get_renderer()  # type: ignore[attr-defined]
    taken: list[Any] = []
    legend = axes.get_legend()
    if legend is not None:
        taken.append(legend.get_window_extent(renderer))
    pixels = [tuple(map(float, axes.transData.transform(point))) for point in obstacles]
    pixels += _along_lines(axes)
    inside = axes.get_window_extent(renderer)
    for point, text in labels:
        best: tuple[int, Any] | None = None
        for offset in _OFFSETS:
            note = _annotate(axes, point, text, offset)
            box = note.get_window_extent(renderer).padded(2.0)
            hits = sum(box.contains(x, y) for x, y in pixels)
            # Leaving the frame or covering text is worse than touching a few points.
            hits += 20 * sum(box.overlaps(other) for other in taken)
            hits += 20 * (not (inside.contains(box.x0, box.y0) and inside.contains(box.x1, box.y1)))
            if best is None or hits < best[0]:
                if best is not None:
                    best[1].remove()
                best = (hits, note)
            else:
                note.remove()
            if hits == 0:
                break
        assert best is not None
        # Take the label out of the layout, which would otherwise move the axes under it.
        best[1].set_in_layout(False)
        taken.append(best[1].get_window_extent(renderer).padded(2.0))


def _annotate(axes: "Axes", point: Point, text: str, offset: tuple[float, float]) -> Any:
    dx, dy = offset
    return axes.annotate(
        text,
        point,
        xytext=offset,
        textcoords="offset points",
        ha="center" if dx == 0 else ("left" if dx > 0 else "right"),
        va="center" if dy == 0 else ("bottom" if dy > 0 else "top"),
        fontsize=8,
        color="#222222",
        linespacing=1.15,
        arrowprops={"arrowstyle": "-", "color": "#999999", "lw": 0.6, "shrinkB": 5},
    )


def _along_lines(axes: "Axes") -> list[tuple[float, float]]:
    """Return pixels along the drawn lines, close enough that no label slips between them."""
    pixels: list[tuple[float, float]] = []
    for line in axes.get_lines():
        if line.get_linestyle() in ("None", "", " "):
            continue
        corners = axes.transData.transform(line.get_xydata())
        for start, end in pairwise(corners):
            steps = max(2, int(max(abs(end - start)) / 4))
            pixels += [tuple(start + (end - start) * step / steps) for step in range(steps)]
    return pixels
