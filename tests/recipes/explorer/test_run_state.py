from collections.abc import Callable
from typing import Any

import pytest
from nestling.recipes.explorer.run_progress import (
    FINISHED,
    FIRST_LINE_SECONDS,
    NON_FINITE,
    PATIENCE_SECONDS,
    RUNNING,
    STOPPED,
    WAITING,
    loss_difference,
    patience,
    seconds_left,
    state_of,
    steps_per_second,
)
from nestling.recipes.explorer.run_rows import (
    DASHBOARD_COLUMNS,
    dashboard_row,
    difference_note,
    log_columns,
    log_row,
    study_rows,
    term_rows,
)
from nestling.recipes.explorer.run_state import Mark, RunState, seconds_of

Event = Callable[..., dict[str, Any]]
ZERO = seconds_of("2026-03-01T00:00:00+00:00")
assert ZERO is not None


def run_of(*events: dict[str, Any]) -> RunState:
    state = RunState()
    state.apply(events)
    return state


@pytest.fixture
def logs(event: Event) -> Callable[..., list[dict[str, Any]]]:
    """Log lines every ten steps, two steps a second."""

    def make(first: int, last: int, loss: float = 3.0, after: float = 0.0) -> list[dict[str, Any]]:
        return [
            event("log", after + step / 2, step=step, loss=loss, learning_rate=0.001)
            for step in range(first, last + 1, 10)
        ]

    return make


def row(run: RunState | None, first: RunState | None, now: float) -> dict[str, str]:
    return dict(zip(DASHBOARD_COLUMNS, dashboard_row("a", "ddl", run, first, now), strict=True))


def test_every_column_of_a_running_run(start: Any, logs: Any) -> None:
    first = run_of(start, *logs(10, 30, loss=2.5), *logs(40, 100, loss=1.0))
    run = run_of(start, *logs(10, 30, loss=2.75))
    assert row(run, first, ZERO + 20) == {
        "run": "a",
        "family": "ddl",
        "step": "30/100",
        "state": RUNNING,
        "loss": "2.7500",
        "Δ first": "+0.2500",  # at step 30, not to the last loss of the first run
        "learning rate": "0.001",
        "steps/s": "2",
        "time left": "35 s",
    }
    assert "at step 30" in difference_note(run, first, "b")
    assert difference_note(first, first, "b") == ""


def test_columns_without_events(event: Event, start: Any) -> None:
    waiting = row(RunState(), None, ZERO)
    assert waiting.pop("state") == WAITING
    assert set(waiting.values()) == {"a", "ddl", "-"}
    begun = row(run_of(start), None, ZERO)
    assert (begun["step"], begun["state"], begun["loss"]) == ("0/100", RUNNING, "-")
    measured = row(None, None, ZERO)
    assert measured["state"] == "measured" and measured["loss"] == "-"


def test_states(start: Any, logs: Any, event: Event) -> None:
    running = run_of(start, *logs(10, 50))
    assert patience(running) == PATIENCE_SECONDS
    assert state_of(running, ZERO + 25 + PATIENCE_SECONDS) == RUNNING
    assert state_of(running, ZERO + 26 + PATIENCE_SECONDS) == STOPPED
    assert seconds_left(running, ZERO + 1000) is None
    assert state_of(run_of(start), ZERO + FIRST_LINE_SECONDS) == RUNNING
    finished = run_of(start, *logs(10, 100), event("train_end", 60, step=100))
    assert state_of(finished, ZERO + 1e6) == FINISHED
    assert row(finished, None, ZERO)["time left"] == "-"
    lost = event("non_finite_loss", 10, step=20, terms=["masked_lm"], outcome="saved")
    bad = run_of(start, *logs(10, 20), lost)
    assert state_of(bad, ZERO + 1e6) == NON_FINITE
    assert bad.non_finite == "masked_lm at step 20; saved"
    bad.apply([event("resume", 100, step=20)])
    assert state_of(bad, ZERO + 101) == RUNNING


def test_slow_runs_get_more_patience(start: Any, event: Event) -> None:
    slow = run_of(start, *(event("log", 60 * n, step=n, loss=1.0) for n in range(1, 6)))
    assert patience(slow) == 600
    assert state_of(slow, ZERO + 300 + 599) == RUNNING


def test_after_a_resume_the_later_line_counts(start: Any, logs: Any, event: Event) -> None:
    run = run_of(start, *logs(10, 50, loss=3.0))
    versions = run.versions
    changed = run.apply(
        [event("resume", 500, step=20), *logs(30, 40, loss=2.0, after=500)],
    )
    assert run.curve("loss") == [(10, 3.0), (20, 3.0), (30, 2.0), (40, 2.0)]
    assert [line.step for line in changed] == [30, 40]
    assert run.versions > versions
    assert run.marks == [Mark(20, "resume")]
    assert run.last_step == 40


