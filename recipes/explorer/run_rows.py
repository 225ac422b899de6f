"""The rows that tables show for runs: from states to cells. Pure."""

from collections.abc import Mapping, Sequence
from typing import Any

from .cells import ABSENT, duration_text, last_text, loss_text, number_text, signed_text, step_text
from .run_progress import MEASURED, loss_difference, seconds_left, state_of, steps_per_second
from .run_state import LogLine, RunState

DASHBOARD_COLUMNS = (
    "run",
    "family",
    "step",
    "state",
    "loss",
    "Δ first",
    "learning rate",
    "steps/s",
    "time left",
)
TERM_COLUMNS = ("term", "unit", "weight", "loss")
# Of a log line, beside the losses.
RATES = ("learning_rate", "grad_norm")


def dashboard_row(
    name: str, family: str | None, run: RunState | None, first: RunState | None, now: float
) -> tuple[str, ...]:
    """Return the cells of `DASHBOARD_COLUMNS`.

    Args:
        name: Name of the run.
        family: Its family, where it is known.
        run: Its state; None for an evaluation without events.
        first: State of the first run that has events; the run itself has no difference to it.
        now: Seconds since 1970.
    """
    if run is None:
        return name, family or ABSENT, ABSENT, MEASURED, *[ABSENT] * 5
    other = first if first is not run else None
    difference = loss_difference(run, other) if other is not None else None
    rate = run.last("learning_rate")
    return (
        name,
        family or ABSENT,
        step_text(run.last_step, run.total_steps),
        state_of(run, now),
        last_text(run.last("loss")),
        signed_text(difference[0]) if difference else ABSENT,
        number_text(rate[0]) if rate else ABSENT,
        number_text(steps_per_second(run), 3),
        duration_text(seconds_left(run, now)),
    )


def difference_note(run: RunState, first: RunState | None, first_name: str) -> str:
    """Return at which step the difference to the first run was taken."""
    if first is None or first is run:
        return ""
    difference = loss_difference(run, first)
    if difference is None:
        return f"no step that {first_name} logged too, so no Δ first"
    return f"Δ first: {difference[0]:+.4f} to {first_name} at step {difference[1]:,}"


def term_rows(run: RunState) -> list[tuple[str, ...]]:
    """Return the cells of `TERM_COLUMNS`: each loss term, its weight now and its last value."""
    declared = {str(term.get("name")): term for term in run.terms}
    rows: list[tuple[str, ...]] = []
    for name in run.term_names():
        term = declared.get(name, {})
        unit = str(term.get("unit", ABSENT)) + (" (batch)" if term.get("batch_coupled") else "")
        weight = run.last(f"weight/{name}")
        rows.append(
            (
                name,
                unit,
                number_text(weight[0]) if weight else str(term.get("weight", ABSENT)),
                last_text(run.last(f"loss/{name}")),
            )
        )
    return rows


def log_columns(run: RunState) -> tuple[str, ...]:
    """Return the columns of the log table: every loss term has one."""
    evaluated = ("eval_loss",) if "eval_loss" in run.names else ()
    terms = tuple(f"loss/{name}" for name in run.term_names())
    return ("step", "loss", *evaluated, *terms, *RATES)


def log_row(line: LogLine, columns: Sequence[str]) -> tuple[str, ...]:
    """Return the cells of one log line."""
    cells = [f"{line.step:,}"]
    for name in columns[1:]:
        if name not in line.values:
            cells.append(ABSENT)
        elif name in RATES:
            cells.append(number_text(line.values[name]))
        else:
            cells.append(loss_text(line.values[name]))
    return tuple(cells)


def study_rows(study: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Return one row a method of a study: table, method, seeds, loss with interval, AUTC."""
    rows: list[tuple[str, ...]] = []
    for table, content in study["tables"].items():
        for method, summary in (content.get("methods") or {}).items():
            ours = summary.get("minus_ours") or {}
            rows.append(
                (
                    str(table),
                    str(method),
                    str(len(summary.get("seeds") or ())),
                    _interval_text(summary.get("mean_cross_entropy")),
                    _interval_text(summary.get("autc")),
                    _interval_text(ours.get("mean_cross_entropy"), signed=True),
                )
            )
    return rows


STUDY_COLUMNS = ("table", "method", "seeds", "mean cross-entropy", "AUTC", "loss minus ours")


def _interval_text(interval: Mapping[str, Any] | None, signed: bool = False) -> str:
    if not interval or interval.get("mean") is None:
        return ABSENT
    sign = "+" if signed else ""
    text = f"{interval['mean']:{sign}.4f}"
    if interval.get("low") is None:
        return text
    return f"{text} [{interval['low']:{sign}.4f}, {interval['high']:{sign}.4f}]"
