"""Fine-tuning from nested and plain pre-training: runs, their summary and its table."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from nestling.hub_cards.export_slices import export_elastic
from nestling.modeling.families import FAMILIES, resolve
from nestling.recipes.cli_errors import UsageError
from nestling.recipes.delta_encoder import finetune, finetune_study
from nestling.recipes.delta_encoder.finetune_study import (
    FinetuneStudy,
    run_finetune_study,
    summarise_tasks,
)
from nestling.recipes.delta_encoder.finetune_table import finetune_table
from tiny_labelled_sets import write_sets

BUDGETS = ["0.5:2:2", "0.75:3:3", "1.0:4:4"]
NAMED = dict(zip(("smallest", "middle", "largest"), BUDGETS, strict=True))


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: Any) -> FinetuneStudy:
    """Untrained encoders of two seeds, one with three budgets and one with the largest only."""
    folder = tmp_path_factory.mktemp("pretrained")
    family = FAMILIES["delta_encoder"]
    for seed in (0, 1):
        for name, budgets in (("nested", BUDGETS), ("largest", BUDGETS[-1:])):
            torch.manual_seed(seed)
            config = resolve(family.config)(
                **family.tiny, budgets=budgets, initializer_range=0.1
            )
            model = resolve(family.auto_classes["AutoModelForMaskedLM"])(config)
            export_elastic(model, tiny_tokenizer, folder / f"{name}-{seed}" / "model")
    return FinetuneStudy(
        nested=f"{folder}/nested-{{seed}}",
        largest=f"{folder}/largest-{{seed}}",
        data=str(write_sets(tmp_path_factory.mktemp("data"))),
        tasks=("match_easy",),
        seeds=(0, 1),
        max_steps=2,
        batch_size=8,
        max_length=32,
    )


@pytest.fixture(scope="module")
def finished(study: FinetuneStudy, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("finetune_study")
    run_finetune_study(study, output)
    return output


def _events(folder: Path) -> str:
    return (folder / "events.jsonl").read_text()


def test_every_start_is_measured_at_the_named_budgets(finished: Path) -> None:
    summary = json.loads((finished / "finetune_study.json").read_text())
    assert summary["kind"] == "finetune_study" and summary["pretrained"] == "one per seed"
    assert summary["named_budgets"] == NAMED
    starts = summary["tasks"]["match_easy"]["starts"]
    assert list(starts) == ["nested", "sorted", "post-hoc"]
    for start, entry in starts.items():
        assert entry["seeds"] == [0, 1] and set(entry["f1"]) == set(NAMED)
        runs = [
            json.loads((finished / "match_easy" / start / f"seed-{s}" / "metrics.json").read_text())
            for s in (0, 1)
        ]
        # Each seed starts from pre-training of its own.
        kind = "nested" if start == "nested" else "largest"
        assert [run["settings"]["model"].split("/")[-1] for run in runs] == [
            f"{kind}-0", f"{kind}-1"
        ]  # fmt: skip
        values = [run["budgets"][0]["test"]["f1_at_threshold"] for run in runs]
        assert entry["f1"]["smallest"]["values"] == values
    assert finetune_table(summary).count("| match_easy |") == 3


def test_starts_differ_in_what_is_tuned_and_sorted(study: FinetuneStudy, finished: Path) -> None:
    """Only post-hoc slices see one budget a step, and so no distillation."""
    named, budgets = study.lattice()
    assert named == NAMED and list(budgets) == BUDGETS
    settings = {
        start: study.settings("match_easy", start, 1, named, budgets)
        for start in finetune_study.STARTS
    }
    sorting = {start: each.sort_units for start, each in settings.items()}
    assert sorting == {"nested": "never", "sorted": "before", "post-hoc": "after"}
    same = replace(settings["sorted"], model="", sort_units="")
    assert replace(settings["nested"], model="", sort_units="") == same
    folders = {start: finished / "match_easy" / start / "seed-0" for start in settings}
    assert "distillation" in _events(folders["nested"])
    assert "distillation" in _events(folders["sorted"])
    assert "distillation" not in _events(folders["post-hoc"])


def test_finished_runs_are_kept_and_other_settings_refused(
    study: FinetuneStudy, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object) -> None:
        raise AssertionError("a finished run ran again")

    monkeypatch.setattr(finetune, "_run_seed", fail)
    run_finetune_study(study, finished)
    with pytest.raises(UsageError, match=r"max_steps was 2 and is now 3"):
        run_finetune_study(replace(study, max_steps=3), finished)
    with pytest.raises(UsageError, match=r"start 'slices' must be nested, sorted, post-hoc"):
        run_finetune_study(replace(study, starts=("slices",)), finished)
    with pytest.raises(UsageError, match=r"seed 0 is given twice"):
        run_finetune_study(replace(study, seeds=(0, 0)), finished)
    with pytest.raises(UsageError, match=r"lr nan must be a number above 0"):
        run_finetune_study(replace(study, lr=float("nan")), finished)


def _run(seed: int, *f1: float) -> dict[str, Any]:
    pairs = zip(BUDGETS, f1, strict=True)
    return {
        "seed": seed,
        "data": {"test_rows": 9},
        "baselines": {"always_match": {"f1": 0.4}},
        "budgets": [{"budget": budget, "test": {"f1": value}} for budget, value in pairs],
    }


def test_differences_are_taken_seed_by_seed() -> None:
    results = {
        "match_x": {
            "nested": [_run(0, 0.5, 0.6, 0.7), _run(1, 0.6, 0.7, 0.8)],
            "post-hoc": [_run(0, 0.1, 0.6, 0.7), _run(1, 0.2, 0.7, 0.9)],
        }
    }
    tasks = summarise_tasks(results, NAMED)
    starts = tasks["match_x"]["starts"]
    assert starts["nested"]["minus_nested"] is None
    less = starts["post-hoc"]["minus_nested"]
    assert less["smallest"]["values"] == pytest.approx([-0.4, -0.4])
    assert less["largest"]["values"] == pytest.approx([0.0, 0.1])
    table = finetune_table(
        {"named_budgets": NAMED, "tasks": tasks, "max_steps": 200, "batch_size": 32,
         "pretrained": "one per seed"}
    )  # fmt: skip
    assert "largest alone, tuned alone, sorted, sliced | 0.150 [" in table
    assert "match_x without a look at the row: always match 0.400." in table
    alone = summarise_tasks({"match_x": {"post-hoc": results["match_x"]["post-hoc"]}}, NAMED)
    assert alone["match_x"]["starts"]["post-hoc"]["minus_nested"] is None


def test_the_command_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(finetune_study, "run_finetune_study", lambda *given: seen.append(given))
    line = f"study --nested N-{{seed}} --largest L --output {tmp_path} --seeds 3 4 --lr 0.01"
    monkeypatch.setattr(sys, "argv", [*line.split(), "--starts", "nested"])
    finetune_study.main()
    expected = FinetuneStudy(
        "N-{seed}", "L", "data/ecommerce", seeds=(3, 4), lr=0.01, starts=("nested",)
    )
    assert seen == [(expected, tmp_path)]
