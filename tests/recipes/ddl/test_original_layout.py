import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from nestling.recipes.cli_errors import DataError
from nestling.recipes.ddl.original_layout import (
    Evaluation,
    FinishedRun,
    training_report,
    write_original_layout,
    write_training_comparison,
)
from nestling.recipes.ddl.original_report import (
    read_manifest,
    read_training_comparison,
    read_training_report,
)
from safetensors.torch import load_file, save_file

from .conftest import RUST_CONFIG


def make_model(folder: Path, value: float) -> Path:
    folder.mkdir(parents=True)
    save_file({"weight": torch.full((3,), value)}, folder / "model.safetensors")
    return folder


def test_a_run_in_the_original_layout(tmp_path: Path, finished_run: FinishedRun) -> None:
    make_model(tmp_path / "model", 1.0)
    best = make_model(tmp_path / "best", 2.0)
    state = torch.ones(4)
    write_original_layout(
        tmp_path,
        finished_run,
        best_model_dir=best,
        optimizer_state={"a.exp_avg": state, "b.exp_avg": state},
    )
    manifest = read_manifest(tmp_path)
    assert manifest["variant"] == "ddl-cc-ec" and manifest["config"] == RUST_CONFIG
    assert manifest["num_params"] == 1234
    weights = tmp_path / f"{manifest['weights_stem']}.safetensors"
    assert load_file(weights)["weight"].tolist() == [1.0] * 3
    assert weights.stat().st_ino == (tmp_path / "model" / "model.safetensors").stat().st_ino
    inner = tmp_path / "best_validation"
    assert load_file(inner / "model.safetensors")["weight"].tolist() == [2.0] * 3
    assert read_manifest(inner) == manifest
    assert set(load_file(tmp_path / "optimizer_state.safetensors")) == {"a.exp_avg", "b.exp_avg"}
    assert json.loads((tmp_path / "manifest.json").read_text())["variant"] == "DdlMatrixChannelEc"
    assert read_training_report(inner) == read_training_report(tmp_path)


def test_writing_again_replaces(tmp_path: Path, finished_run: FinishedRun) -> None:
    make_model(tmp_path / "model", 1.0)
    other = make_model(tmp_path / "other", 3.0)
    write_original_layout(tmp_path, finished_run)
    write_original_layout(tmp_path, finished_run, model_dir=other)
    assert load_file(tmp_path / "model.safetensors")["weight"].tolist() == [3.0] * 3
    assert load_file(tmp_path / "model" / "model.safetensors")["weight"].tolist() == [1.0] * 3


def test_the_report_of_a_run(finished_run: FinishedRun) -> None:
    report = training_report(finished_run)
    assert len(report) == 19
    # Nothing was measured on training batches at the start, so the first logged loss stands in.
    assert report["initial_train"]["loss"] == 5.0
    assert report["final_train"]["loss"] == 4.4
    assert report["initial_validation"]["loss"] == 5.6  # type: ignore[index]
    assert report["final_validation"]["loss"] == 5.2  # type: ignore[index]
    assert (report["best_validation_step"], report["best_validation"]["loss"]) == (4, 5.1)  # type: ignore[index]
    assert report["best_validation_spectral"] is None
    assert report["final_validation_spectral"]["beta_per_layer"] == pytest.approx([0.4, 1.7])  # type: ignore[index]
    assert [line["step"] for line in report["history"]] == [0, 4, 8]
    middle = report["history"][1]
    assert (middle["train_loss"], middle["validation_loss"], middle["learning_rate"]) == (
        5.0,
        5.1,
        1e-3,
    )


def test_report_and_best_folder_are_of_the_same_model(
    tmp_path: Path, finished_run: FinishedRun
) -> None:
    """The trainer keeps no model of step 0, however good that was."""
    first, *later = finished_run.evaluations
    run = replace(
        finished_run, evaluations=[replace(first, validation={"loss": 4.0}), *later]
    )
    make_model(tmp_path / "model", 1.0)
    best = make_model(tmp_path / "best", 2.0)
    report = write_original_layout(tmp_path, run, best_model_dir=best)
    assert (report["best_validation_step"], report["best_validation"]["loss"]) == (4, 5.1)  # type: ignore[index]
    assert report["initial_validation"]["loss"] == 4.0  # type: ignore[index]
    assert training_report(run)["best_validation_step"] == 0


def test_a_comparison_is_read_back(tmp_path: Path, finished_run: FinishedRun) -> None:
    report = training_report(finished_run)
    path = write_training_comparison(tmp_path, [report, {**report, "variant": "baseline"}])
    assert [one["variant"] for one in read_training_comparison(path)] == ["ddl-cc-ec", "baseline"]
    with pytest.raises(DataError, match="at least one report"):
        write_training_comparison(tmp_path, [])


@pytest.mark.parametrize(
    "change, named",
    [
        ({"training": {"max_steps": 3}}, "lack eval_interval"),
        ({"evaluations": []}, "needs an evaluation"),
        ({"log": []}, "the log is empty"),
        ({"log": [{"step": 1, "loss": None}]}, "initial_train.loss is None"),
        ({"evaluations": [Evaluation(1, validation={"loss": float("nan")})]}, "loss is nan"),
        ({"variant": "mhc"}, "'mhc' must be one of"),
    ],
)
def test_what_cannot_be_written_is_one_line(
    finished_run: FinishedRun, change: dict[str, Any], named: str
) -> None:
    with pytest.raises(DataError, match=named) as caught:
        training_report(replace(finished_run, **change))
    assert "\n" not in str(caught.value)


def test_weights_in_several_files_are_refused(tmp_path: Path, finished_run: FinishedRun) -> None:
    (tmp_path / "model").mkdir()
    with pytest.raises(DataError, match="as one safetensors file"):
        write_original_layout(tmp_path, finished_run)
    assert not (tmp_path / "manifest.json").exists()
