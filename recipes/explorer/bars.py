"""Bars made of characters, in eighths of a cell."""

from collections.abc import Sequence

EIGHTHS = " ▏▎▍▌▋▊▉█"


def bar(share: float, width: int) -> str:
    """Return a bar that fills `share` of `width` cells, padded with spaces.

    Args:
        share: From 0 to 1; what lies outside is cut.
        width: Cells.
    """
    eighths = round(min(1.0, max(0.0, share)) * width * 8)
    whole, rest = divmod(eighths, 8)
    text = "█" * whole + (EIGHTHS[rest] if rest else "")
    return text.ljust(width)


def bar_with_mark(share: float, mark: float | None, width: int) -> str:
    """Return a bar with a tick at `mark`; both are shares of the width."""
    text = bar(share, width)
    if mark is None:
        return text
    place = min(width - 1, max(0, round(mark * width) - (mark >= 1)))
    return text[:place] + "│" + text[place + 1 :]


def stacked(shares: Sequence[float], width: int) -> list[int]:
    """Divide `width` cells by shares; the cells sum to the width.

    The largest remainders get the cells that rounding down leaves over.
    """
    total = sum(shares) or 1.0
    exact = [share / total * width for share in shares]
    cells = [int(value) for value in exact]
    order = sorted(range(len(shares)), key=lambda i: (cells[i] - exact[i], i))
    for index in order[: width - sum(cells)]:
        cells[index] += 1
    return cells
