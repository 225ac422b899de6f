"""The terminal application: four screens over one session of opened files."""

from collections.abc import Callable
from typing import ClassVar

from rich.text import Text
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.widgets import DataTable, Static, TabbedContent, TabPane

from ..cli_errors import DataError
from .colours import ERROR, QUIET, STRONG
from .dashboard_pane import DashboardPane
from .help_screen import HelpScreen
from .result_panes import BenchmarkPane, SpectralPane
from .session import Change, OpenRun, Session
from .training_pane import TrainingPane

SCREENS = ("dashboard", "training", "spectral", "benchmark")
# Files are looked at four times a second; without news, times are brought up to date every second.
POLL_SECONDS = 0.25
POLLS_PER_CLOCK = 4
KEY_LINE = "1-4 Tab screen   j k run   r read again   ? help   q quit"


class ExplorerApp(App[None]):
    """The explorer.

    Args:
        open_session: Opens the files; called again to read everything anew.
        title: Stands in the first line.
        screen: The screen that is shown first, one of `SCREENS`.
        follows: Whether to look for new events.
    """

    CSS = """
    Screen { overflow: hidden; }
    #screens { height: 1fr; }
    #title { height: 1; background: $panel; padding: 0 1; }
    #keys-line { dock: bottom; height: 1; background: $panel; padding: 0 1; }
    TabPane { padding: 0 1; }
    #runs { height: auto; max-height: 45%; }
    #details { height: auto; margin: 1 0 0 0; }
    #terms { width: auto; max-width: 60%; height: auto; padding: 0 4 0 0; }
    #recipe { width: 1fr; height: auto; }
    #all-losses { height: 1fr; min-height: 9; margin: 1 0 0 0; }
    #studies, #spectrum, #ratios { height: auto; margin: 1 0 0 0; }
    #losses { height: 2fr; margin: 1 0 0 0; }
    #rates { height: 1fr; }
    #log { height: 1fr; min-height: 5; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        *(
            Binding(str(number), f"show('{name}')", name.capitalize())
            for number, name in enumerate(SCREENS, 1)
        ),
        # Before the focus keys of Textual, since nothing here takes the focus.
        Binding("tab", "turn(1)", "Next screen", priority=True),
        Binding("shift+tab", "turn(-1)", "Screen before", priority=True),
        Binding("j,down", "move(1)", "Next run"),
        Binding("k,up", "move(-1)", "Run before"),
        Binding("pagedown", "scroll(1)", "Scroll down"),
        Binding("pageup", "scroll(-1)", "Scroll up"),
        Binding("r", "read_again", "Read again"),
        Binding("question_mark", "help", "Help"),
        Binding("q", "quit", "Quit"),
    ]
    ENABLE_COMMAND_PALETTE = False

    def __init__(
        self,
        open_session: Callable[[], Session],
        title: str,
        screen: str = SCREENS[0],
        follows: bool = True,
    ) -> None:
        super().__init__()
        # Half an animation in a snapshot would not be the same twice.
        self.animation_level = "none"
        self.session = open_session()
        self.selected = 0
        self._open_session = open_session
        self._title = title
        self._first_screen = screen
        self._follows = follows
        self._polls = 0

    def compose(self) -> ComposeResult:
        """Lay out title, screens and the line of keys."""
        yield Static(id="title")
        with TabbedContent(initial=self._first_screen, id="screens"):
            for number, (name, pane) in enumerate(zip(SCREENS, _panes(), strict=True), 1):
                with TabPane(f"{number} {name.capitalize()}", id=name):
                    yield pane
        yield Static(id="keys-line")

    def on_mount(self) -> None:
        """Show the opened files and begin to follow them."""
        self.query_one("ContentTabs").can_focus = False
        self._show_all()
        if self._follows:
            self.set_interval(POLL_SECONDS, self.poll)

    def run_selected(self) -> OpenRun | None:
        """Return the selected run."""
        return self.session.runs[self.selected] if self.session.runs else None

    def poll(self) -> None:
        """Look for new events, and change what they change on the screen.

        Only appended bytes are read and only changed cells are drawn, so this needs no thread.
        """
        if not self._is_whole():
            return
        self._polls += 1
        known = len(self.session.runs)
        reading = self.session.read_on()
        dashboard = self.query_one(DashboardPane)
        if reading.new_runs:
            dashboard.add_runs(self.session, known)
            if known == 0:
                self._select(0)
        # Differences are those to the first run, so its lines concern all rows.
        is_due = self._polls % POLLS_PER_CLOCK == 0 or 0 in reading.changes
        dashboard.update_runs(self.session, range(known) if is_due else reading.changes)
        if self.selected in reading.changes:
            self._refresh_selected(reading.changes[self.selected])
        elif reading.changes:
            dashboard.show_losses(self.session, self.selected)
        if reading.has_results:
            dashboard.show_studies(self.session)
            self.query_one(BenchmarkPane).show(self.session)
        self._show_lines()

    def is_settled(self) -> bool:
        """Whether what is shown stands where it will stay."""
        return self.query_one(TrainingPane).is_settled()

    def action_show(self, screen: str) -> None:
        """Switch to a screen."""
        self.query_one(TabbedContent).active = screen

    def action_turn(self, by: int) -> None:
        """Switch to the next screen or the one before."""
        if isinstance(self.screen, HelpScreen):
            self.screen.dismiss()
            return
        place = SCREENS.index(self.query_one(TabbedContent).active)
        self.action_show(SCREENS[(place + by) % len(SCREENS)])

    def action_move(self, by: int) -> None:
        """Select the next run or the one before."""
        if self.session.runs:
            self._select((self.selected + by) % len(self.session.runs))

    def action_scroll(self, by: int) -> None:
        """Scroll the screen that is shown by a page."""
        pane = self.query_one(f"#{self.query_one(TabbedContent).active} > *")
        target = pane.query_one("#log") if isinstance(pane, TrainingPane) else pane
        if isinstance(target, VerticalScroll | DataTable):
            scroll = target.scroll_page_down if by > 0 else target.scroll_page_up
            scroll(animate=False)

    def action_help(self) -> None:
        """Show the keys."""
        self.push_screen(HelpScreen())

    def action_read_again(self) -> None:
        """Open all files again; the run that was selected stays selected."""
        run = self.run_selected()
        try:
            self.session = self._open_session()
        except DataError as error:
            self.session.problem = str(error)
            self._show_lines()
            return
        keys = [other.files.key for other in self.session.runs]
        self.selected = keys.index(run.files.key) if run and run.files.key in keys else 0
        self._show_all()

    def on_data_table_row_highlighted(self, event: DataTable.RowHighlighted) -> None:
        """Follow a click into the table of runs."""
        # The message may be older than the keys pressed since; the cursor is not.
        row = event.data_table.cursor_row
        if (
            event.data_table.id == "runs"
            and 0 <= row < len(self.session.runs)
            and row != self.selected
        ):
            self._select(row)

    def on_tabbed_content_tab_activated(self, event: TabbedContent.TabActivated) -> None:
        """Begin at the newest log line."""
        if event.pane.id == "training":
            self.query_one(TrainingPane).scroll_to_newest()

    def on_resize(self) -> None:
        """Make bars as long as there is room."""
        if not self._is_whole():
            return
        self.query_one(SpectralPane).show(self.run_selected())
        self.query_one(BenchmarkPane).show(self.session)

    def _is_whole(self) -> bool:
        """Whether all screens are there: a timer may outlive them, and a size may come earlier."""
        return len(self.query("#runs, #log, #spectrum, #ratios")) == len(SCREENS)

    def _show_all(self) -> None:
        self.query_one(DashboardPane).show(self.session, self.selected)
        self.query_one(BenchmarkPane).show(self.session)
        self._select(self.selected)

    def _select(self, index: int) -> None:
        self.selected = index
        run = self.run_selected()
        self.query_one(DashboardPane).select(self.session, index)
        if run is not None:
            self.query_one(TrainingPane).show(run)
        self.query_one(SpectralPane).show(run)
        self._show_lines()

    def _refresh_selected(self, change: Change) -> None:
        run = self.session.runs[self.selected]
        self.query_one(DashboardPane).select(self.session, self.selected)
        self.query_one(TrainingPane).append(run, change.lines)
        self.query_one(SpectralPane).show(run)

    def _show_lines(self) -> None:
        run = self.run_selected()
        title = Text().append(self._title, STRONG)
        if run is not None:
            place = f"   run {self.selected + 1} of {len(self.session.runs)}: "
            title.append(place, QUIET).append(run.name, STRONG)
        self.query_one("#title", Static).update(title)
        problem = self.session.problem
        line = Text(KEY_LINE, QUIET) if problem is None else Text(problem, ERROR)
        self.query_one("#keys-line", Static).update(line)


def _panes() -> tuple[DashboardPane, TrainingPane, SpectralPane, BenchmarkPane]:
    return DashboardPane(), TrainingPane(), SpectralPane(), BenchmarkPane()
