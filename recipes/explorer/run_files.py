"""What the paths on the command line are: runs, folders of runs, or files of results."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path

from ..bench_summary import KIND as BENCHMARK
from ..cli_errors import DataError
from ..ddl.original_config import VARIANT_SLUGS
from ..ddl.original_report import MANIFEST, REPORT, read_manifest
from ..evaluation_file import KIND as EVALUATION
from .json_results import ACCEPTED, ORIGINAL, STUDY, OtherKindError, read_result

EVENTS, METRICS, RECIPE = "events.jsonl", "metrics.json", "recipe.yaml"
# The cells of a study lie at TABLE/METHOD-SEED.
DEPTH = 2


@dataclass(frozen=True)
class RunFiles:
    """One row of the dashboard.

    Attributes:
        name: What it is called on screen; unique.
        events: The event file; None for an evaluation or a report without events. It need not
            exist yet.
        metrics: The evaluation; it need not exist.
        recipe: The resolved recipe; it need not exist.
        is_given: Whether the user named it, not a folder above it: then damage is an error, else
            only this row is unreadable.
        report: A file of the original tool that stands in for events.
        report_number: Which of the reports in that file.
    """

    name: str
    events: Path | None
    metrics: Path
    recipe: Path
    is_given: bool = True
    report: Path | None = None
    report_number: int = 0

    @property
    def key(self) -> tuple[Path, int]:
        """What makes two rows the same: the file, and which of its reports."""
        return (self.events or self.report or self.metrics).resolve(), self.report_number


@dataclass
class Found:
    """Everything that was opened.

    Attributes:
        runs: The runs, in the order they were given, those of one folder by name.
        studies: Files of studies.
        benchmarks: Files of benchmarks.
        skipped: Why files in the folders are not shown, one line each.
    """

    runs: list[RunFiles] = field(default_factory=list)
    studies: list[Path] = field(default_factory=list)
    benchmarks: list[Path] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)


def find_files(paths: Sequence[Path]) -> Found:
    """Look at each path.

    A missing `events.jsonl` is a run that has not begun; anything else that is missing is an error.

    Raises:
        DataError: For a path that is missing or holds nothing that can be shown.
    """
    found = Found()
    for path in paths:
        if path.is_dir():
            _add_folder(path, found)
        elif path.suffix == ".jsonl":
            found.runs.append(_run(path.parent, path.parent.resolve().name, path))
        elif path.name == MANIFEST:
            read_manifest(path.parent)  # damaged, it says so; what was measured lies beside it
            _add_folder(path.parent, found)
        else:
            _add_result(path, str(read_result(path)["kind"]), found)
    unique: dict[tuple[Path, int], RunFiles] = {}
    for run in found.runs:
        unique.setdefault(run.key, run)
    found.runs = _with_unique_names(list(unique.values()))
    found.studies = list(dict.fromkeys(found.studies))
    found.benchmarks = list(dict.fromkeys(found.benchmarks))
    return found


def _run(folder: Path, name: str, events: Path | None) -> RunFiles:
    return RunFiles(name, events, folder / METRICS, folder / RECIPE)


def _add_folder(folder: Path, found: Found) -> None:
    before = len(found.runs) + len(found.studies) + len(found.benchmarks)
    before_runs = len(found.runs)
    own_name = folder.resolve().name
    if _is_run(folder):
        found.runs.append(_run_of(folder, own_name))
    else:
        for inner in _folders_below(folder, DEPTH):
            if _is_run(inner):
                run = _run_of(inner, inner.relative_to(folder).as_posix())
                found.runs.append(replace(run, is_given=False))
            else:
                looks = (_look(inner / name)[1] for name in (METRICS, REPORT))
                found.skipped += [problem for problem in looks if problem is not None]
    for path in sorted(folder.glob("*.json")):
        kind, problem = _look(path)
        if problem is not None and not (path.name == METRICS and _is_run(folder)):
            found.skipped.append(problem)
        # An evaluation beside the events of a run is that of one of its models, and a comparison
        # beside the folders of its runs says the same as these.
        is_covered = {EVALUATION: _is_run(folder), ORIGINAL: len(found.runs) > before_runs}
        if kind is not None and not is_covered.get(kind, False):
            _add_result(path, kind, found)
    if len(found.runs) + len(found.studies) + len(found.benchmarks) > before:
        return
    if found.skipped:
        raise DataError(found.skipped[0])
    if (folder / RECIPE).is_file():  # written before the first event
        found.runs.append(_run(folder, own_name, folder / EVENTS))
        return
    raise DataError(
        f"{folder} holds nothing that can be shown; {ACCEPTED}. To wait for a run that has not "
        f"begun, give {folder / EVENTS}"
    )


def _is_run(folder: Path) -> bool:
    return (
        (folder / EVENTS).is_file()
        or _look(folder / METRICS)[0] == EVALUATION
        or _look(folder / REPORT)[0] == ORIGINAL
    )


def _run_of(folder: Path, name: str) -> RunFiles:
    events = folder / EVENTS
    if events.is_file():
        return _run(folder, name, events)
    has_report = _look(folder / REPORT)[0] == ORIGINAL
    return replace(_run(folder, name, None), report=folder / REPORT if has_report else None)


def _folders_below(folder: Path, depth: int) -> Iterator[Path]:
    try:
        inside = sorted(path for path in folder.iterdir() if path.is_dir())
    except OSError:
        return  # not ours to read, or removed since it was listed
    for inner in inside:
        yield inner
        if depth > 1 and not _is_run(inner):
            yield from _folders_below(inner, depth - 1)


def _add_result(path: Path, kind: str, found: Found) -> None:
    if kind == STUDY:
        found.studies.append(path)
    elif kind == BENCHMARK:
        found.benchmarks.append(path)
    elif kind == ORIGINAL:
        found.runs += _runs_of_reports(path)
    else:
        name = path.resolve().parent.name if path.name == METRICS else path.stem
        found.runs.append(RunFiles(name, None, path, path.parent / RECIPE))


def _runs_of_reports(path: Path) -> Iterator[RunFiles]:
    """Yield a row for each report; one that is damaged does not hide the others."""
    if path.name == REPORT:
        yield replace(_run(path.parent, path.resolve().parent.name, None), report=path)
        return
    variants = [str(one["variant"]) for one in read_result(path)["reports"]]
    names = [VARIANT_SLUGS.get(variant, variant) for variant in variants]
    for number, name in enumerate(names):
        if names.count(name) > 1:
            name = f"{name} #{names[:number].count(name) + 1}"
        # A sweep writes the folder of each variant beside the comparison.
        run = _run(path.parent / name, name, None)
        is_given = len(names) == 1
        yield replace(run, report=path, report_number=number, is_given=is_given)


def _look(path: Path) -> tuple[str | None, str | None]:
    """Return the kind of a file that lies in a folder, and why it cannot be shown if it is ours."""
    try:
        status = path.stat()
    except OSError:
        return None, None
    return _look_at_version(path, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=4096)
def _look_at_version(path: Path, size: int, modified: int) -> tuple[str | None, str | None]:
    # Folders are looked through again and again while runs are watched.
    try:
        return str(read_result(path)["kind"]), None
    except OtherKindError:
        return None, None
    except DataError as error:
        return None, str(error)


def _with_unique_names(runs: list[RunFiles]) -> list[RunFiles]:
    """Tell runs of one name apart by the folder above, or else by the path."""
    for number in range(2):
        counts = Counter(run.name for run in runs)
        runs = [
            run if counts[run.name] == 1 else replace(run, name=_longer_name(run, number))
            for run in runs
        ]
    return runs


def _longer_name(run: RunFiles, attempt: int) -> str:
    folder = run.metrics.resolve().parent
    return f"{folder.parent.name}/{run.name}" if attempt == 0 else f"{run.key[0]} {run.name}"
