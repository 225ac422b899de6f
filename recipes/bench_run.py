"""What `nestling bench` does: sizes, suites, files, and the comparison with a baseline."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from types import ModuleType
from typing import Any

from . import bench_catalogue
from .bench.runs_in_turns import samples_in_turns
from .bench.worker_process import require_worker
from .bench_baseline import (
    SavedCases,
    differences,
    read_baseline,
    require_comparable,
    saved_cases,
)
from .bench_regression import (
    BETWEEN_PROCESSES,
    FAILED,
    KEPT,
    UNDECIDED,
    Comparison,
    Limits,
    compare_samples,
    missing_cases,
)
from .bench_summary import KIND, SCHEMA_VERSION
from .cli_errors import DataError, UsageError
from .evaluation_file import write_json

# The suites of the delta residual, which run where none is named.
DDL_SUITES = ("operator", "block", "compressor", "normalization", "model")
BASELINE_VARIANT = "baseline"
SAVED, IN_TURNS = "a saved file", "runs in turns with the other checkout"


@dataclass(frozen=True)
class BenchRequest:
    """What was asked for on the command line.

    Attributes:
        suites: names; none are those of the delta residual, ``all`` is every one.
        out: a .json file for all suites together, or a folder with one file each.
        iterations: recorded rounds; None keeps those of a suite.
        warmup: rounds before them; None likewise.
        variant: measure this variant and the baseline only.
        is_short: small sizes; None is small where no suite is named.
    """

    suites: tuple[str, ...]
    out: Path
    iterations: int | None = None
    warmup: int | None = None
    variant: str | None = None
    is_short: bool | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """Suites, or ``all``."""
        return self.suites or DDL_SUITES

    def settings_of(self, name: str, module: ModuleType) -> Any:
        """Return the settings of a suite; None where nothing was asked that changes them.

        Raises:
            UsageError: if the suite does not have what was asked for.
        """
        is_short = not self.suites if self.is_short is None else self.is_short
        if is_short and "SHORT" not in vars(module):
            raise UsageError(f"suite {name} has one size only; leave out --short")
        variants = None
        if self.variant is not None:
            variants = tuple(dict.fromkeys((BASELINE_VARIANT, self.variant)))
        asked = {"rounds": self.iterations, "warmup": self.warmup, "variants": variants}
        changes = {key: value for key, value in asked.items() if value is not None}
        if not changes and not is_short:
            return None
        settings = module.SHORT if is_short else module.DEFAULT
        flags = {"rounds": "--iterations", "warmup": "--warmup", "variants": "--variant"}
        known = {field.name for field in fields(settings)}
        for key in changes:
            if key not in known:
                raise UsageError(
                    f"suite {name} has no {flags[key]}; leave it out, or name suites that have "
                    f"it: {', '.join(DDL_SUITES)}"
                )
        return replace(settings, **changes)

    def path_of(self, name: str) -> Path | None:
        """Return the file of one suite; None where one file holds several."""
        if self.out.suffix != ".json":
            return self.out / f"{name}.json"
        return self.out if len(self.names) == 1 and "all" not in self.names else None


def run_suite(module: ModuleType, settings: Any, path: Path | None) -> dict[str, Any]:
    """Run one suite and return its content; ``settings`` None takes its own."""
    content: dict[str, Any] = module.run(path) if settings is None else module.run(path, settings)
    return content


def joined(contents: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return one benchmark file of several suites."""
    suites = [content["suite"] for content in contents]
    last = contents[-1]
    return {
        "schema_version": SCHEMA_VERSION,
        "kind": KIND,
        "suite": " ".join(suites),
        "suites": suites,
        "environment": contents[0]["environment"],
        "threads": last["threads"],
        "load_average_after": last["load_average_after"],
        "settings": {content["suite"]: content["settings"] for content in contents},
        "results": [
            {"suite": content["suite"], **row}
            for content in contents
            for row in content["results"]
        ],
        "summary": {
            f"{content['suite']}, {name}": row
            for content in contents
            for name, row in content["summary"].items()
        },
    }


