"""Growing a small checkpoint against other starts: runs of four steps, their summary, its table."""

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from nestling.configuration.configuration_delta_encoder import DeltaEncoderConfig
from nestling.modeling.delta_encoder_heads import DeltaEncoderForMaskedLM
from nestling.recipes.cli_errors import DataError, ModelFolderError, UsageError
from nestling.recipes.delta_encoder import growth_study
from nestling.recipes.delta_encoder import train as train_module
from nestling.recipes.delta_encoder.growth_study import (
    STARTS,
    GrowthStudy,
    Run,
    run_growth_study,
    summarise_starts,
)
from nestling.recipes.delta_encoder.growth_table import growth_table
from nestling.recipes.delta_encoder.model_config import read_checkpoint
from nestling.recipes.delta_encoder.study import open_study, run_study
from nestling.recipes.docs_tables import TABLES
from nestling.recipes.evaluation_file import read_evaluation

SETTINGS = (
    "recipe=delta_encoder/tiny",
    "training.max_steps=4",
    "training.save_steps=4",
    "data.max_bytes=100000",
    "evaluation.batches=2",
    "evaluation.bootstrap_samples=2",
)
# The shape of the base, which the recipe of the growth study does not name.
SMALL = "0.5:2:1:32"
NAMED = {"smallest": SMALL, "middle": "0.5:3:2", "largest": "1.0:4:3"}


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> GrowthStudy:
    """The checkpoints that are grown: the smallest and the largest model of a study."""
    folder = tmp_path_factory.mktemp("study")
    plan = open_study([*SETTINGS, f"model.extra_budgets=['{SMALL}']"], folder)
    run_study(plan, [0], ["tokens"], ["separate-smallest", "separate-largest"])
    return GrowthStudy(
        (*SETTINGS, f"data.pretokenized_path={folder / 'data'}"),
        base=f"{folder}/tokens/separate-smallest-{{seed}}",
        target=f"{folder}/tokens/separate-largest-{{seed}}/model",
        seeds=(0,),
    )


@pytest.fixture(scope="module")
def built() -> dict[str, Any]:
    """Start -> weights that training began with."""
    return {}


@pytest.fixture(scope="module")
def finished(
    study: GrowthStudy, built: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    output, build_model = tmp_path_factory.mktemp("growth"), train_module.build_model

    def kept(recipe: Any, data: Any) -> Any:
        model = build_model(recipe, data)
        weights = {name: value.clone() for name, value in model.state_dict().items()}
        built[Path(recipe.output_dir).name] = weights
        return model

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_module, "build_model", kept)
        run_growth_study(study, output)
    return output


