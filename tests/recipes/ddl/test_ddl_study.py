"""The study of residuals: cells that resume, paired differences, baselines of equal cost."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import transformers
from nestling.configuration.configuration_ddl import TRANSFORMERS_FLOOR
from nestling.recipes.cli_errors import DataError, UsageError
from nestling.recipes.ddl import study as study_module
from nestling.recipes.ddl.study import Study, open_study, read_cells, run_study, write_times
from nestling.recipes.ddl.study_methods import METHODS
from nestling.recipes.ddl.study_summary import Cell, loss_at, summarise
from nestling.recipes.ddl.study_tables import gates_table, study_table
from nestling.recipes.evaluation.seed_interval import interval, verdict

pytestmark = pytest.mark.skipif(
    tuple(map(int, transformers.__version__.split(".")[:2])) < TRANSFORMERS_FLOOR,
    reason="Deep Delta Learning decoders need transformers >= 5.17",
)

SMALL = (
    "recipe=ddl/study", "model.hidden_size=16", "model.num_hidden_layers=1",
    "model.num_attention_heads=2", "data.max_length=16", "data.max_bytes=20000",
    "training.max_steps=2", "training.eval_steps=1", "training.batch_size=2",
    "training.bf16=false", "evaluation.batches=1", "evaluation.batch_size=2",
    "evaluation.bootstrap_samples=2",
)  # fmt: skip


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Study:
    study = open_study(SMALL, tmp_path_factory.mktemp("study"))
    write_times(study, ["baseline", "ddl"], rounds=1)
    run_study(study, [0, 1], ["baseline", "ddl", "baseline@1.5"])
    return study


def test_cells_differ_in_the_method_alone(finished: Study) -> None:
    one, other = finished.recipe("baseline", 0), finished.recipe("write-only", 0)
    assert one.training == other.training and one.data == other.data
    assert other.model.variant == "ddl-cc" and other.model.residual_update == "write_only"
    assert finished.recipe("baseline@1.5", 0).training.max_steps == 3
    for method in METHODS:
        finished.recipe(method, 0)  # every method is a valid recipe


def test_the_summary_pairs_seeds_and_names_what_it_compares(finished: Study) -> None:
    summary = json.loads((finished.folder / "study.json").read_text())
    assert summary["tokens"] == 2 * 2 * 16
    methods = summary["methods"]
    assert list(methods) == ["baseline", "ddl", "baseline@1.5"]
    cells = read_cells(finished)
    for seed in (0, 1):
        difference = cells["ddl"][seed].loss - cells["baseline"][seed].loss
        assert methods["ddl"]["minus_baseline"]["values"][seed] == pytest.approx(difference)
    assert methods["baseline@1.5"]["flops_ratio"] == pytest.approx(1.5)
    assert [step for step, _ in methods["ddl"]["curve"]] == [0, 1, 2]
    gates = methods["ddl"]["gates"]
    assert [one["step"] for one in gates] == [0, 1, 2]
    assert sum(gates[0]["regimes"].values()) == pytest.approx(1)
    assert methods["baseline"]["gates"] is None
    assert (finished.folder / "study.png").is_file()


def test_tables_print_every_method(finished: Study) -> None:
    summary = json.loads((finished.folder / "study.json").read_text())
    table = study_table(summary)
    assert table.count("\n|") == 4  # rule and three rows
    assert "| ddl | 2 |" in table and "0.00 M tokens" in table
    assert "| ddl | 0.50 |" in gates_table(summary)


def test_a_finished_cell_is_not_run_again(
    finished: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: Any, **options: Any) -> None:
        raise AssertionError("a finished cell was trained")

    monkeypatch.setattr(study_module, "train", fail)
    monkeypatch.setattr(study_module, "measure_step_times", fail)
    run_study(finished, [0, 1], ["baseline", "ddl"])
    write_times(finished, ["baseline"], rounds=1)
    other = Study((*finished.arguments, "training.lr=0.5"), finished.folder)
    with pytest.raises(UsageError, match=r"training\.lr was"):
        run_study(other, [0], ["baseline"])


def test_cells_of_other_rows_are_refused(finished: Study, tmp_path: Path) -> None:
    import shutil

    folder = tmp_path / "copy"
    shutil.copytree(finished.folder, folder)
    metrics = folder / "ddl-1" / "metrics.json"
    content = json.loads(metrics.read_text())
    content["data"]["sha256"] = "0" * 64
    metrics.write_text(json.dumps(content))
    with pytest.raises(DataError, match="different rows"):
        read_cells(Study(finished.arguments, folder))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("training.eval_steps=null", "training.eval_steps"),
        ("model.depth_budgets=[1]", "must be empty"),
        ("model.init_from=somewhere", "brings its own shape"),
    ],
)
def test_a_recipe_without_what_a_study_needs_is_refused(
    change: str, said: str, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=said):
        open_study((*SMALL, change), tmp_path)


def test_the_loss_at_a_cost_lies_between_complete_runs() -> None:
    points = [(1.0, 3.0), (2.0, 2.0), (4.0, 1.5)]
    assert loss_at(points, 1.01) == 3.0  # the same cost
    assert loss_at(points, math.sqrt(2)) == pytest.approx(2.5)
    assert loss_at(points, math.sqrt(8)) == pytest.approx(1.75)
    assert loss_at(points, 4.5) is None
    assert loss_at(points, 0.5) is None


def test_costs_decide_which_baseline_is_met(tmp_path: Path) -> None:
    def cell(loss: float, steps: int, flops: float) -> Cell:
        entry = {"flops": flops, "cross_entropy": loss, "parameters": 1, "bits_per_byte": loss}
        return Cell({"budgets": [entry]}, tmp_path / "absent.jsonl", steps)

    cells = {
        "baseline": {s: cell(3.0 + s, 100, 10.0) for s in range(3)},
        "baseline@2": {s: cell(2.0 + s, 200, 10.0) for s in range(3)},
        "ddl": {s: cell(loss + s, 100, 10.0) for s, loss in enumerate((2.39, 2.4, 2.41))},
    }
    times = {"methods": {"baseline": {"ratio": 1.0}, "ddl": {"ratio": 2.0}}}
    found = summarise(cells, times)["ddl"]
    assert found["minus_baseline"]["mean"] == pytest.approx(-0.6)
    assert found["minus_baseline_at_flops"]["mean"] == pytest.approx(-0.6)
    # It takes twice as long, in which the baseline does better.
    assert found["minus_baseline_at_time"]["mean"] == pytest.approx(0.4)
    assert found["minus_baseline_at_time"]["verdict"] == "higher"


def test_verdicts_follow_the_interval_and_the_number_of_comparisons() -> None:
    assert verdict([-1.0, -1.1, -0.9]) == "lower"
    assert verdict([1.0, 1.1, 0.9]) == "higher"
    assert verdict([1.0, -1.1, 0.2]) == "not separable"
    assert verdict([1.0]) == "one seed"
    # Equal differences have no spread to judge by.
    assert verdict([0.5, 0.5, 0.5]) == "not separable"
    values = [-1.0, -1.2, -0.7]
    assert verdict(values) == "lower" and verdict(values, 60) == "not separable"
    assert interval(values)["high"] < 0


def test_times_of_another_recipe_are_refused(finished: Study) -> None:
    other = Study((*finished.arguments, "training.batch_size=3"), finished.folder)
    with pytest.raises(UsageError, match="timed the steps of another recipe"):
        write_times(other, ["baseline"], rounds=1)


def test_methods_that_come_later_are_timed_with_those_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    timed: list[set[str]] = []

    def measure(recipes: Any, rounds: int) -> dict[str, Any]:
        timed.append(set(recipes))
        return {"methods": {name: {"ratio": 1.0} for name in recipes}}

    monkeypatch.setattr(study_module, "measure_step_times", measure)
    monkeypatch.setattr(study_module, "prepare_streams", lambda data: None)
    study = Study(SMALL, tmp_path)
    write_times(study, ["ddl", "baseline@1.25"], rounds=1)
    write_times(study, ["ddl-cc"], rounds=1)
    write_times(study, ["ddl", "ddl-cc"], rounds=1)
    assert timed == [{"baseline", "ddl"}, {"baseline", "ddl", "ddl-cc"}]