def test_a_resume_in_the_same_reading(start: Any, logs: Any, event: Event) -> None:
    state = RunState()
    changed = state.apply(
        [start, *logs(10, 50), event("resume", 500, step=20), *logs(30, 30, 2.0, 500)]
    )
    assert [(line.step, line.values["loss"]) for line in changed] == [(10, 3), (20, 3), (30, 2)]


def test_speed_is_that_of_the_present_process(start: Any, logs: Any, event: Event) -> None:
    """The hours between a kill and a resume are no training."""
    resumed = event("resume", 1e5 + 10, step=20)
    run = run_of(start, *logs(10, 50), resumed, *logs(30, 40, after=1e5))
    assert steps_per_second(run) == pytest.approx(2.0)
    assert steps_per_second(run_of(start)) is None
    assert steps_per_second(RunState()) is None


def test_a_step_logged_twice_is_one_line(start: Any, logs: Any, event: Event) -> None:
    run = run_of(start, *logs(10, 20), event("log", 11, step=20, eval_loss=2.9))
    assert len(run.lines) == 2
    assert run.lines[20].values["loss"] == 3.0 and run.lines[20].values["eval_loss"] == 2.9
    run.apply([event("log", 12, step=20, loss=1.5)])
    assert run.last("loss") == (1.5,)
    assert run.last("eval_loss") == (2.9,)


def test_a_new_start_forgets_the_old_run(start: Any, logs: Any) -> None:
    run = run_of(start, *logs(10, 50))
    run.apply([start, *logs(10, 10, loss=4.0)])
    assert run.curve("loss") == [(10, 4.0)]
    assert run.versions == 1


def test_a_loss_that_is_not_finite_is_shown_as_such(start: Any, logs: Any, event: Event) -> None:
    run = run_of(start, *logs(10, 10), event("log", 10, step=20, loss=None))
    assert row(run, None, ZERO)["loss"] == "not finite"
    assert run.curve("loss") == [(10, 3.0), (20, None)]
    assert loss_difference(run, run_of(start, *logs(10, 20, loss=2.0))) == (1.0, 10)
    written_as_nan = run_of(start, event("log", 10, step=20, loss=float("nan")))
    assert row(written_as_nan, None, ZERO)["loss"] == "not finite"


def test_no_common_step_no_difference(start: Any, logs: Any) -> None:
    run, first = run_of(start, *logs(15, 15)), run_of(start, *logs(10, 10))
    assert row(run, first, ZERO)["Δ first"] == "-"
    assert "no step" in difference_note(run, first, "b")


def test_unknown_events_and_damaged_steps_are_left_out(start: Any, event: Event) -> None:
    run = run_of(start, event("surprise", step=1), event("log", step="ten", loss=1.0), event("log"))
    assert run.lines == {}


def test_terms(start: Any, event: Event) -> None:
    values = {"loss/masked_lm": 2.5, "weight/masked_lm": 0.5, "loss/extra": 0.25}
    run = run_of(start, event("log", 5, step=10, loss=2.0, **values))
    assert term_rows(run) == [
        ("masked_lm", "token", "0.5", "2.5000"),
        ("extra", "-", "-", "0.2500"),
    ]
    assert term_rows(run_of(start)) == [("masked_lm", "token", "Constant(1.0)", "-")]


def test_log_rows_have_every_term(start: Any, event: Event) -> None:
    run = run_of(
        start,
        event("log", 5, step=10, loss=2.0, learning_rate=1e-3, grad_norm=0.5),
        event("log", 6, step=1200, loss=1.0, eval_loss=1.5, **{"loss/masked_lm": 1.25}),
    )
    columns = log_columns(run)
    assert columns == ("step", "loss", "eval_loss", "loss/masked_lm", "learning_rate", "grad_norm")
    assert log_row(run.lines[10], columns) == ("10", "2.0000", "-", "-", "0.001", "0.5")
    assert log_row(run.lines[1200], columns) == ("1,200", "1.0000", "1.5000", "1.2500", "-", "-")


def test_phases_are_marks(start: Any, event: Event) -> None:
    run = run_of(
        start, event("phase", 0, step=0, name="base"), event("phase", 5, step=40, name="d")
    )
    assert run.marks == [Mark(0, "base"), Mark(40, "d")]


def test_study_rows(study: dict[str, Any]) -> None:
    assert study_rows(study) == [
        ("tokens", "naive", "3", "3.2500 [3.2000, 3.3000]", "-", "+0.0500 [-0.0100, +0.1100]")
    ]
