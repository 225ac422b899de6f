"""What the command line prints: tables and lines. Rich is imported on first use."""

import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

# Wide enough that names in tables are not cut where nobody has a window to fit.
PIPE_WIDTH = 160


def console() -> "Console":
    """Return a console for standard output; it prints plain text into files and pipes."""
    from rich.console import Console

    width = None if sys.stdout.isatty() else PIPE_WIDTH
    return Console(highlight=False, emoji=False, soft_wrap=True, width=width)


def show_line(text: str) -> None:
    """Print one line as it is: square brackets are text, not markup."""
    console().print(text, markup=False)


def show_rows(title: str, rows: Sequence[Mapping[str, object]]) -> None:
    """Print rows with the same keys as a table; numbers are set flush right.

    Args:
        title: heading of the table.
        rows: one mapping a row; the keys of the first one are the columns.
    """
    from rich.table import Table

    if not rows:
        show_line(f"{title}: nothing")
        return
    table = Table(title=title, title_justify="left")
    for name, value in rows[0].items():
        table.add_column(name, justify="right" if isinstance(value, int | float) else "left")
    for row in rows:
        table.add_row(*(_cell(row.get(name)) for name in rows[0]))
    console().print(table, markup=False)


def _cell(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1e4 else f"{value:,.0f}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return str(value)


def show_error(text: str) -> None:
    """Print the one line of an error to standard error."""
    sys.stderr.write(f"nestling: error: {text}\n")
