"""What the events of one run add up to. Pure: no files, no clock, no screen."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any


@dataclass(frozen=True)
class LogLine:
    """One training or evaluation line.

    Attributes:
        step: Optimizer steps taken.
        time: Seconds since 1970.
        values: What was logged; None for a number that was not finite.
    """

    step: int
    time: float
    values: Mapping[str, float | None]


@dataclass(frozen=True)
class Mark:
    """A step at which something happened that a curve should show."""

    step: int
    label: str


@dataclass
class RunState:
    """The events of a run so far.

    Attributes:
        total_steps: Planned steps; None before `train_start`.
        terms: Loss terms as `train_start` declares them.
        lines: Step -> log line, in the order of steps; where a step was logged twice, the later
            values.
        names: Everything that was ever logged.
        marks: Phases and resumes, in order.
        spectral: The `spectral` events by step.
        is_finished: The last step was taken.
        non_finite: The terms that stopped the run, and the outcome; None while all is well.
        began: When this process began (`train_start` or `resume`), and at which step.
        last_time: Time of the newest event.
        last_step: Newest step.
        versions: Grows when lines that were shown are no longer valid.
    """

    total_steps: int | None = None
    terms: list[dict[str, Any]] = field(default_factory=list)
    lines: dict[int, LogLine] = field(default_factory=dict)
    names: set[str] = field(default_factory=set)
    marks: list[Mark] = field(default_factory=list)
    spectral: dict[int, Mapping[str, Any]] = field(default_factory=dict)
    is_finished: bool = False
    non_finite: str | None = None
    began: tuple[int, float] | None = None
    last_time: float | None = None
    last_step: int | None = None
    versions: int = 0

    def apply(self, events: Iterable[Mapping[str, Any]]) -> list[LogLine]:
        """Take in events, in the order of the file.

        Returns:
            The log lines that are new or have changed.
        """
        changed: dict[int, LogLine] = {}
        for event in events:
            seconds = seconds_of(event.get("time"))
            self.last_time = seconds if seconds is not None else self.last_time
            step = event.get("step")
            kind = event["event"]
            if kind == "train_start":
                self._start(event, seconds)
                changed.clear()
                continue
            if not isinstance(step, int) or isinstance(step, bool):
                continue
            if kind == "resume":
                self._resume(step, seconds)
                changed = {at: line for at, line in changed.items() if at <= step}
            elif kind == "log":
                changed[step] = self._log(step, seconds, event)
            elif kind == "phase":
                self.marks.append(Mark(step, str(event.get("name"))))
            elif kind == "spectral":
                self.spectral[step] = event
            elif kind == "non_finite_loss":
                terms = ", ".join(map(str, event.get("terms") or ())) or "the gradient"
                self.non_finite = f"{terms} at step {step}; {event.get('outcome', '')}".rstrip("; ")
            elif kind == "train_end":
                self.is_finished = True
            self.last_step = step
        return list(changed.values())

    def _start(self, event: Mapping[str, Any], seconds: float | None) -> None:
        """Begin anew: an event file that a run without a checkpoint goes on in starts again."""
        versions = self.versions + bool(self.lines)
        fresh = RunState(versions=versions, last_time=self.last_time, last_step=0)
        vars(self).update(vars(fresh))
        total = event.get("total_steps")
        self.total_steps = total if isinstance(total, int) else None
        self.terms = [dict(term) for term in event.get("terms") or () if isinstance(term, Mapping)]
        self.began = None if seconds is None else (0, seconds)

    def _resume(self, step: int, seconds: float | None) -> None:
        """Leave the steps that the interrupted run took after its checkpoint: they are redone."""
        stale = [at for at in self.lines if at > step]
        for at in stale:
            del self.lines[at]
        self.versions += bool(stale)
        self.spectral = {at: event for at, event in self.spectral.items() if at <= step}
        self.marks = [mark for mark in self.marks if mark.step <= step]
        self.marks.append(Mark(step, "resume"))
        self.is_finished, self.non_finite = False, None
        self.began = None if seconds is None else (step, seconds)

    def _log(self, step: int, seconds: float | None, event: Mapping[str, Any]) -> LogLine:
        before = self.lines.get(step)
        values = {
            name: number(value)
            for name, value in event.items()
            if name not in ("schema_version", "event", "time", "step")
            and (value is None or isinstance(value, int | float))
        }
        # Training and evaluation of one step are two events.
        line = LogLine(
            step,
            seconds if seconds is not None else (self.last_time or 0.0),
            {**(before.values if before else {}), **values},
        )
        newest = next(reversed(self.lines), step)
        self.lines[step] = line
        self.names.update(values)
        if step < newest and before is None:
            self.lines = dict(sorted(self.lines.items()))
        return line

    def curve(self, name: str) -> list[tuple[float, float | None]]:
        """Return (step, value) of every line that has `name`; None where it was not finite."""
        return [
            (float(step), line.values[name])
            for step, line in self.lines.items()
            if name in line.values
        ]

    def last(self, name: str) -> tuple[float | None] | None:
        """Return the newest value of `name` as a tuple of one; None where it was never logged.

        The value is None where it was not finite.
        """
        if name not in self.names:
            return None
        lines = reversed(self.lines.values())
        return next(((line.values[name],) for line in lines if name in line.values), None)

    def term_names(self) -> list[str]:
        """Return the loss terms, the declared ones first."""
        logged = {name.removeprefix("loss/") for name in self.names if name.startswith("loss/")}
        declared = [str(term.get("name")) for term in self.terms]
        return list(dict.fromkeys([*declared, *sorted(logged)]))


def number(value: object) -> float | None:
    """Return a finite number as a float, anything else as None."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def seconds_of(time: object) -> float | None:
    """Return an ISO time as seconds since 1970; None where it is none."""
    try:
        return datetime.fromisoformat(str(time)).timestamp()
    except ValueError:
        return None
