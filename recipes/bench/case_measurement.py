"""Times the cases of a suite in turns, beside copies: what the memory of the machine can do."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch

from ..interleaved_timing import Timing, time_interleaved
from ..latency_quantiles import latency_quantiles, ratio_interval
from ..steady_memory import keep_freed_memory
from .bench_report import gate
from .ddl_cases import COMPILED, Action, Case, DdlBenchSettings
from .peak_memory import memory_is_measured_as, peak_memory

# A copy reads and writes every byte.
COPY_TRAFFIC = 2


def timed_cases(cases: Mapping[str, Case]) -> dict[str, Case]:
    """Return the cases that are timed."""
    return {name: case for name, case in cases.items() if case.is_timed}


def clock_of(settings: DdlBenchSettings) -> str:
    """Return the clock results are decided on.

    One thread of a processor is timed by what it used, so neighbours on the machine count less.
    Several threads wait for each other and a GPU works on its own: both by elapsed time.
    """
    return "cpu" if settings.place.type == "cpu" and torch.get_num_threads() == 1 else "wall"


def time_cases(
    cases: Mapping[str, Case], settings: DdlBenchSettings
) -> tuple[dict[str, Timing], dict[int, Timing]]:
    """Time every case once per round, and between them copies of as many bytes.

    The copies are the measured bandwidth: a case whose traffic fits a cache is compared with a
    copy that fits it too.

    Returns:
        Times by name of a case, and by bytes of traffic of a copy.
    """
    if settings.keeps_freed_memory:
        keep_freed_memory()
    actions = {name: synchronous(case.prepare(), settings) for name, case in cases.items()}
    sizes = sorted({case.least_bytes for case in cases.values() if case.least_bytes})
    copies = {
        f"copy of {size} bytes": synchronous(action, settings)
        for size, action in _copies(sizes, settings.place).items()
    }
    timings = time_interleaved({**actions, **copies}, settings.rounds, settings.warmup)
    return (
        {name: timings[name] for name in actions},
        {size: timings[f"copy of {size} bytes"] for size in sizes},
    )


def synchronous(action: Action, settings: DdlBenchSettings) -> Action:
    """Return an action that ends when the device is done."""
    if settings.place.type == "cpu":
        return action

    def wait_for() -> None:
        action()
        torch.cuda.synchronize(settings.place)

    return wait_for


def _copies(sizes: Sequence[int], place: torch.device) -> dict[int, Action]:
    longest = max(sizes, default=0) // COPY_TRAFFIC
    source = torch.ones(longest, dtype=torch.uint8, device=place)
    target = torch.empty_like(source)
    return {
        size: partial(target[: size // COPY_TRAFFIC].copy_, source[: size // COPY_TRAFFIC])
        for size in sizes
    }


def measured_rows(
    suite: str, cases: Mapping[str, Case], settings: DdlBenchSettings
) -> list[dict[str, Any]]:
    """Measure all cases of a suite.

    Returns:
        One row per case: its labels, latencies, throughput, bandwidth beside that of a copy, and
        peak memory.
    """
    timings, copies = time_cases(timed_cases(cases), settings)
    clock = clock_of(settings)
    memory = peak_memory(suite, cases, settings)
    rows = []
    for name, case in cases.items():
        row: dict[str, Any] = {"suite": suite, "case": name, **case.labels, "tokens": case.tokens}
        if name in timings:
            row |= _speed(timings[name], clock, case, copies)
        row["peak_memory_bytes"] = memory.get(name)
        row["peak_memory_is"] = memory_is_measured_as(settings)
        rows.append(row)
    return rows


def _speed(
    timing: Timing, clock: str, case: Case, copies: Mapping[int, Timing]
) -> dict[str, Any]:
    samples = samples_of(timing, clock)
    quantiles = latency_quantiles(samples)
    row: dict[str, Any] = {
        "clock": clock,
        "latency_ms": quantiles,
        "tokens_per_second": 1e3 * case.tokens / quantiles["p50"],
        "least_bytes": case.least_bytes,
    }
    if case.least_bytes:
        copy = latency_quantiles(samples_of(copies[case.least_bytes], clock))["p50"]
        row["gigabytes_per_second"] = case.least_bytes / quantiles["p50"] / 1e6
        row["copy_gigabytes_per_second"] = case.least_bytes / copy / 1e6
        row["share_of_copy"] = copy / quantiles["p50"]
    return {**row, **timing.summary(), "samples_ms": samples}


def samples_of(timing: Timing, clock: str) -> list[float]:
    """Return the times of one clock in milliseconds, in the order they were measured."""
    return [1e3 * seconds for seconds in (timing.cpu if clock == "cpu" else timing.wall)]


def speed_ratio(
    rows: Mapping[str, Mapping[str, Any]],
    ours: str,
    reference: str,
    target: float | None = None,
    tokens: bool = True,
) -> dict[str, Any]:
    """Return how many times faster one case is than another, with the 95 % interval.

    Args:
        rows: name -> row of `measured_rows`.
        ours: name of a case.
        reference: name of the other.
        target: least ratio, where there is one.
        tokens: compare tokens per second, not calls per second.
    """
    fast, slow = rows[ours], rows[reference]
    scale = fast["tokens"] / slow["tokens"] if tokens else 1.0
    measured = scale * slow["latency_ms"]["p50"] / fast["latency_ms"]["p50"]
    low, high = ratio_interval(slow["samples_ms"], fast["samples_ms"])
    row = {"measured": measured} if target is None else gate(measured, target, at_least=True)
    return {**row, "interval": [scale * low, scale * high]}


def share_rows(
    rows: Sequence[Mapping[str, Any]], targets: Mapping[str, float]
) -> dict[str, dict[str, Any]]:
    """Return the share of the copy bandwidth that the compiled cases reach.

    Args:
        rows: of `measured_rows`.
        targets: name of a case -> least share.
    """
    shares: dict[str, dict[str, Any]] = {}
    for row in rows:
        if row.get("mode") != COMPILED or row.get("share_of_copy") is None:
            continue
        share, target = row["share_of_copy"], targets.get(row["case"])
        shares[f"share of copy bandwidth, {row['case']}"] = (
            {"measured": share} if target is None else gate(share, target, at_least=True)
        )
    return shares
