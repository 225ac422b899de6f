"""The window that `?` opens."""

from rich.table import Table
from rich.text import Text
from textual.app import ComposeResult
from textual.events import Key
from textual.screen import ModalScreen
from textual.widgets import Static

from .colours import SKY

KEYS = (
    ("1 2 3 4", "Dashboard, Training, Spectral, Benchmark"),
    ("Tab, Shift+Tab", "next screen, screen before"),
    ("j k, arrows", "next run, run before"),
    ("Page Up, Page Down", "scroll what does not fit"),
    ("r", "open all files again"),
    ("?", "this list; any key closes it"),
    ("q", "quit"),
)


class HelpScreen(ModalScreen[None]):
    """The keys; any key closes it."""

    CSS = """
    HelpScreen { align: center middle; }
    #keys { width: auto; height: auto; border: round #56B4E9; padding: 1 2; background: $surface; }
    """

    def compose(self) -> ComposeResult:
        """Show the table of keys."""
        table = Table.grid(padding=(0, 3))
        table.add_column(style=SKY, no_wrap=True)
        table.add_column(no_wrap=True)
        for keys, meaning in KEYS:
            table.add_row(Text(keys), Text(meaning))
        yield Static(table, id="keys")

    def on_key(self, event: Key) -> None:
        """Close the window."""
        event.stop()  # or it would open again, since the key belongs to the application then
        event.prevent_default()
        self.dismiss()
