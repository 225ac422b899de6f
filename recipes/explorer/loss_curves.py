"""Which losses the dashboard draws over each other. Pure."""

from collections.abc import Sequence

from .colours import OTHERS, SKY
from .line_chart import Curve
from .run_state import RunState


def loss_curves(runs: Sequence[tuple[str, RunState | None]], selected: int) -> list[Curve]:
    """Return the curve of the selected run, last, and those of the first others.

    More lines than colours would say nothing.
    """
    others = [
        (name, state)
        for index, (name, state) in enumerate(runs)
        if index != selected and state is not None and state.lines
    ]
    curves = [
        Curve(name, colour, state.curve("loss"))
        for (name, state), colour in zip(others, OTHERS, strict=False)
    ]
    name, state = runs[selected]
    if state is not None and state.lines:
        curves.append(Curve(name, SKY, state.curve("loss")))
    return curves
