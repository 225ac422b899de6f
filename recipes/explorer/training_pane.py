"""Screen 2: the curves of the selected run and its last log lines."""

from collections.abc import Sequence

from rich.text import Text
from textual.app import ComposeResult
from textual.containers import Vertical
from textual.widgets import DataTable

from .colours import GREEN, ORANGE, QUIET, SKY, STRONG
from .line_chart import Curve
from .line_chart_widget import LineChart
from .run_rows import log_columns, log_row
from .run_state import LogLine, RunState
from .session import OpenRun

SHOWN_LINES = 200


class TrainingPane(Vertical, can_focus=False):
    """Charts of loss and learning rate, and a table to which new log lines are appended."""

    def __init__(self) -> None:
        super().__init__()
        self._columns: tuple[str, ...] = ()
        # Which table is on screen: of which run, since which loss of its earlier lines.
        self._shown: tuple[int, int] | None = None
        # Scrolling waits for the next layout; until then the table is not where it will be.
        self._will_scroll = False

    def compose(self) -> ComposeResult:
        """Lay out two charts and the table."""
        yield LineChart(id="losses")
        yield LineChart(id="rates")
        table: DataTable[Text] = DataTable(id="log", cursor_type="none", zebra_stripes=True)
        table.can_focus = False
        yield table

    def show(self, run: OpenRun) -> None:
        """Show another run."""
        self._shown = None
        self.append(run, [])

    def append(self, run: OpenRun, lines: Sequence[LogLine]) -> None:
        """Take in new log lines of the run that is shown."""
        state = run.state or RunState()
        losses = [Curve("loss", SKY, state.curve("loss"))]
        if evaluated := state.curve("eval_loss"):
            losses.append(Curve("eval_loss", ORANGE, evaluated, marker="●"))
        rates = [Curve("learning rate", GREEN, state.curve("learning_rate"))]
        self.query_one("#losses", LineChart).show(losses, state.marks, state.total_steps)
        self.query_one("#rates", LineChart).show(rates, state.marks, state.total_steps)
        self._fill(state, lines)

    def _fill(self, state: RunState, lines: Sequence[LogLine]) -> None:
        table = self.query_one("#log", DataTable)
        columns, shown = log_columns(state), (id(state), state.versions)
        # Who has scrolled up to read is not moved.
        follows = self.is_at_newest()
        if shown != self._shown or columns != self._columns:
            table.clear(columns=True)
            for name in columns:
                table.add_column(
                    Text(name.removeprefix("loss/"), STRONG, justify="right"), key=name
                )
            self._columns, self._shown, follows = columns, shown, True
            lines = list(state.lines.values())[-SHOWN_LINES:]
        for line in lines:
            key, cells = str(line.step), _cells(line, columns)
            if key in table.rows:  # training and evaluation of one step are two lines of the file
                for name, cell in zip(columns, cells, strict=True):
                    table.update_cell(key, name, cell, update_width=True)
            else:
                table.add_row(*cells, key=key)
        while table.row_count > SHOWN_LINES:
            table.remove_row(next(iter(table.rows)))
        if follows:
            self.scroll_to_newest()

    def is_at_newest(self) -> bool:
        """Whether the last log line is in view, or will be after the next layout."""
        return self._will_scroll or self.query_one("#log", DataTable).is_vertical_scroll_end

    def is_settled(self) -> bool:
        """Whether no scrolling is left to do."""
        return not self._will_scroll

    def scroll_to_newest(self) -> None:
        """Show the last log line; a table that is not on screen cannot be scrolled before."""
        self._will_scroll = True
        self.call_after_refresh(self._scroll)

    def _scroll(self) -> None:
        table = self.query_one("#log", DataTable)
        table.scroll_end(animate=False, immediate=True)
        self._will_scroll = False


def _cells(line: LogLine, columns: Sequence[str]) -> list[Text]:
    return [
        Text(cell, QUIET if cell == "-" else "", justify="right") for cell in log_row(line, columns)
    ]
