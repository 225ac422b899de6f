"""Screens 3 and 4: spectral measurements or the ladder of a run, and benchmarks."""

from rich.console import Group
from rich.text import Text
from textual.app import ComposeResult
from textual.containers import VerticalScroll
from textual.widget import Widget
from textual.widgets import Static

from .colours import QUIET
from .session import OpenRun, Session
from .views import NOTHING_SPECTRAL, benchmarks_view, ladder_view, spectral_view

# Padding of a screen, and a bar to scroll it.
BESIDE = 6


def room(pane: Widget) -> int:
    """Return the columns that a screen has, also while it is hidden."""
    return pane.app.size.width - BESIDE


class SpectralPane(VerticalScroll, can_focus=False):
    """Gates and spectrum of the selected run; of a nested encoder the ladder of budgets."""

    def compose(self) -> ComposeResult:
        """Lay out one text."""
        yield Static(id="spectrum")

    def show(self, run: OpenRun | None) -> None:
        """Show what the run has measured."""
        text = self.query_one("#spectrum", Static)
        if run is not None and run.state is not None and run.state.spectral:
            text.update(spectral_view(run.state, room(self)))
        elif run is not None and run.evaluation is not None:
            text.update(ladder_view(run.evaluation, room(self)))
        else:
            text.update(Text(NOTHING_SPECTRAL, QUIET))


class BenchmarkPane(VerticalScroll, can_focus=False):
    """The summary of every opened benchmark."""

    def compose(self) -> ComposeResult:
        """Lay out one text."""
        yield Static(id="ratios")

    def show(self, session: Session) -> None:
        """Show the opened benchmarks."""
        self.query_one("#ratios", Static).update(
            Group(benchmarks_view(session.benchmarks(), room(self)))
        )
