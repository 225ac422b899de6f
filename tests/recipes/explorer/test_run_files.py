import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from nestling.recipes.cli_errors import DataError
from nestling.recipes.explorer.json_results import WatchedResult, read_result
from nestling.recipes.explorer.recipe_highlights import family_in, highlights
from nestling.recipes.explorer.run_files import find_files
from nestling.recipes.explorer.session import READINGS_PER_SEARCH, Session

RECIPE = """# @package _global_
family: delta_encoder
model:
  hidden_size: 64
  init_from: null
  head_budgets:
  - 2
  - 4
  extra_budgets: []
  token_routing: false
data: {broken: [
training:
  lr: 0.004
  phase_ratios: [0.5, 0.5]
"""
Event = Callable[..., dict[str, Any]]
Write = Callable[..., Path]


def write_json(path: Path, content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def test_a_run_folder(tmp_path: Path, start: Any, write: Write, evaluation: Any) -> None:
    write(tmp_path / "tiny" / "events.jsonl", start)
    write_json(tmp_path / "tiny" / "metrics.json", evaluation)
    write_json(tmp_path / "tiny" / "evaluation.json", evaluation)
    (run,) = find_files([tmp_path / "tiny"]).runs
    assert run.name == "tiny" and run.is_given
    assert run.events == tmp_path / "tiny" / "events.jsonl"


def test_a_study_folder(
    tmp_path: Path, start: Any, write: Write, evaluation: Any, study: Any
) -> None:
    write(tmp_path / "tokens" / "nested-0" / "events.jsonl", start)
    write_json(tmp_path / "tokens" / "post-hoc-0" / "metrics.json", evaluation)
    write_json(tmp_path / "compute" / "nested-0" / "metrics.json", {"kind": "finetune"})
    write_json(tmp_path / "study.json", study)
    (tmp_path / "data").mkdir()
    found = find_files([tmp_path])
    assert [run.name for run in found.runs] == ["tokens/nested-0", "tokens/post-hoc-0"]
    assert [run.events is None for run in found.runs] == [False, True]
    assert found.studies == [tmp_path / "study.json"]
    assert not found.runs[0].is_given and found.skipped == []


def test_single_files(
    tmp_path: Path, start: Any, write: Write, evaluation: Any, study: Any, benchmark_file: Any
) -> None:
    paths = [
        write(tmp_path / "a" / "events.jsonl", start),
        write_json(tmp_path / "b" / "metrics.json", evaluation),
        write_json(tmp_path / "other.json", evaluation),
        write_json(tmp_path / "study.json", study),
        write_json(tmp_path / "packing.json", benchmark_file),
    ]
    found = find_files(paths)
    assert [run.name for run in found.runs] == ["a", "b", "other"]
    assert (found.studies, found.benchmarks) == ([paths[3]], [paths[4]])


def test_folders_that_cannot_be_listed_are_left_out(
    tmp_path: Path, start: Any, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "run" / "events.jsonl", start)
    (tmp_path / "locked").mkdir()
    listed = Path.iterdir

    def iterdir(path: Path) -> Any:
        if path.name == "locked":
            raise PermissionError(13, "Permission denied", str(path))
        return listed(path)

    monkeypatch.setattr(Path, "iterdir", iterdir)
    assert [run.name for run in find_files([tmp_path]).runs] == ["run"]


def test_a_folder_of_benchmarks(tmp_path: Path, benchmark_file: Any) -> None:
    for name in ("packing", "step"):
        write_json(tmp_path / f"{name}.json", benchmark_file)
    write_json(tmp_path / "unrelated.json", {"kind": "budgets"})
    assert [path.stem for path in find_files([tmp_path]).benchmarks] == ["packing", "step"]


def test_names_are_unique_and_runs_open_once(tmp_path: Path, start: Any, write: Write) -> None:
    for folder in ("one/run", "two/run"):
        write(tmp_path / folder / "events.jsonl", start)
    paths = [tmp_path / "one/run", tmp_path / "two/run", tmp_path / "one/run/events.jsonl"]
    assert [run.name for run in find_files(paths).runs] == ["one/run", "two/run"]


def test_a_run_that_has_not_begun(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    for path in (tmp_path, tmp_path / "later" / "events.jsonl"):
        (run,) = find_files([path]).runs
        assert run.events is not None and not run.events.exists()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('{"kind": "budgets"}', "kind 'budgets', which is not shown; accepted: metrics.json"),
        ("[]", "kind None"),
        ("{", "is no JSON"),
        ('{"kind": "benchmark", "schema_version": 9, "summary": 1}', "version 9, but version 1"),
        ('{"kind": "evaluation", "schema_version": 1, "budgets": []}', "no 'budgets'"),
    ],
)
def test_files_that_are_refused(content: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    path.write_text(content)
    with pytest.raises(DataError) as raised:
        find_files([path])
    assert words in str(raised.value) and str(path) in str(raised.value)


def test_paths_that_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere does not exist; accepted.*events.jsonl"):
        find_files([tmp_path / "nowhere"])
    with pytest.raises(DataError, match="holds nothing that can be shown"):
        find_files([tmp_path])
    (tmp_path / "metrics.json").write_text("{")
    with pytest.raises(DataError, match="is no JSON"):
        find_files([tmp_path])
    with pytest.raises(DataError, match="cannot be read"):
        read_result(tmp_path)


def test_a_damaged_file_among_others_is_skipped_and_named(
    tmp_path: Path, start: Any, write: Write, study: Any
) -> None:
    write(tmp_path / "run" / "events.jsonl", start)
    write_json(tmp_path / "study.json", {**study, "schema_version": 1})
    write_json(tmp_path / "cell" / "metrics.json", {"kind": "evaluation", "schema_version": 7})
    found = find_files([tmp_path])
    assert len(found.runs) == 1 and found.studies == []
    assert len(found.skipped) == 2
    assert Session([tmp_path]).skipped == found.skipped


def test_a_watched_result_is_read_when_it_changes(tmp_path: Path, evaluation: Any) -> None:
    watched = WatchedResult(tmp_path / "metrics.json")
    assert watched.poll() is None
    write_json(watched.path, evaluation)
    assert watched.poll() == evaluation
    assert watched.poll() is None
    watched.path.write_text("{")
    for _ in range(2):
        with pytest.raises(DataError):
            watched.poll()


def test_highlights_parse_only_two_sections(tmp_path: Path) -> None:
    """`data` of this recipe is no YAML."""
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE)
    assert family_in(path) == "delta_encoder"
    assert highlights(path) == {
        "model.hidden_size": "64",
        "model.head_budgets": "2, 4",
        "training.lr": "0.004",
        "training.phase_ratios": "0.5, 0.5",
    }
    path.write_text("training:\n  lr: [1\n")
    with pytest.raises(DataError, match="section training"):
        highlights(path)
    assert (family_in(tmp_path / "no"), highlights(tmp_path / "no")) == (None, {})