@pytest.fixture(scope="module")
def summary(finished: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((finished / "growth_study.json").read_text())
    return content


def own_loss(folder: str) -> float:
    """The loss of a model that was trained alone, as its own run measured it."""
    run = Path(folder.replace("{seed}", "0").removesuffix("/model"))
    [entry] = read_evaluation(run / "metrics.json")["budgets"]
    return float(entry["cross_entropy"])


def test_a_start_is_what_it_grew_from(summary: dict[str, Any], study: GrowthStudy) -> None:
    """Before training: grown models hold the base, the sorted one is the target."""
    before = {start: entry["before"] for start, entry in summary["starts"].items()}
    base, target = own_loss(study.base), own_loss(study.target)
    assert summary["named_budgets"] == NAMED and list(before) == list(STARTS)
    for start in ("grown", "grown-from-target"):
        assert before[start]["smallest"]["mean"] == pytest.approx(base, abs=1e-5)
    assert before["sorted"]["largest"]["mean"] == pytest.approx(target, abs=1e-4)
    assert before["fresh"]["smallest"]["mean"] != pytest.approx(base, abs=1e-3)
    assert before["grown"]["largest"] != before["grown-from-target"]["largest"]


def test_training_begins_with_the_measured_start(finished: Path, built: dict[str, Any]) -> None:
    assert set(built) == {f"{start}-0" for start in STARTS}
    for cell, weights in built.items():
        model = DeltaEncoderForMaskedLM.from_pretrained(finished / cell / "start" / "model")
        for name, value in model.state_dict().items():
            assert torch.equal(value, weights[name]), (cell, name)


def test_all_starts_train_one_lattice_alike(summary: dict[str, Any], finished: Path) -> None:
    """With the shape of the base in it, whatever the recipe names."""
    assert SMALL in summary["budgets"] and len(summary["budgets"]) == 28
    saved = []
    for start, entry in summary["starts"].items():
        folder = finished / f"{start}-0"
        for place in (folder, folder / "start"):
            config = DeltaEncoderConfig.from_pretrained(place / "model")
            assert list(config.budgets) == summary["budgets"]
        after = read_evaluation(folder / "metrics.json")["budgets"]
        losses = {entry["budget"]: entry["cross_entropy"] for entry in after}
        assert losses == {b: entry["after"][name]["mean"] for name, b in NAMED.items()}
        assert all(entry["after"][name] != entry["before"][name] for name in NAMED)
        recipe = train_module.load_saved_recipe(folder)
        assert recipe.training.eval_steps is None and not recipe.evaluation.latency
        assert recipe.export.budgets == [] and not (folder / "slices").exists()
        saved.append((recipe.training, recipe.loss, recipe.data, recipe.seed))
    assert all(each == saved[0] for each in saved)
    assert summary["steps"] == summary["training"]["steps"] == 4
    assert summary["kind"] == "growth_study" and summary["training"]["tokens"] > 0


def test_finished_runs_are_kept_and_other_recipes_refused(
    study: GrowthStudy, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object, **named: object) -> None:
        raise AssertionError("a finished run ran again")

    monkeypatch.setattr(growth_study, "train", fail)
    monkeypatch.setattr(growth_study, "measure_start", fail)
    before = (finished / "growth_study.json").read_text()
    run_growth_study(replace(study, starts=("sorted",)), finished)
    [(start, entry)] = json.loads((finished / "growth_study.json").read_text())["starts"].items()
    assert start == "sorted" and entry["minus_fresh"] is None
    (finished / "growth_study.json").write_text(before)
    for change, words in (
        ("training.lr=0.1", r"training\.lr was 0\.002 and is now 0\.1"),
        ("evaluation.batches=1", r"evaluation\.batches was 2 and is now 1"),
    ):
        with pytest.raises(UsageError, match=words):
            run_growth_study(replace(study, arguments=(*study.arguments, change)), finished)


@pytest.mark.parametrize(
    ("changes", "arguments", "error", "words"),
    [
        ({"base": "/no/where-{seed}"}, (), ModelFolderError, "/no/where-0 has no config.json"),
        ({"seeds": (0, 7)}, (), ModelFolderError, "separate-smallest-7 has no config.json"),
        ({"starts": ("random",)}, (), UsageError, "start 'random' must be fresh, grown, "),
        ({}, ("init.base=x",), UsageError, "init.base is x, but .*set init.base=null"),
        ({}, ("model.hidden_size=96", "model.head_dim=16"), UsageError,
         "model.hidden_size is 96, but --target .* has 64.*set model.hidden_size=64"),
    ],
)  # fmt: skip
def test_what_cannot_be_studied_is_one_line(
    changes: dict[str, Any],
    arguments: tuple[str, ...],
    error: type[Exception],
    words: str,
    study: GrowthStudy,
    tmp_path: Path,
) -> None:
    asked = replace(study, arguments=(*study.arguments, *arguments), **changes)
    with pytest.raises(error, match=words) as caught:
        run_growth_study(asked, tmp_path)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_a_checkpoint_with_another_tokenizer_is_refused(study: GrowthStudy, tmp_path: Path) -> None:
    base = tmp_path / "base"
    shutil.copytree(study.base.replace("{seed}", "0") + "/model", base)
    tokenizer = json.loads((base / "tokenizer.json").read_text())
    first, second, *_ = sorted(tokenizer["model"]["vocab"], key=tokenizer["model"]["vocab"].get)[9:]
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    (base / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(DataError, match=r"base has another tokenizer.*data\.tokenizer="):
        run_growth_study(replace(study, base=str(base)), tmp_path / "growth")


def test_code_of_a_checkpoint_is_not_asked_for(
    study: GrowthStudy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Our class is known before a tokenizer is loaded from a folder that brings code."""
    calls: list[str] = []

    def load(folder: Path) -> None:
        calls.append("load")
        raise InterruptedError

    monkeypatch.setattr(growth_study, "register_families", lambda: calls.append("register"))
    monkeypatch.setattr(growth_study, "load_tokenizer", load)
    with pytest.raises(InterruptedError):
        run_growth_study(study, tmp_path)
    assert calls == ["register", "load"]


def test_a_target_that_no_key_can_follow_is_refused(
    study: GrowthStudy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(option: str, folder: str) -> Any:
        config = read_checkpoint(option, folder)
        config.norm_eps = 1e-3
        return config

    monkeypatch.setattr(growth_study, "read_checkpoint", read)
    with pytest.raises(UsageError, match=r"model.norm_eps is .*; choose another --target"):
        run_growth_study(study, tmp_path)


def test_the_table_shows_the_numbers(summary: dict[str, Any]) -> None:
    table = TABLES["growth"](summary)
    assert table == growth_table(summary)
    head, _, *lines = table.splitlines()
    assert head.startswith(f"| start | smallest {SMALL}, before | smallest {SMALL}, after | middle")
    for line, entry in zip(lines[:4], summary["starts"].values(), strict=True):
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        expected = [entry[w][n]["mean"] for n in NAMED for w in ("before", "after")]
        assert cells[1:7] == [f"{value:.3f} (n = 1)" for value in expected]
        less = entry["minus_grown"]
        minus = [f"{less[name]['mean']:+.3f} (n = 1)" for name in NAMED] if less else ["-"] * 3
        assert cells[7:] == minus
    assert "after 4 steps of 8 rows" in table and "from a base per seed, a target per seed" in table


def _run(seed: int, before: float, after: float) -> Run:
    def measured(loss: float) -> dict[str, Any]:
        return {"budgets": [{"budget": b, "cross_entropy": loss} for b in NAMED.values()]}

    return Run(seed, measured(before), measured(after))


def test_differences_are_taken_seed_by_seed() -> None:
    starts = summarise_starts(
        {
            "fresh": [_run(0, 9.0, 5.0), _run(1, 9.0, 6.0)],
            "grown": [_run(0, 5.0, 4.5), _run(1, 7.0, 5.4)],
        },
        NAMED,
    )
    assert starts["fresh"]["minus_fresh"] is None
    assert starts["grown"]["before"]["middle"]["values"] == [5.0, 7.0]
    assert starts["grown"]["minus_fresh"]["middle"]["values"] == pytest.approx([-0.5, -0.6])
    assert starts["grown"]["minus_grown"] is None
    table = growth_table(
        {"named_budgets": NAMED, "starts": starts, "steps": 4, "rows_per_step": 8,
         "checkpoints": "a base per seed, a target for all seeds"}
    )  # fmt: skip
    assert table.count("+0.550 [-0.085, +1.185]") == 3 and "**" not in table


def test_the_command_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(growth_study, "run_growth_study", lambda *given: seen.append(given))
    line = f"study recipe=r training.lr=1 --base B-{{seed}} --target T --output {tmp_path}"
    monkeypatch.setattr(sys, "argv", [*line.split(), "--seeds", "3", "4", "--starts", "fresh"])
    growth_study.main()
    expected = GrowthStudy(("recipe=r", "training.lr=1"), "B-{seed}", "T", ("fresh",), (3, 4))
    assert seen == [(expected, tmp_path)]
