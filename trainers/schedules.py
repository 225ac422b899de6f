"""Schedules: pure functions of the step, torch-free.

A schedule maps `(step, total_steps)` to a number. `step` counts optimizer steps from 0, and
`total_steps` is the length of the run. Because nothing is remembered, a resumed run and every
rank see the same values. Each schedule here is a frozen dataclass, so it prints and compares.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

Schedule = Callable[[int, int], float]


def _progress(step: int, total_steps: int) -> float:
    """Share of the run that is over, in [0, 1]; the last step (total - 1) gives 1."""
    return min(1.0, max(0.0, step / max(1, total_steps - 1)))


def _check_ratio(name: str, value: float) -> None:
    if not 0.0 <= value <= 1.0:
        raise ValueError(f"{name} is {value}, it must lie in [0, 1]")


@dataclass(frozen=True)
class Constant:
    """`f(s) = value`."""

    value: float

    def __call__(self, step: int, total_steps: int) -> float:
        """Return the value at any step."""
        return self.value


@dataclass(frozen=True)
class LinearWarmup:
    """Rises linearly from 0 to `value` over the first share of the run, then stays.

    Formula: `f(s) = value * min(1, (s + 1) / W)` with `W = ceil(warmup_ratio * total_steps)`.
    The first step is already above 0, so no step is wasted.

    Args:
        value: Value after the warm-up.
        warmup_ratio: Share of the run in [0, 1]; 0 means no warm-up.
    """

    value: float
    warmup_ratio: float

    def __post_init__(self) -> None:
        """Check the ratio."""
        _check_ratio("warmup_ratio", self.warmup_ratio)

    def __call__(self, step: int, total_steps: int) -> float:
        """Return the value at `step`."""
        warmup_steps = math.ceil(self.warmup_ratio * total_steps)
        return self.value * min(1.0, (step + 1) / max(1, warmup_steps))


@dataclass(frozen=True)
class CosineInterpolation:
    """Moves from `start` at the first step to `end` at the last along half a cosine.

    Formula: `f(p) = end + (start - end) * (1 + cos(pi p)) / 2` with `p = s / (total_steps - 1)`.
    """

    start: float
    end: float

    def __call__(self, step: int, total_steps: int) -> float:
        """Return the value at `step`."""
        cosine = 0.5 * (1.0 + math.cos(math.pi * _progress(step, total_steps)))
        return self.end + (self.start - self.end) * cosine


@dataclass(frozen=True)
class LateRise:
    """Stays at `start`, then moves linearly to `end` over the last part of the run.

    Formula: `f(p) = start + (end - start) * max(0, 1 - (1 - p) / part)` with
    `p = s / (total_steps - 1)`.

    Args:
        start: Value until the last part begins.
        end: Value at the last step.
        part: Share of the run that the move takes, in (0, 1].
    """

    start: float
    end: float
    part: float

    def __post_init__(self) -> None:
        """Check the part."""
        if not 0.0 < self.part <= 1.0:
            raise ValueError(f"part is {self.part}, it must lie in (0, 1]")

    def __call__(self, step: int, total_steps: int) -> float:
        """Return the value at `step`."""
        left = 1.0 - _progress(step, total_steps)
        return self.start + (self.end - self.start) * max(0.0, 1.0 - left / self.part)


@dataclass(frozen=True)
class Phase:
    """One part of a `Phases` schedule.

    Args:
        ratio: Share of the run in (0, 1].
        schedule: Called with the step and the length *inside* the phase.
    """

    ratio: float
    schedule: Schedule


class Phases:
    """Several schedules one after the other.

    Phase i covers the steps from `round(total * sum of earlier ratios)` to
    `round(total * sum of ratios up to i)`, so the phases fill the run without gaps.

    Args:
        phases: At least one phase; the ratios must sum to 1.

    Raises:
        ValueError: If a ratio is not in (0, 1] or the ratios do not sum to 1.
    """

    def __init__(self, phases: Sequence[Phase]) -> None:
        self.phases = tuple(phases)
        ratios = [phase.ratio for phase in self.phases]
        if any(not 0.0 < ratio <= 1.0 for ratio in ratios) or abs(sum(ratios) - 1.0) > 1e-6:
            raise ValueError(
                f"phase ratios are {ratios}, each must lie in (0, 1] and they must sum to 1"
            )

    def phase_at(self, step: int, total_steps: int) -> tuple[int, int, int]:
        """Locate a step.

        Returns:
            `(phase index, step inside the phase, steps in the phase)`.
        """
        start, reached = 0, 0.0
        for index, phase in enumerate(self.phases):
            reached += phase.ratio
            is_last = index == len(self.phases) - 1
            end = total_steps if is_last else round(total_steps * reached)
            if step < end or is_last:
                return index, step - start, end - start
            start = end
        raise AssertionError("unreachable: the last phase takes every step")

    def __call__(self, step: int, total_steps: int) -> float:
        """Return the value of the phase that `step` falls in."""
        index, local_step, local_total = self.phase_at(step, total_steps)
        return self.phases[index].schedule(local_step, local_total)

    def __repr__(self) -> str:
        """Show the phases."""
        return f"Phases({list(self.phases)!r})"


@dataclass(frozen=True)
class WarmupCosine:
    """Learning-rate multiplier: linear warm-up to 1, then a cosine down to `min_ratio`.

    Formula: with `W = warmup_steps`,
    `f(s) = (s + 1) / (W + 1)` for `s < W`, else
    `f(s) = m + (1 - m) * (1 + cos(pi * (s - W) / max(1, total - 1 - W))) / 2`, `m = min_ratio`.
    For `torch.optim.lr_scheduler.LambdaLR` bind the length: `lambda s: schedule(s, total)`.

    Args:
        warmup_steps: Optimizer steps of warm-up, >= 0.
        min_ratio: Multiplier at the last step, in [0, 1].
    """

    warmup_steps: int = 0
    min_ratio: float = 0.0

    def __post_init__(self) -> None:
        """Check the arguments."""
        if self.warmup_steps < 0:
            raise ValueError(f"warmup_steps is {self.warmup_steps}, it must be 0 or more")
        _check_ratio("min_ratio", self.min_ratio)

    def __call__(self, step: int, total_steps: int) -> float:
        """Return the multiplier at `step`."""
        if step < self.warmup_steps:
            return (step + 1) / (self.warmup_steps + 1)
        decay = CosineInterpolation(1.0, self.min_ratio)
        return decay(step - self.warmup_steps, total_steps - self.warmup_steps)