def test_a_session_finds_new_runs(tmp_path: Path, start: Any, write: Write) -> None:
    write(tmp_path / "b" / "events.jsonl", start)
    session = Session([tmp_path])
    write(tmp_path / "a" / "events.jsonl", start)
    new = [session.read_on().new_runs for _ in range(READINGS_PER_SEARCH)]
    assert new == [0] * (READINGS_PER_SEARCH - 1) + [1]
    assert [run.name for run in session.runs] == ["b", "a"]
    assert session.runs[1].state is not None and session.runs[1].state.total_steps == 100


def test_a_session_reads_on_and_names_damage(
    tmp_path: Path, start: Any, event: Event, write: Write, evaluation: Any
) -> None:
    good, bad = (write(tmp_path / name / "events.jsonl", start) for name in ("good", "bad"))
    session = Session([good, bad])
    write(good, event("log", 1, step=10, loss=1.0))
    bad.write_text(bad.read_text() + "broken\n")
    reading = session.read_on()
    assert [line.step for line in reading.changes[0].lines] == [10]
    assert session.runs[1].problem is not None and "line 2" in session.runs[1].problem
    assert session.problem == session.runs[1].problem
    assert session.read_on().changes == {}
    write_json(good.parent / "metrics.json", evaluation)
    assert 0 in session.read_on().changes
    assert session.runs[0].evaluation == evaluation
    with pytest.raises(DataError, match="line 2"):
        Session([good, bad])
    lenient = Session([tmp_path])
    assert [run.problem is None for run in lenient.runs] == [False, True]


def test_metrics_of_other_programs_beside_a_run(tmp_path: Path, start: Any, write: Write) -> None:
    write(tmp_path / "run" / "events.jsonl", start)
    write_json(tmp_path / "run" / "metrics.json", {"kind": "finetune", "schema_version": 1})
    (run,) = Session([tmp_path / "run"]).runs
    assert run.evaluation is None and run.problem is None


def test_the_clock_of_a_session(tmp_path: Path, start: Any, write: Write) -> None:
    path = write(tmp_path / "events.jsonl", start)
    session = Session([path])
    assert session.runs[0].state is not None
    assert session.now() == session.runs[0].state.last_time
    assert Session([path], clock=lambda: 5.0).now() == 5.0
    with pytest.raises(DataError, match="holds no events"):
        Session([tmp_path / "new" / "events.jsonl"], waits=False)
