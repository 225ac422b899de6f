"""Screen 1: all runs in a table, and what the selected one is made of."""

from collections.abc import Iterable

from rich.console import Group, RenderableType
from rich.text import Text
from textual.app import ComposeResult
from textual.containers import Horizontal, VerticalScroll
from textual.coordinate import Coordinate
from textual.widgets import DataTable, Static

from .colours import ERROR, QUIET, STATES, STRONG
from .line_chart_widget import LineChart
from .loss_curves import loss_curves
from .run_rows import DASHBOARD_COLUMNS, dashboard_row, difference_note
from .session import OpenRun, Session
from .views import recipe_view, studies_view, terms_view

STATE_COLUMN = DASHBOARD_COLUMNS.index("state")
# Names and words are set flush left, numbers flush right.
LEFT_COLUMNS = (0, 1, STATE_COLUMN)


class DashboardPane(VerticalScroll, can_focus=False):
    """The table of runs; rows are added and cells changed, the table is not built again."""

    def compose(self) -> ComposeResult:
        """Lay out the table and the panels below it."""
        table: DataTable[Text] = DataTable(
            id="runs",
            cursor_type="row",
            # The colour of a state is also seen on the selected row.
            cursor_foreground_priority="renderable",
            zebra_stripes=True,
        )
        table.can_focus = False
        yield table
        with Horizontal(id="details"):
            yield Static(id="terms")
            yield Static(id="recipe")
        yield Static(id="studies")
        yield LineChart(id="all-losses")

    def show(self, session: Session, selected: int) -> None:
        """Fill the table anew; for newly opened files."""
        table = self.query_one("#runs", DataTable)
        table.clear(columns=True)
        for index, name in enumerate(DASHBOARD_COLUMNS):
            table.add_column(_cell(index, name, STRONG), key=name)
        self.add_runs(session, 0)
        self.show_studies(session)
        self.select(session, selected)

    def add_runs(self, session: Session, start: int) -> None:
        """Add rows for the runs from number `start` on."""
        table = self.query_one("#runs", DataTable)
        for index in range(start, len(session.runs)):
            table.add_row(*_cells(session, session.runs[index]), key=str(index))

    def update_runs(self, session: Session, indices: Iterable[int]) -> None:
        """Change the cells of these rows that are no longer right."""
        table = self.query_one("#runs", DataTable)
        for index in indices:
            for column, cell in enumerate(_cells(session, session.runs[index])):
                place = Coordinate(index, column)
                if table.get_cell_at(place) != cell:
                    table.update_cell_at(place, cell, update_width=True)

    def show_studies(self, session: Session) -> None:
        """Show the opened studies below the runs, and what could not be shown."""
        text, studies = self.query_one("#studies", Static), session.studies()
        skipped = [Text(f"not shown: {problem}", QUIET) for problem in session.skipped]
        text.display = bool(studies or skipped)
        text.update(Group(studies_view(studies), *skipped))

    def show_losses(self, session: Session, selected: int) -> None:
        """Draw the loss of the selected run over those of the first few others."""
        chart = self.query_one("#all-losses", LineChart)
        curves = loss_curves([(run.name, run.state) for run in session.runs], selected)
        chart.display = bool(curves)
        chart.show(curves)

    def select(self, session: Session, selected: int) -> None:
        """Move the cursor, and show what the selected run is made of."""
        if not session.runs:
            self.query_one("#details").display = False
            self.query_one("#runs").display = self.query_one("#all-losses").display = False
            return
        self.query_one("#details").display = self.query_one("#runs").display = True
        self.query_one("#runs", DataTable).move_cursor(row=selected)
        self.show_losses(session, selected)
        run = session.runs[selected]
        self.query_one("#terms", Static).update(_terms(session, run))
        self.query_one("#recipe", Static).update(recipe_view(run.highlights()))


def _cells(session: Session, run: OpenRun) -> list[Text]:
    first = session.first()
    reference = first.state if first is not None else None
    row = dashboard_row(run.name, run.family(), run.state, reference, session.now())
    cells = [
        _cell(index, value, STATES.get(value, "") if index == STATE_COLUMN else "")
        for index, value in enumerate(row)
    ]
    if run.problem is not None:
        cells[STATE_COLUMN] = Text("unreadable", ERROR)
    return cells


def _cell(column: int, value: str, style: str) -> Text:
    return Text(value, style, justify="left" if column in LEFT_COLUMNS else "right")


def _terms(session: Session, run: OpenRun) -> RenderableType:
    parts: list[RenderableType] = [Text("loss terms", STRONG), terms_view(run.state)]
    first = session.first()
    if run.state is not None and first is not None:
        note = difference_note(run.state, first.state, first.name)
        parts += [Text(note, QUIET)] if note else []
        if run.state.non_finite is not None:
            parts.append(Text(f"not finite: {run.state.non_finite}", ERROR))
    if run.problem is not None:
        parts.append(Text(run.problem, ERROR))
    return Group(*parts)
