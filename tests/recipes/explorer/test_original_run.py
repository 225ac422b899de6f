import json
from pathlib import Path
from typing import Any

import pytest
from nestling.recipes.cli_errors import DataError
from nestling.recipes.ddl.original_report import TrainingReport, checked_report
from nestling.recipes.explorer.json_results import read_result
from nestling.recipes.explorer.original_run import events_of
from nestling.recipes.explorer.run_files import find_files
from nestling.recipes.explorer.run_state import RunState
from nestling.recipes.explorer.session import Session
from nestling.recipes.explorer.views import spectral_view
from rich.console import Console

SNAPSHOT = {"beta_per_layer": [0.4, 1.8], "k_eigenvalue_per_layer": [0.6, -0.8]}


@pytest.fixture
def report() -> dict[str, Any]:
    """As the original tool writes it; of its history lines only some keys are known."""
    return {
        "variant": "DdlMatrixToken",
        "config": {"d_model": 64, "head_dim": None, "embed_conv": False},
        "training": {"max_steps": 8, "learning_rate": 0.001},
        "num_params": 1234,
        "train_dataset": {},
        "steps_completed": 8,
        "initial_train": {"loss": 5.5},
        "initial_validation": {"loss": 5.6},
        "final_train": {"loss": 4.4},
        "final_validation": {"loss": 4.7},
        "best_validation": {"loss": 4.6},
        "best_validation_step": 6,
        "initial_train_spectral": {"beta_per_layer": [0.5, 0.5]},
        "history": [
            {"step": 4, "train_loss": 5.0, "validation_loss": None, "learning_rate": 1e-3},
            {"step": 6, "train": {"loss": 4.8}, "validation": {"loss": 4.6}, "tokens": 64},
            {"step": 8, "loss": 4.5, "validation_spectral": SNAPSHOT, "train_spectral": {}},
        ],
    }


