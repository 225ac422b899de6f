"""What is left of a dense delta in fewer numbers, on one tiny trained model."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from nestling.configuration.delta_budget import DeltaBudget
from nestling.modeling import convert_delta
from nestling.recipes.cli_errors import ModelFolderError, UsageError
from nestling.recipes.delta_encoder.conversion_study import (
    ConversionStudy,
    main,
    run_conversion_study,
)
from nestling.recipes.delta_encoder.conversion_table import conversion_table
from nestling.recipes.delta_encoder.evaluation_inputs import open_run
from nestling.recipes.delta_encoder.train import train
from nestling.recipes.evaluation_file import read_evaluation
from nestling.recipes.recipe_loader import load_recipe
from nestling.trainers.losses.masked_lm import IGNORED_LABEL
from tiny_run import TINY_RUN

FORMS = ("low-rank 4", "dictionary 8x8")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dense") / "model-0"
    train(load_recipe([*TINY_RUN, f"output_dir={folder}"]))
    return folder


@pytest.fixture(scope="module")
def output(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("conversion")
    pattern = str(model).replace("model-0", "model-{seed}")
    run_conversion_study(ConversionStudy(pattern, FORMS, (0,), steps=3), folder)
    return folder


@pytest.fixture(scope="module")
def summary(output: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((output / "conversion_study.json").read_text())
    return content


def _loss(model: Any, folder: Path, budget: DeltaBudget) -> float:
    total, tokens = 0.0, 0
    with torch.no_grad():
        for batch in open_run(folder).loader:
            count = int((batch["labels"] != IGNORED_LABEL).sum())
            total += float(model(**batch, budget=budget).loss) * count
            tokens += count
    return total / tokens


def test_losses_are_those_of_the_converted_model(model: Path, summary: dict[str, Any]) -> None:
    dense = open_run(model).model
    whole = DeltaBudget.full(dense.config)
    heads, channels = dense.config.num_attention_heads, dense.config.intermediate_size
    converted = convert_delta(
        dense, delta_kind="low_rank", delta_rank=4, base_attention_heads=heads // 2,
        base_intermediate_size=channels // 2,
    )  # fmt: skip
    found = summary["forms"]["low-rank 4"]
    assert summary["dense"]["largest"]["mean"] == pytest.approx(_loss(dense, model, whole))
    assert found["converted"]["before"]["mean"] == pytest.approx(
        _loss(converted.model, model, whole)
    )
    shares = list(converted.lost.values())
    assert found["held"]["mean"] == pytest.approx(1 - sum(shares) / len(shares))
    base, largest = (summary["dense"][end]["mean"] for end in ("base", "largest"))
    recovered = (base - found["converted"]["after"]["mean"]) / (base - largest)
    assert found["converted"]["recovered_after"]["mean"] == pytest.approx(recovered)
    minus = found["converted"]["after"]["mean"] - found["fresh"]["after"]["mean"]
    assert found["converted_minus_fresh"]["mean"] == pytest.approx(minus)


def test_training_moves_the_delta_alone(output: Path, summary: dict[str, Any]) -> None:
    """The base slice has the loss it had in the dense model, in every run; the largest has not."""
    base = summary["dense"]["base"]["mean"]
    runs = [place for start in ("converted", "fresh") for place in output.glob(f"{start}-*")]
    assert len(runs) == 4
    for run in runs:
        before, after = (
            {entry["budget"]: entry["cross_entropy"] for entry in read_evaluation(file)["budgets"]}
            for file in (run / "start" / "metrics.json", run / "metrics.json")
        )
        assert before[summary["base"]] == pytest.approx(base, abs=1e-6)
        assert after[summary["base"]] == pytest.approx(base, abs=1e-6)
        assert after[summary["largest"]] != before[summary["largest"]]


def test_a_fresh_delta_starts_as_the_base_slice(summary: dict[str, Any]) -> None:
    for entry in summary["forms"].values():
        assert entry["fresh"]["recovered_before"]["mean"] == pytest.approx(0, abs=1e-4)


def test_finished_cells_are_not_run_again(model: Path, output: Path) -> None:
    times = {file: file.stat().st_mtime_ns for file in output.glob("*/metrics.json")}
    pattern = str(model).replace("model-0", "model-{seed}")
    run_conversion_study(ConversionStudy(pattern, FORMS, (0,), steps=3), output)
    assert len(times) == 4
    assert times == {file: file.stat().st_mtime_ns for file in output.glob("*/metrics.json")}


def test_table(summary: dict[str, Any]) -> None:
    table = conversion_table(summary)
    assert "| low-rank 4 | " in table and "fresh, after 3 steps" in table
    assert len(table.splitlines()[0].split("|")) == len(table.splitlines()[2].split("|"))


def test_bad_requests_are_refused(
    model: Path, output: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UsageError, match="form 'rank' must be one of low-rank 4"):
        run_conversion_study(ConversionStudy(str(model), ("rank",), (0,)), tmp_path)
    with pytest.raises(UsageError, match="--steps is 0, it must be 1 or more"):
        run_conversion_study(ConversionStudy(str(model), FORMS, (0,), steps=0), tmp_path)
    with pytest.raises(UsageError, match=r"--set data.max_bytes=5 .*give evaluation keys"):
        run_conversion_study(
            ConversionStudy(str(model), FORMS, (0,), overrides=("data.max_bytes=5",)), tmp_path
        )
    with pytest.raises(UsageError, match=r"one model for 2 seeds; put \{seed\}"):
        run_conversion_study(ConversionStudy(str(model), FORMS, (0, 1)), tmp_path)
    with pytest.raises(UsageError, match=r"training.max_steps.*4"):
        run_conversion_study(ConversionStudy(str(model), FORMS, (0,), steps=4), output)
    with pytest.raises(UsageError, match=r"evaluation.batches was 2 and is now 1"):
        run_conversion_study(
            ConversionStudy(str(model), FORMS, (0,), 3, ("evaluation.batches=1",)), output
        )
    with pytest.raises(ModelFolderError, match=r"nowhere.*no config\.json"):
        run_conversion_study(ConversionStudy("nowhere", FORMS, (0,)), tmp_path)
    built = output / "converted-low-rank-4-0"
    with pytest.raises(ModelFolderError, match="has a delta of low_rank; give a dense one"):
        run_conversion_study(ConversionStudy(str(built), FORMS, (0,)), tmp_path)
    monkeypatch.setattr(sys, "argv", ["conversion_study", str(model), "--forms", "rank",
                                      "--output", str(tmp_path)])  # fmt: skip
    with pytest.raises(SystemExit):
        main()
