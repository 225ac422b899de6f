"""A study of two steps: all methods get a cell, finished cells are kept, seeds are summed up."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from nestling.configuration.configuration_delta_encoder import DeltaEncoderConfig
from nestling.configuration.delta_budget import DeltaBudget
from nestling.recipes.cli_errors import DataError
from nestling.recipes.delta_encoder import study
from nestling.recipes.delta_encoder.study_costs import training_costs
from nestling.recipes.delta_encoder.study_summary import METHODS, compare, interval, read_cells
from nestling.recipes.recipe_loader import load_recipe
from nestling.trainers.metrics.autc import area_under_tradeoff_curve

SETTINGS = [
    "recipe=delta_encoder/tiny",
    "training.max_steps=2",
    "training.save_steps=2",
    "data.max_bytes=100000",
    "evaluation.batches=1",
    "evaluation.bootstrap_samples=2",
]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("study")
    study.run_study(load_recipe(SETTINGS), [0, 1], folder)
    return folder


def test_every_method_has_its_cells_and_shapes(finished: Path) -> None:
    summary = json.loads((finished / study.SUMMARY_FILE).read_text())
    methods = summary["methods"]
    assert set(methods) == {
        "nested", "post-hoc", "separate-smallest", "separate-middle", "separate-largest"
    }  # fmt: skip
    assert all(method["seeds"] == [0, 1] for method in methods.values())
    assert len(methods["nested"]["budgets"]) == len(methods["post-hoc"]["budgets"]) == 27
    nested = methods["nested"]["budgets"]
    for shape, budget in summary["named_budgets"].items():
        alone = methods[f"separate-{shape}"]["budgets"]
        assert list(alone) == [budget]
        for key in ("flops", "parameters"):
            assert alone[budget][key] == nested[budget][key]


def test_the_separate_largest_model_is_the_source_of_post_hoc_slices(finished: Path) -> None:
    methods = json.loads((finished / study.SUMMARY_FILE).read_text())["methods"]
    [largest] = methods["separate-largest"]["budgets"]
    ours = methods["separate-largest"]["budgets"][largest]["cross_entropy"]["values"]
    sliced = methods["post-hoc"]["budgets"][largest]["cross_entropy"]["values"]
    # Sorting units does not change the function.
    assert sliced == pytest.approx(ours, abs=1e-4)


def test_the_study_is_drawn(finished: Path) -> None:
    drawn = (finished / "study.svg").read_text()
    assert (finished / "study.png").stat().st_size > 10_000
    for label in ("post-hoc slicing", "trained separately"):
        assert label in drawn


def test_a_finished_cell_is_not_run_again(
    finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object, **named: object) -> None:
        raise AssertionError("a finished cell ran again")

    monkeypatch.setattr(study, "train", fail)
    study.run_study(load_recipe(SETTINGS), [0, 1], finished)


def test_methods_are_compared_at_the_same_anchors(finished: Path) -> None:
    summary = json.loads((finished / study.SUMMARY_FILE).read_text())
    found, named = summary["comparison"], summary["named_budgets"]
    assert found["seeds"] == [0, 1]
    for seed in (0, 1):
        cells = {
            method: json.loads((finished / f"{method}-{seed}" / "metrics.json").read_text())
            for method in METHODS
        }
        nested = {entry["budget"]: entry for entry in cells["nested"]["budgets"]}
        anchors = tuple(cells["nested"]["summary"]["autc_anchors"])
        alone = [cells[f"separate-{name}"]["budgets"][0] for name in named]
        points = [e["flops"] for e in alone], [e["accuracy"] for e in alone]
        expected = area_under_tradeoff_curve(*points, anchors)
        assert found["autc"]["separate"]["values"][seed] == pytest.approx(expected)
        for method in ("nested", "post-hoc"):
            own = cells[method]["summary"]["autc"]
            assert found["autc"][method]["values"][seed] == pytest.approx(own)
        for entry, (name, budget) in zip(alone, named.items(), strict=True):
            ratio = nested[budget]["cross_entropy"] / entry["cross_entropy"]
            gap = found["gap_percent"][name]["values"][seed]
            assert gap == pytest.approx(100 * (ratio - 1))


def test_an_untrained_reference_has_no_ratio() -> None:
    def cell(budgets: list[str], accuracy: float) -> dict[str, Any]:
        entries = [
            {"budget": b, "flops": 10 * (i + 1), "accuracy": accuracy, "cross_entropy": 4.0}
            for i, b in enumerate(budgets)
        ]
        return {"budgets": entries, "summary": {"autc_anchors": [10.0, 30.0]}}

    named = {"smallest": "0.5:2:2", "middle": "0.5:4:4", "largest": "1.0:4:4"}
    cells = {method: {0: cell(["1.0:4:4"], 0.0)} for method in METHODS}
    cells["nested"] = {0: cell(list(named.values()), 0.5)}
    cells["post-hoc"] = {0: cell(list(named.values()), 0.25)}
    found = compare(cells, named)
    assert found is not None
    assert found["autc_ratio"]["post-hoc"]["values"] == [pytest.approx(2.0)]
    assert found["autc_ratio"]["separate"] is None
    del cells["post-hoc"]
    assert compare(cells, named) is None


def test_training_costs_by_hand() -> None:
    recipe = load_recipe(
        [
            "recipe=delta_encoder/tiny",
            "training.max_steps=null",
            "training.epochs=2",
            "training.gradient_accumulation_steps=2",
            "training.budget_sampling=fixed",
            "model.width_budgets=[1.0]",
            "model.head_budgets=[4]",
            "model.depth_budgets=[1,2,3]",
        ]
    )
    config = DeltaEncoderConfig(
        vocab_size=100, hidden_size=64, num_hidden_layers=3, num_attention_heads=4,
        intermediate_size=96, pad_token_id=0, cls_token_id=1, sep_token_id=2,
        budgets=["1.0:4:1", "1.0:4:2", "1.0:4:3"],
    )  # fmt: skip
    named = {"smallest": "1.0:4:1", "middle": "1.0:4:2", "largest": "1.0:4:3"}
    found = training_costs(recipe, config, {"rows": 100, "tokens": 6000}, named, [0, 1])
    # 100 rows fill 6 steps of 16; 2 epochs. 19 of 64 tokens are predicted: round(0.3 x 64).
    assert found["steps"] == 12
    shapes = {name: DeltaBudget.parse(budget) for name, budget in named.items()}
    trunk = {name: shape.flops(config, 64, 16) for name, shape in shapes.items()}
    head = 2 * 16 * 19 * 64 * (64 + 100)
    for name in named:
        cost = found["methods"][f"separate-{name}"]
        assert cost["training_flops"] == 12 * 3 * (trunk[name] + head)
        assert cost["tokens"] == 12 * 16 * 60
    # One pass through the layers serves the three depths; each has its own head.
    assert found["methods"]["nested"]["training_flops"] == 12 * 3 * (trunk["largest"] + 3 * head)
    assert found["methods"]["separate"]["runs"] == 3
    total = 12 * 3 * (sum(trunk.values()) + 3 * head)
    assert found["methods"]["separate"]["training_flops"] == total
    ratio = (trunk["largest"] + 3 * head) / (trunk["largest"] + head)
    assert found["nested_over_largest"] == pytest.approx(ratio)
    assert found["nested_over_separate"] < 1


def test_finished_cells_can_be_measured_again(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "study"
    shutil.copytree(finished, folder)
    shutil.rmtree(folder / "nested-1")  # an unfinished seed stays unfinished
    before = json.loads((folder / study.SUMMARY_FILE).read_text())
    for metrics in folder.glob("*/metrics.json"):
        content = json.loads(metrics.read_text())
        del content["predicted_tokens_per_sequence"]  # as the first files were
        metrics.write_text(json.dumps(content))

    def fail(*arguments: object, **named: object) -> None:
        raise AssertionError("a finished cell ran again")

    monkeypatch.setattr(study, "train", fail)
    changes = ["data.max_bytes=100000", "evaluation.calibration_fraction=0"]
    study.reevaluate_study(load_recipe([*SETTINGS, *changes]), folder)
    after = json.loads((folder / study.SUMMARY_FILE).read_text())
    assert after["comparison"]["seeds"] == [0]
    for method in METHODS:
        cell = json.loads((folder / f"{method}-0" / "metrics.json").read_text())
        assert cell["predicted_tokens_per_sequence"] > 0
        assert cell["data"]["aliases_chosen_on"] == "evaluation rows"
    assert after["named_budgets"] == before["named_budgets"]
    with pytest.raises(DataError, match="no finished cell"):
        study.reevaluate_study(load_recipe(SETTINGS), tmp_path / "empty")


def test_cells_measured_in_different_ways_are_refused(finished: Path, tmp_path: Path) -> None:
    for method in ("nested", "post-hoc"):
        shutil.copytree(finished / f"{method}-0", tmp_path / f"{method}-0")
    assert set(read_cells(tmp_path)) == {"nested", "post-hoc"}
    metrics = tmp_path / "post-hoc-0" / "metrics.json"
    content = json.loads(metrics.read_text())
    del content["predicted_tokens_per_sequence"]
    metrics.write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"nested-0 and post-hoc-0; .*--reevaluate"):
        read_cells(tmp_path)


def test_interval_is_students_t() -> None:
    # n = 3, sd = 1: half-width 4.303 / sqrt(3).
    found = interval([1.0, 2.0, 3.0])
    assert found["mean"] == 2.0
    assert found["high"] - 2.0 == pytest.approx(4.3027 / 3**0.5, rel=1e-4)
    assert interval([1.0])["low"] is None
