"""The widget that draws a line chart as large as its place on the screen."""

from collections.abc import Sequence

from rich.text import Text
from textual.widget import Widget

from .line_chart import Curve, draw_chart
from .run_state import Mark


class LineChart(Widget):
    """A chart of curves over steps."""

    curves: Sequence[Curve] = ()
    marks: Sequence[Mark] = ()
    x_end: float | None = None

    def show(
        self, curves: Sequence[Curve], marks: Sequence[Mark] = (), x_end: float | None = None
    ) -> None:
        """Draw these curves from now on; the arguments are those of `draw_chart`."""
        self.curves, self.marks, self.x_end = curves, marks, x_end
        self.refresh()

    def render(self) -> Text:
        """Draw the chart in the size the widget has."""
        return draw_chart(self.curves, self.size.width, self.size.height, self.x_end, self.marks)
