"""A study of four steps: every method gets a cell, finished cells are kept, seeds are summed up."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from nestling.configuration.configuration_delta_encoder import DeltaEncoderConfig
from nestling.configuration.delta_budget import DeltaBudget
from nestling.recipes.cli_errors import DataError, UsageError
from nestling.recipes.delta_encoder import study as study_module
from nestling.recipes.delta_encoder.study import open_study, reevaluate_study, run_study
from nestling.recipes.delta_encoder.study_ablations import ABLATION_CHANGES
from nestling.recipes.delta_encoder.study_cells import read_cells
from nestling.recipes.delta_encoder.study_costs import TrainingCost, total_cost, training_cost
from nestling.recipes.delta_encoder.study_methods import METHODS, paired_heads, stages_of
from nestling.recipes.delta_encoder.study_summary import (
    autc_of_cell,
    interval,
    method_summary,
    separate_curves,
)
from nestling.recipes.delta_encoder.study_tables import (
    ablation_table,
    compute_table,
    difference,
    lattice_table,
    tokens_minus_table,
    tokens_table,
)
from nestling.recipes.recipe_loader import load_recipe
from nestling.recipes.recipe_validation import validate

SETTINGS = [
    "recipe=delta_encoder/tiny",
    "training.max_steps=4",
    "training.save_steps=4",
    "loss.kd_weight=0",
    "data.max_bytes=100000",
    "evaluation.batches=2",
    "evaluation.bootstrap_samples=2",
]
NAMED = {
    "smallest": DeltaBudget.parse("0.5:2:1"),
    "middle": DeltaBudget.parse("0.5:3:2"),
    "largest": DeltaBudget.parse("1.0:4:3"),
}
RIVALS = ("post-hoc", "matformer", "dynabert", "sortednet", "starbucks")
OURS = ("nested", "largest-first", "constant-share")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("study")
    study = open_study(SETTINGS, folder)
    run_study(study, [0], ["tokens"])
    run_study(study, [1], ["tokens"], ["nested", "sortednet"])
    run_study(study, [0], ["compute"], ["sortednet", "post-hoc"])
    run_study(study, [0], ["ablations"], ["exit-affine"])
    return folder


@pytest.fixture(scope="module")
def summary(finished: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((finished / "study.json").read_text())
    return content


def test_every_method_has_its_cells(summary: dict[str, Any]) -> None:
    methods = summary["tables"]["tokens"]["methods"]
    assert list(methods) == [*OURS, *RIVALS, "separate"]
    assert methods["nested"]["seeds"] == methods["sortednet"]["seeds"] == [0, 1]
    for name in (*OURS, *RIVALS):
        assert len(methods[name]["budgets"]) == 27
    named, nested = summary["named_budgets"], methods["nested"]["budgets"]
    alone = methods["separate"]["budgets"]
    assert list(alone) == list(named.values())
    for budget in named.values():
        for key in ("flops", "parameters"):
            assert alone[budget][key] == nested[budget][key]


def test_each_rule_trains_its_budgets(summary: dict[str, Any]) -> None:
    methods = summary["tables"]["tokens"]["methods"]
    trained = {name: set(method["trained_budgets"]) for name, method in methods.items()}
    assert trained["post-hoc"] == {"1.0:4:3"}
    assert trained["matformer"] == {"0.5:4:3", "0.75:4:3", "1.0:4:3"}
    assert trained["starbucks"] == {"1.0:4:1", "1.0:4:2", "1.0:4:3"}
    pairs = ("0.5:2", "0.75:3", "1.0:4")
    assert trained["dynabert"] == {f"{pair}:{depth}" for pair in pairs for depth in (1, 2, 3)}
    assert len(trained["nested"]) == len(trained["sortednet"]) == 27


def test_post_hoc_slices_come_from_the_largest_model_alone(summary: dict[str, Any]) -> None:
    methods = summary["tables"]["tokens"]["methods"]
    [alone] = methods["separate"]["budgets"]["1.0:4:3"]["cross_entropy"]["values"]
    [sliced] = methods["post-hoc"]["budgets"]["1.0:4:3"]["cross_entropy"]["values"]
    # Trained alike; sorting units does not change the function.
    assert sliced == pytest.approx(alone, abs=1e-4)


def test_equal_tokens_and_equal_compute(summary: dict[str, Any]) -> None:
    tokens = summary["tables"]["tokens"]["methods"]
    seen = {name: method["training"]["tokens"] for name, method in tokens.items()}
    assert all(seen[name] == pytest.approx(seen["nested"], abs=2) for name in RIVALS)
    assert seen["separate"] == 3 * seen["nested"]
    compute = summary["tables"]["compute"]["methods"]
    ours = compute["nested"]["training"]
    assert ours == tokens["nested"]["training"]
    for name in ("sortednet", "post-hoc"):
        theirs = compute[name]["training"]
        assert name != "post-hoc" or theirs["steps"] > ours["steps"]
        # As near as whole steps, the dearest of which is less than one of ours, allow.
        assert abs(theirs["flops"] - ours["flops"]) < ours["flops"] / ours["steps"]


def test_every_cell_is_evaluated_on_the_same_rows(finished: Path) -> None:
    cells = read_cells(finished)
    assert set(cells) == {"tokens", "compute", "ablations"}
    assert set(cells["compute"]) == {"sortednet", "post-hoc"}
    assert set(cells["ablations"]) == {"exit-affine"}
    rows = {
        (cell["data"]["rows"], cell["data"]["predicted_tokens"])
        for table in cells.values() for method in table.values() for cell in method.values()
    }  # fmt: skip
    assert len(rows) == 1


def test_tables_name_every_method(summary: dict[str, Any]) -> None:
    table = tokens_table(summary)
    rivals = ("MatFormer", "DynaBERT", "SortedNet", "Starbucks (depth exits)")
    for name in ("ours", *rivals, "separate models"):
        assert f"| {name} |" in table
    assert "| SortedNet |" in compute_table(summary)
    assert "| exit-affine | `model.exit_affine=true` |" in ablation_table(summary)
    assert lattice_table(summary).count("\n") == 2 + 27
    lines = tokens_minus_table(summary).splitlines()
    changed = {line.split("|")[1].strip() for line in lines if line.startswith("|")}
    assert changed - {"change", "---"} == {"largest-first", "constant-share"}  # no rival


def test_the_study_is_drawn(finished: Path) -> None:
    drawn = (finished / "study.svg").read_text()
    assert (finished / "study.png").stat().st_size > 10_000
    for label in ("post-hoc slices", "separate models", "SortedNet", "ours"):
        assert label in drawn
    assert "constant share" not in drawn  # a variant of ours


def test_a_finished_cell_is_not_run_again(
    finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object, **named: object) -> None:
        raise AssertionError("a finished cell ran again")

    monkeypatch.setattr(study_module, "train", fail)
    run_study(open_study(SETTINGS, finished), [0], ["tokens"])


def test_finished_cells_can_be_measured_again(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "study"
    shutil.copytree(finished, folder)
    for metrics in folder.glob("*/*/metrics.json"):
        content = json.loads(metrics.read_text())
        del content["predicted_tokens_per_sequence"]  # as the first files were
        metrics.write_text(json.dumps(content))

    def fail(*arguments: object, **named: object) -> None:
        raise AssertionError("a finished cell ran again")

    monkeypatch.setattr(study_module, "train", fail)
    again = [*SETTINGS, "evaluation.calibration_fraction=0"]
    reevaluate_study(open_study(again, folder))
    for table in read_cells(folder).values():
        for method in table.values():
            for cell in method.values():
                assert cell["predicted_tokens_per_sequence"] > 0
                assert cell["data"]["aliases_chosen_on"] == "evaluation rows"
    with pytest.raises(DataError, match="no finished cell"):
        reevaluate_study(open_study(SETTINGS, tmp_path / "empty"))


def test_an_ablation_that_changes_nothing_is_refused(finished: Path) -> None:
    study = open_study(SETTINGS, finished)
    with pytest.raises(UsageError, match=r"equal-shares \(loss\.largest_share=null .*\) changes n"):
        run_study(study, [0], ["ablations"], ["equal-shares"])


def test_cells_of_another_recipe_are_refused(finished: Path) -> None:
    other = open_study([*SETTINGS, "training.lr=1e-3"], finished)
    with pytest.raises(UsageError, match=r"training\.lr was .* and is now 0\.001"):
        run_study(other, [0], ["tokens"])


def test_cells_measured_in_different_ways_are_refused(finished: Path, tmp_path: Path) -> None:
    for method in ("nested", "post-hoc"):
        name = f"tokens/{method}-0"
        (tmp_path / name).mkdir(parents=True)
        shutil.copy(finished / name / "metrics.json", tmp_path / name / "metrics.json")
    assert set(read_cells(tmp_path)["tokens"]) == {"nested", "post-hoc"}
    metrics = tmp_path / "tokens" / "post-hoc-0" / "metrics.json"
    content = json.loads(metrics.read_text())
    del content["predicted_tokens_per_sequence"]
    metrics.write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"nested-0 and tokens/post-hoc-0; .*--reevaluate"):
        read_cells(tmp_path)


@pytest.mark.parametrize("method", METHODS)
def test_every_rule_is_a_valid_recipe(method: str, tmp_path: Path) -> None:
    shares = ("loss.largest_share=0.5", "loss.largest_share_end=0.9")
    recipe = load_recipe([*SETTINGS, *shares, "model.exit_affine=true"])
    stages = stages_of(method, recipe, NAMED, steps=10, seed=3, folder=tmp_path / "cell")
    assert recipe.training.eval_steps is not None
    for stage in stages:
        validate(stage)
        assert stage.training.eval_steps is None  # evaluations would only make a study slower
        if method not in OURS:
            assert stage.loss.largest_share is None
            assert not stage.model.exit_affine
        assert (stage.loss.largest_share_end == 0.9) == (method == "nested")
    assert (stages[0].training.largest_alone == 0.5) == (method == "largest-first")
    assert sum(stage.training.max_steps or 0 for stage in stages) == 10
    assert len({stage.seed for stage in stages}) == len(stages)


@pytest.mark.parametrize("name", ABLATION_CHANGES)
def test_every_ablation_is_a_valid_recipe(name: str) -> None:
    for recipe in ("delta_encoder/tiny", "delta_encoder/demo"):
        validate(load_recipe([f"recipe={recipe}", *ABLATION_CHANGES[name]]))


def test_dynabert_distils_from_the_model_before(tmp_path: Path) -> None:
    recipe = load_recipe(SETTINGS)
    first, wide, both = stages_of(
        "dynabert", recipe, NAMED, steps=101, seed=0, folder=tmp_path / "cell"
    )
    assert [s.training.max_steps for s in (first, wide, both)] == [50, 25, 26]
    assert first.model.init_from is None and first.loss.kd_weight == 0
    for before, stage in ((first, wide), (wide, both)):
        assert stage.model.init_from == stage.loss.teacher == f"{before.output_dir}/model"
        assert stage.loss.kd_weight == 1
    assert wide.model.reorder_by_importance and not both.model.reorder_by_importance
    assert both.output_dir == str(tmp_path / "cell")


def test_heads_shrink_with_the_width() -> None:
    recipe = load_recipe([*SETTINGS, "model.width_budgets=[0.3,0.75,1.0]"])
    assert paired_heads(recipe) == [2, 3, 4]


def _config() -> DeltaEncoderConfig:
    return DeltaEncoderConfig(
        vocab_size=100, hidden_size=64, num_hidden_layers=3, num_attention_heads=4,
        intermediate_size=96, pad_token_id=0, cls_token_id=1, sep_token_id=2,
        budgets=["1.0:4:1", "1.0:4:2", "1.0:4:3"],
    )  # fmt: skip


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
    config, counts = _config(), {"rows": 100, "tokens": 6000}
    # 100 rows fill 6 steps of 16; 2 epochs. 19 of 64 tokens are predicted: round(0.3 x 64).
    trunk = DeltaBudget.parse("1.0:4:3").flops(config, 64, 16)
    head = 2 * 16 * 19 * 64 * (64 + 100)
    # One pass through the layers serves the three depths; each has its own head.
    expected = TrainingCost(1, 12, 12 * 16 * 60, 12.0 * 3 * (trunk + 3 * head))
    assert training_cost(recipe, config, counts) == expected
    taught = load_recipe(
        [
            "recipe=delta_encoder/tiny",
            "training.max_steps=5",
            "training.budgets=[largest]",
            "training.budgets_per_step=1",
            "loss.teacher=somewhere",
        ]
    )
    config.budgets = ["1.0:4:3"]
    rows = 8 * 10  # rows a step have the same number of tokens
    alone = training_cost(taught, config, {"rows": rows, "tokens": rows * 64})
    batch = taught.training.batch_size
    forward = DeltaBudget.parse("1.0:4:3").flops(config, 64, batch, batch * 19)
    # Three forward passes for the model, one for its teacher.
    assert alone.flops == 5 * 4 * forward
    assert total_cost([alone, alone]) == TrainingCost(2, 10, 2 * alone.tokens, 2 * alone.flops)
    with pytest.raises(ValueError, match="no run"):
        total_cost([])


def _cell(losses: dict[str, float], accuracy: float = 0.5) -> dict[str, Any]:
    entries = [
        {"budget": b, "flops": 10 * (i + 1), "parameters": 1, "accuracy": accuracy,
         "cross_entropy": loss}
        for i, (b, loss) in enumerate(losses.items())
    ]  # fmt: skip
    order = {"raw_violations": 2, "alias_violations": 1, "alias_violations_calibration": 0}
    return {"budgets": entries, "summary": {"autc_anchors": [10.0, 30.0], "monotonicity": order}}


def test_a_method_is_compared_seed_by_seed() -> None:
    named = {"smallest": "a", "middle": "b", "largest": "d"}
    ours = {s: _cell({"a": 4.0 + s, "b": 3.0, "c": 2.5, "d": 2.0}) for s in (0, 1)}
    theirs = {s: _cell({"a": 5.0 + s, "b": 3.0, "c": 2.5, "d": 1.0}, 0.25) for s in (0, 1, 2)}
    models = {
        f"separate-{shape}": {0: _cell({"x": loss}), 1: _cell({"x": loss})}
        for shape, loss in (("smallest", 4.0), ("middle", 3.0), ("largest", 2.0))
    }
    for rank, shape in enumerate(("smallest", "middle", "largest")):
        for seed in (0, 1):
            models[f"separate-{shape}"][seed]["budgets"][0]["flops"] = 10 * (rank + 1)
    alone = separate_curves(models, named)
    assert [entry["budget"] for entry in alone[0]["budgets"]] == ["d", "b", "a"]
    found = method_summary(theirs, ours, alone, named)
    assert found["seeds"] == [0, 1, 2]
    assert found["minus_ours"]["smallest"]["values"] == [1.0, 1.0]
    assert found["minus_ours"]["largest"]["values"] == [-1.0, -1.0]
    assert found["minus_ours"]["mean_cross_entropy"]["values"] == [0.0, 0.0]
    assert found["gap_percent"]["smallest"]["values"] == [25.0, 50.0]
    assert found["autc_over_separate"]["values"] == [pytest.approx(0.5)] * 2
    assert found["raw_violations"] == [2, 2, 2]
    assert found["alias_violations_calibration"] == [0, 0, 0]
    assert found["mean_cross_entropy"]["values"] == [2.875, 3.125, 3.375]
    assert autc_of_cell(theirs[0]) == pytest.approx(0.25)


def test_a_difference_is_bold_only_where_the_interval_excludes_zero() -> None:
    assert difference(interval([0.1, 0.11, 0.12])).startswith("**+0.110 [")
    assert not difference(interval([0.1, -0.11, 0.12])).startswith("**")
    assert difference(interval([0.1])) == "+0.100 (n = 1)"
    assert difference(None) == "-"


def test_interval_is_students_t() -> None:
    # n = 3, sd = 1: half-width 4.303 / sqrt(3).
    found = interval([1.0, 2.0, 3.0])
    assert found["mean"] == 2.0
    assert found["high"] - 2.0 == pytest.approx(4.3027 / 3**0.5, rel=1e-4)
    assert interval([1.0])["low"] is None