def write(path: Path, content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def checked(report: dict[str, Any]) -> TrainingReport:
    return checked_report(report, Path("training_report.json"))


def test_history_becomes_curves(report: dict[str, Any]) -> None:
    state = RunState()
    state.apply(events_of(checked(report)))
    assert state.curve("loss") == [(0, 5.5), (4, 5.0), (6, 4.8), (8, 4.5)]
    assert state.curve("eval_loss") == [(0, 5.6), (6, 4.6), (8, 4.7)]
    assert state.curve("learning_rate") == [(4, 1e-3)]
    assert (state.total_steps, state.is_finished, state.last_step) == (8, True, 8)
    assert sorted(state.spectral) == [0, 8]


def test_a_spectrum_of_the_history_comes_before_one_beside_it(report: dict[str, Any]) -> None:
    report["final_train_spectral"] = {"beta_per_layer": [1.0, 1.0]}
    report["history"][-1]["train_spectral"] = {"beta_per_layer": [0.1, 0.1]}
    state = RunState()
    state.apply(events_of(checked(report)))
    assert [layer["beta"]["mean"] for layer in state.spectral[8]["layers"]] == [0.4, 1.8]


def test_a_lost_loss_is_a_gap(report: dict[str, Any]) -> None:
    report["history"][0]["train_loss"] = None
    state = RunState()
    state.apply(events_of(checked(report)))
    assert state.curve("loss")[1] == (4, None)


def test_means_are_shown_and_nothing_is_said_to_be_missing(report: dict[str, Any]) -> None:
    state = RunState()
    state.apply(events_of(checked(report)))
    console = Console(width=140, color_system=None)
    with console.capture() as capture:
        console.print(spectral_view(state, 134))
    text = capture.get()
    row = next(line for line in text.splitlines() if line.startswith(" 1 mean"))
    assert "1.80" in row and "means only" in row and "?" not in row
    assert "-0.8" in text and "regimes are no shares" not in text


def test_a_run_folder(tmp_path: Path, report: dict[str, Any]) -> None:
    write(tmp_path / "tc" / "training_report.json", report)
    write(tmp_path / "tc" / "manifest.json", {"variant": "DdlMatrixToken"})
    session = Session([tmp_path / "tc"], waits=False)
    (run,) = session.runs
    assert (run.name, run.family(), run.problem) == ("tc", "ddl", None)
    assert run.state is not None and run.state.last("loss") == (4.5,)
    assert run.highlights() == {
        "model.d_model": "64",
        "training.max_steps": "8",
        "training.learning_rate": "0.001",
    }
    assert session.first() is run


def test_a_comparison(tmp_path: Path, report: dict[str, Any]) -> None:
    other = {**report, "variant": "Baseline"}
    lost = {**report, "variant": "ddl", "final_train": {"loss": None}}
    path = write(tmp_path / "training_comparison.json", {"reports": [report, other, lost, other]})
    session = Session([path])
    assert [run.name for run in session.runs] == [
        "ddl-tokenconv",
        "baseline #1",
        "ddl",
        "baseline #2",
    ]
    assert [run.problem is None for run in session.runs] == [True, True, False, True]
    assert "final_train.loss is None" in str(session.runs[2].problem)


def test_a_sweep_shows_each_run_once(tmp_path: Path, report: dict[str, Any]) -> None:
    write(tmp_path / "ddl-tokenconv" / "training_report.json", report)
    write(tmp_path / "training_comparison.json", [report])
    (run,) = find_files([tmp_path]).runs
    assert run.name == "ddl-tokenconv"
    assert run.report == tmp_path / "ddl-tokenconv" / "training_report.json"
    # The file alone, in a folder without the runs.
    write(tmp_path / "elsewhere" / "training_comparison.json", [report, report])
    assert len(find_files([tmp_path / "elsewhere"]).runs) == 2


def test_events_come_before_the_report(tmp_path: Path, report: dict[str, Any]) -> None:
    write(tmp_path / "training_report.json", report)
    write(tmp_path / "events.jsonl", "")
    (run,) = find_files([tmp_path]).runs
    assert run.events is not None and run.report is None


@pytest.mark.parametrize("name", ["training_report.json", "training_comparison.json"])
def test_a_file_that_was_cut_short_is_one_line(
    tmp_path: Path, report: dict[str, Any], name: str
) -> None:
    path = write(tmp_path / name, json.dumps(report)[:-30])
    for given in (path, tmp_path):
        with pytest.raises(DataError, match="is no JSON") as caught:
            find_files([given])
        assert "\n" not in str(caught.value) and name in str(caught.value)


def test_a_report_that_is_written_again_is_read_again(
    tmp_path: Path, report: dict[str, Any]
) -> None:
    path = write(tmp_path / "training_report.json", report)
    session = Session([path])
    write(path, json.dumps(report)[:-30])
    session.read_on()
    assert session.problem is not None and "is no JSON" in session.problem
    report["history"] = [{"step": 8, "loss": 4.25}]
    write(path, report)
    assert session.read_on().changes[0].lines and session.problem is None
    state = session.runs[0].state
    assert state is not None and state.curve("loss") == [(0, 5.5), (8, 4.25)]


def test_other_json_is_still_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "manifest.json", {"variant": "ddl", "config": {}})
    with pytest.raises(DataError, match="which is not shown"):
        read_result(path)


def test_a_manifest_opens_what_was_measured_beside_it(
    tmp_path: Path, report: dict[str, Any]
) -> None:
    manifest = {"variant": "DdlVector", "config": {}, "num_params": 1, "weights_stem": "model"}
    path = write(tmp_path / "run" / "manifest.json", manifest)
    with pytest.raises(DataError, match="holds nothing that can be shown"):
        find_files([path])
    write(path.parent / "training_report.json", report)
    assert [run.report for run in find_files([path]).runs] == [path.parent / "training_report.json"]
    write(path, '{"variant": "DdlV')
    with pytest.raises(DataError, match="cut short"):
        find_files([path])
    path.unlink()
    with pytest.raises(DataError, match="does not exist"):
        find_files([path])
