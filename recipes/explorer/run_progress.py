"""How far a run is, how fast, and whether it still runs. Pure: the time is an argument."""

from itertools import islice, pairwise

from .run_state import LogLine, RunState

WAITING, RUNNING, FINISHED, STOPPED, NON_FINITE, MEASURED = (
    "waiting",
    "running",
    "finished",
    "stopped",
    "non-finite loss",
    "measured",
)
# A run is called stopped after so many usual intervals between lines, but not before this time:
# evaluations and checkpoints make longer pauses.
PATIENCE_INTERVALS, PATIENCE_SECONDS = 10, 120.0
# The usual interval is the median of the last so many.
USUAL_INTERVALS = 100
# The first line may wait for compilation.
FIRST_LINE_SECONDS = 900.0
# Speed is that of the last so many intervals.
SPEED_INTERVALS = 20


def state_of(run: RunState, now: float) -> str:
    """Return the one word for what a run does.

    Args:
        run: The run.
        now: Seconds since 1970, from the clock that also wrote the events.
    """
    if run.non_finite is not None:
        return NON_FINITE
    if run.is_finished:
        return FINISHED
    if run.last_time is None:
        return WAITING
    return STOPPED if now - run.last_time > patience(run) else RUNNING


def patience(run: RunState) -> float:
    """Return for how many seconds a run may write nothing before it counts as stopped."""
    times = sorted(line.time for line in _newest(run, USUAL_INTERVALS + 1))
    gaps = sorted(after - before for before, after in pairwise(times))
    if not gaps:
        return FIRST_LINE_SECONDS
    return max(PATIENCE_SECONDS, PATIENCE_INTERVALS * gaps[len(gaps) // 2])


def _newest(run: RunState, count: int) -> list[LogLine]:
    return list(islice(reversed(run.lines.values()), count))


def steps_per_second(run: RunState) -> float | None:
    """Return the speed over the last lines of this process; None before there are two points."""
    if run.began is None:
        return None
    newest = reversed(_newest(run, SPEED_INTERVALS + 1))
    recent = [(line.step, line.time) for line in newest if line.time > run.began[1]]
    points = [run.began, *recent][-SPEED_INTERVALS - 1 :]
    steps, seconds = points[-1][0] - points[0][0], points[-1][1] - points[0][1]
    return steps / seconds if steps > 0 and seconds > 0 else None


def seconds_left(run: RunState, now: float) -> float | None:
    """Return the time to the last step at the present speed; None unless the run is running."""
    speed = steps_per_second(run)
    if state_of(run, now) != RUNNING or speed is None or run.total_steps is None:
        return None
    return max(0, run.total_steps - (run.last_step or 0)) / speed


def loss_difference(run: RunState, first: RunState) -> tuple[float, int] | None:
    """Return the loss above that of `first`, at the last step both have logged.

    The last losses of two runs that are not equally far say nothing about each other.
    """
    theirs = dict(first.curve("loss"))
    for step, loss in reversed(run.curve("loss")):
        reference = theirs.get(step)
        if loss is not None and reference is not None:
            return loss - reference, int(step)
    return None
