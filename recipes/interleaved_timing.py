"""Timing of several actions in turn, so that noise of the machine meets all of them alike.

Torch-free. Each round runs every action once; rounds start at another action each time, so none is
always timed right after the same neighbour. Medians and quartiles are reported, not means: a
pause of the operating system is an outlier, not a cost of the action.
"""

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple


class Timing(NamedTuple):
    """Seconds of each round of one action.

    Attributes:
        wall: Elapsed time.
        cpu: Time of all threads of this process.
    """

    wall: tuple[float, ...]
    cpu: tuple[float, ...]

    def summary(self) -> dict[str, dict[str, float]]:
        """Return median and quartiles of both clocks, in milliseconds."""
        return {"wall_ms": quartiles(self.wall), "cpu_ms": quartiles(self.cpu)}


def time_interleaved(
    actions: Mapping[str, Callable[[], Any]], rounds: int, warmup: int = 1
) -> dict[str, Timing]:
    """Run every action once per round and record its times.

    Args:
        actions: Name -> call without arguments.
        rounds: Recorded rounds, >= 1.
        warmup: Rounds that are run first and not recorded.

    Raises:
        ValueError: If there is nothing to time.
    """
    if not actions or rounds < 1:
        raise ValueError(f"got {len(actions)} actions and {rounds} rounds; give 1 or more of each")
    names = list(actions)
    wall: dict[str, list[float]] = {name: [] for name in names}
    cpu: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(-warmup, rounds):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            cpu_start, wall_start = time.process_time(), time.perf_counter()
            actions[name]()
            wall_end, cpu_end = time.perf_counter(), time.process_time()
            if turn >= 0:
                wall[name].append(wall_end - wall_start)
                cpu[name].append(cpu_end - cpu_start)
    return {name: Timing(tuple(wall[name]), tuple(cpu[name])) for name in names}


def quartiles(seconds: tuple[float, ...]) -> dict[str, float]:
    """Return median, first and third quartile of times in seconds, as milliseconds."""
    values = sorted(seconds)
    if len(values) == 1:
        low = high = values[0]
    else:
        low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    middle = statistics.median(values)
    return {name: 1e3 * v for name, v in (("median", middle), ("p25", low), ("p75", high))}