@dataclass(frozen=True)
class Baseline:
    """What a run is compared with.

    Attributes:
        saved: a file of an earlier run, or a folder of them; or None.
        source: a checkout that is run in turns with this one; or None. It decides where given.
        limits: what may be lost.
        out: where the comparison is written; or None.
    """

    saved: Path | None
    source: Path | None
    limits: Limits
    out: Path | None = None

    @property
    def is_given(self) -> bool:
        """Whether there is anything to compare with."""
        return self.saved is not None or self.source is not None

    def require_complete(self) -> None:
        """Refuse limits without a baseline, and limits that no run could meet or miss.

        Raises:
            UsageError: naming the option and the fix.
        """
        limits = {
            "--min-throughput-ratio": self.limits.min_throughput,
            "--max-p95-latency-ratio": self.limits.max_p95_latency,
        }
        for name, value in limits.items():
            if value is not None and not (math.isfinite(value) and value > 0):
                raise UsageError(f"{name} {value} must be a number above 0, such as 0.9 or 1.2")
        given = [name for name, value in limits.items() if value is not None]
        given += [] if self.out is None else ["--comparison-out"]
        if given and not self.is_given:
            raise UsageError(
                f"{given[0]} needs something to compare with; add --baseline FILE.json or "
                "--baseline-source DIR"
            )

    def require_usable(
        self, modules: Mapping[str, ModuleType], settings: Mapping[str, Any]
    ) -> None:
        """Look at the files before anything is timed.

        Args:
            modules: suite -> its module.
            settings: suite -> what it will run with; None stands for its own.

        Raises:
            UsageError: for a suite that keeps no samples.
            DataError: for a baseline that cannot be used, or that measured something else.
        """
        for name, module in modules.items():
            if self.is_given and "cases" not in vars(module):
                raise UsageError(
                    f"suite {name} keeps no samples to compare; give a baseline to "
                    f"{', '.join(DDL_SUITES)} only"
                )
        if self.saved is not None:
            for suite, cases in read_baseline(self.saved, list(modules)).items():
                current = asdict(settings[suite] or modules[suite].DEFAULT)
                require_comparable(suite, cases.settings, current)
        if self.source is not None:
            require_worker(self.source)

    def compare(self, contents: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Return the regression file: a benchmark file whose rows are ratios to the baseline.

        Args:
            contents: what the suites returned.

        Raises:
            DataError: if the baseline shares no case with them.
        """
        current = {suite: c for content in contents for suite, c in saved_cases(content).items()}
        comparisons: list[Comparison] = []
        notes: list[str] = []
        if self.saved is not None:
            saved = read_baseline(self.saved, list(current))
            notes += _notes(saved, current)
            if self.source is None:
                for suite, cases in saved.items():
                    found = compare_samples(
                        cases.samples,
                        current[suite].samples,
                        self.limits,
                        slack=BETWEEN_PROCESSES,
                    )
                    comparisons += _of_suite(suite, found)
        if self.source is not None:
            for content in contents:
                suite = content["suite"]
                before, now, block = samples_in_turns(self.source, suite, content["settings"])
                notes += _lacking(suite, before, now)
                comparisons += _of_suite(suite, compare_samples(before, now, self.limits, block))
        if not comparisons:
            raise DataError(
                f"baseline {self.source or self.saved} shares no case with this run; write it "
                "again with the same suites, or take another checkout"
            )
        return {
            "schema_version": SCHEMA_VERSION,
            "kind": KIND,
            "suite": "regression",
            "decided_on": SAVED if self.source is None else IN_TURNS,
            "baseline": str(self.source or self.saved),
            "limits": asdict(self.limits),
            "environment": contents[0]["environment"],
            "notes": notes,
            "results": [],
            "summary": {f"{c.case}, {c.measure} over baseline": c.row() for c in comparisons},
        }


def _of_suite(suite: str, comparisons: Sequence[Comparison]) -> list[Comparison]:
    return [replace(c, case=f"{suite}, {c.case}") for c in comparisons]


def _notes(saved: Mapping[str, SavedCases], current: Mapping[str, SavedCases]) -> list[str]:
    """Return what the reader of a comparison with a saved file must know."""
    first = next(iter(saved))
    notes = [
        f"the baseline is from {difference}"
        for difference in differences(saved[first].environment, current[first].environment)
    ]
    for suite, cases in saved.items():
        notes += _lacking(suite, cases.samples, current[suite].samples)
    return notes


def _lacking(
    suite: str, before: Mapping[str, Sequence[float]], now: Mapping[str, Sequence[float]]
) -> list[str]:
    return [f"not in the baseline: {suite}, {case}" for case in missing_cases(before, now)]


def run_bench(
    request: BenchRequest,
    against: Baseline,
    shown: Callable[[str, Mapping[str, Any], Path], None],
) -> tuple[list[dict[str, Any]], dict[str, Any] | None]:
    """Run suites, write their files, and compare them with a baseline where one is given.

    Args:
        request: what to run.
        against: what to compare with.
        shown: called with the name, content and file of every suite when it is done.

    Returns:
        What the suites returned, and the comparison.

    Raises:
        UsageError: for options that do not go together or do not fit a suite.
        DataError: for a baseline that cannot be used; both before anything is timed.
    """
    against.require_complete()
    names = bench_catalogue.chosen_suites(request.names)
    modules = {name: bench_catalogue.bench_module(name) for name in names}
    settings = {name: request.settings_of(name, module) for name, module in modules.items()}
    against.require_usable(modules, settings)
    contents = []
    for name, module in modules.items():
        path = request.path_of(name)
        contents.append(run_suite(module, settings[name], path))
        if path is None:
            # Also after each suite: an interrupted run keeps those that are done.
            write_json(request.out, joined(contents))
        shown(name, contents[-1], path or request.out)
    if not against.is_given:
        return contents, None
    regression = against.compare(contents)
    if against.out is not None:
        write_json(against.out, regression)
    return contents, regression


def verdict_line(regression: Mapping[str, Any]) -> str:
    """Return how many gates were kept, failed or not decided, and on what that rests."""
    verdicts = [row["verdict"] for row in regression["summary"].values()]
    counts = ", ".join(f"{verdicts.count(word)} {word}" for word in (KEPT, FAILED, UNDECIDED))
    return f"gates: {counts}, on {regression['decided_on']} ({regression['baseline']})"


def failed_gates(regression: Mapping[str, Any]) -> list[str]:
    """Return each failed gate with its interval and limit."""
    return [
        f"{name} {row['measured']:.3g} ({row['interval'][0]:.3g} to {row['interval'][1]:.3g}), "
        f"limit {row['target']:g}"
        for name, row in regression["summary"].items()
        if row["verdict"] == FAILED
    ]
