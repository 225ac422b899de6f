import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from nestling.recipes.cli_errors import DATA, USAGE, DataError, exit_code_of
from nestling.recipes.compare_results import compare_results
from nestling.recipes.comparison_file import BITS, NATS

MakeEvaluation = Callable[..., dict[str, Any]]
METRICS = "metrics.json"


@pytest.fixture
def write(tmp_path: Path, example_evaluation: MakeEvaluation) -> Callable[..., Path]:
    """Writes the evaluation of a run whose losses are shifted; returns the folder of the run."""

    def write_run(name: str, shift: float = 0.0, seed: int | None = None, **data: Any) -> Path:
        evaluation = example_evaluation(shift)
        evaluation["data"].update(data)
        (tmp_path / name).mkdir()
        (tmp_path / name / METRICS).write_text(json.dumps(evaluation))
        if seed is not None:
            variant = name.split("-")[0]
            recipe = {"family": "delta_encoder", "seed": seed, "model": {"variant": variant}}
            (tmp_path / name / "recipe.yaml").write_text(json.dumps(recipe))
        return tmp_path / name

    return write_run


@pytest.mark.parametrize(("shift", "is_separable"), [(0.05, True), (0.012, False)])
def test_single_runs_are_unpaired(
    write: Callable[..., Path], shift: float, is_separable: bool
) -> None:
    """Every loss of the example has the interval +-0.01, so a difference has +-0.0141."""
    found = compare_results([write("a"), write("b", shift) / METRICS])
    (pair,) = found["pairs"]
    assert (found["measure"], pair["basis"]) == (NATS, "text, unpaired")
    assert pair["difference"] == pytest.approx(shift)
    assert (pair["high"] - pair["low"]) / 2 == pytest.approx(0.01 * 2**0.5, rel=1e-5)
    assert pair["is_separable"] is is_separable
    assert any("unpaired and wider" in note for note in found["notes"])


def test_seeds_of_a_recipe_are_one_method(write: Callable[..., Path]) -> None:
    paths = [write(f"a-{seed}", 0.01 * seed, seed) for seed in range(3)]
    paths += [write(f"b-{seed}", 1 + 0.01 * seed, seed) for seed in range(3)]
    found = compare_results(paths)
    assert [(e["method"], e["seeds"]) for e in found["methods"]] == [
        ("a", [0, 1, 2]),
        ("b", [0, 1, 2]),
    ]
    assert found["pairs"][0]["basis"] == "seeds, paired"


@pytest.mark.parametrize("budget", ["smallest", "largest", "0.5:2:2"])
def test_the_budget_is_chosen(
    write: Callable[..., Path], example_evaluation: MakeEvaluation, budget: str
) -> None:
    found = compare_results([write("a"), write("b", 0.3)], budget=budget)
    evaluation = example_evaluation()
    wanted = evaluation["summary"].get(budget, budget)
    entry = next(e for e in evaluation["budgets"] if e["budget"] == wanted)
    assert found["models"][0]["cross_entropy"] == pytest.approx(entry["cross_entropy"])
    assert found["models"][0]["budget"] == wanted


def test_other_tokenizers_compare_in_bits_per_byte(tmp_path: Path, write: Any) -> None:
    paths = [
        write(name, source={"path": "t"}, sha256=name, counts={"bytes": 100, "tokens": tokens})
        for name, tokens in (("a", 50), ("b", 80))
    ]
    for path, tokens in zip(paths, (50, 80), strict=True):
        content = json.loads((path / METRICS).read_text())
        for entry in content["budgets"]:
            entry["bits_per_byte"] = entry["cross_entropy"] * tokens / 100
        (path / METRICS).write_text(json.dumps(content))
    found = compare_results(paths)
    assert found["measure"] == BITS
    best, worst = found["methods"]
    assert best["loss"]["mean"] / worst["loss"]["mean"] == pytest.approx(5 / 8)
    width = best["loss"]["high"] - best["loss"]["low"]
    assert width == pytest.approx(0.02 * 0.5, rel=1e-5)


def test_other_data_are_not_compared(write: Callable[..., Path]) -> None:
    with pytest.raises(ValueError, match="other data") as caught:
        compare_results([write("a", sha256="1"), write("b", sha256="2")])
    assert exit_code_of(caught.value) == DATA


def test_unequal_training_is_named(write: Callable[..., Path]) -> None:
    paths = [write("a", seed=0), write("b", 0.1, 0)]
    for path, steps in zip(paths, (4, 400), strict=True):
        recipe = json.loads((path / "recipe.yaml").read_text())
        recipe["data"] = {"max_length": 8}
        counts = {"max_steps": steps, "batch_size": 2, "gradient_accumulation_steps": 1}
        recipe["training"] = counts
        (path / "recipe.yaml").write_text(json.dumps(recipe))
    found = compare_results(paths)
    assert [model["training_tokens"] for model in found["models"]] == [64, 6400]
    assert any("equally many tokens" in note for note in found["notes"])


def test_unequal_shares_of_routed_tokens_are_named(write: Callable[..., Path]) -> None:
    paths = [write("a"), write("b", 0.1)]
    assert not any("delta_token_ratio" in note for note in compare_results(paths)["notes"])
    content = json.loads((paths[1] / METRICS).read_text())
    (paths[1] / METRICS).write_text(json.dumps({**content, "delta_token_ratio": 0.35}))
    (note,) = (n for n in compare_results(paths)["notes"] if "delta_token_ratio" in n)
    assert f"{paths[0] / METRICS} 1, {paths[1] / METRICS} 0.35" in note
    for entry in content["budgets"]:
        entry["delta_token_share"] = 0.25
    (paths[1] / METRICS).write_text(json.dumps({**content, "delta_token_threshold": 1.5}))
    (note,) = (n for n in compare_results(paths)["notes"] if "delta_token_ratio" in n)
    assert f"{paths[0] / METRICS} 1, {paths[1] / METRICS} 0.25" in note


def test_models_with_packs_of_other_names_are_other_methods(write: Callable[..., Path]) -> None:
    paths = [write("a-0", seed=0), write("a-1", 0.1, 1)]
    assert len(compare_results(paths)["methods"]) == 1
    content = json.loads((paths[1] / METRICS).read_text())
    content["delta_pack"] = {"file": "p.safetensors", "sha256": "0" * 64}
    (paths[1] / METRICS).write_text(json.dumps(content))
    assert len(compare_results(paths)["methods"]) == 2


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda content: content.pop("data"), "has no object 'data'"),
        (lambda content: content.pop("summary"), "has no object 'summary'"),
        (lambda content: content.update(budgets=["4:2"]), "no list of objects"),
        (lambda content: content["budgets"][0].pop("budget"), r"budgets\[0\] has no 'budget'"),
        (lambda content: content["budgets"][0].pop("cross_entropy"), "is no number"),
        (lambda content: content["budgets"][0].update(cross_entropy="low"), "is no number"),
        (lambda content: content["budgets"][0].update(cross_entropy_ci=[1.0]), "no pair"),
    ],
)
def test_a_damaged_evaluation_is_named(
    write: Callable[..., Path], damage: Callable[[dict[str, Any]], object], words: str
) -> None:
    path = write("a")
    content = json.loads((path / METRICS).read_text())
    damage(content)
    (path / METRICS).write_text(json.dumps(content))
    with pytest.raises(DataError, match=words) as caught:
        compare_results([path, write("b")])
    assert str(path / METRICS) in str(caught.value) and "\n" not in str(caught.value)


def report(variant: str, loss: float | None, **changes: Any) -> dict[str, Any]:
    return {
        "variant": variant,
        "config": {"d_model": 8},
        "training": {"max_steps": 8},
        "num_params": 12,
        "train_dataset": {"num_sequences": 2},
        "validation_dataset": {"num_sequences": 1},
        "steps_completed": 8,
        "initial_train": {"loss": 5.0},
        "final_train": {"loss": 4.0},
        "final_validation": None if loss is None else {"loss": loss},
        "best_validation": None if loss is None else {"loss": loss - 1},
        "history": [{"step": 8, "train_loss": 4.0, "validation_loss": loss}],
        **changes,
    }


def sweep(tmp_path: Path, name: str, *reports: dict[str, Any]) -> Path:
    path = tmp_path / f"{name}.json"
    path.write_text(json.dumps({"reports": list(reports)}))
    return path


def test_one_sweep_separates_nothing(tmp_path: Path) -> None:
    path = sweep(tmp_path, "s", report("Baseline", 4.5), report("DdlVector", 4.4))
    found = compare_results([path])
    assert found["verdict"] == "not separable: ddl, baseline"
    assert found["pairs"][0]["low"] is None
    assert found["models"][0]["curves"]["evaluation"] == [[8.0, 4.5]]
    best = compare_results([path], best_validation=True)
    assert best["methods"][0]["loss"]["mean"] == pytest.approx(3.4)


def test_several_sweeps_can_separate(tmp_path: Path) -> None:
    losses = [(4.50, 3.00), (4.51, 3.02), (4.52, 3.04)]
    paths = [
        sweep(tmp_path, str(a), report("Baseline", a), report("DdlVector", b)) for a, b in losses
    ]
    found = compare_results(paths)
    assert found["pairs"][0]["basis"] == "seeds"
    assert found["verdict"] == "1: ddl; 2: baseline"


@pytest.mark.parametrize(
    ("reports", "words", "code"),
    [
        ([report("Baseline", None)], "no final_validation", DATA),
        ([report("Baseline", 4.5), report("Baseline", 4.5)], "given twice", USAGE),
        (
            [report("Baseline", 4.5), report("DdlVector", 4.5, validation_dataset={"rows": 9})],
            "different validation data",
            DATA,
        ),
        ([report("Unknown", 4.5)], "Unknown", DATA),
        ([report("Baseline", float("nan"))], "NaN", DATA),
    ],
)
def test_bad_reports_are_one_line(
    tmp_path: Path, reports: list[dict[str, Any]], words: str, code: int
) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        compare_results([sweep(tmp_path, "s", *reports)])
    assert exit_code_of(caught.value) == code
    assert "\n" not in str(caught.value)


def test_bad_files_are_one_line(tmp_path: Path, write: Callable[..., Path]) -> None:
    good = write("good")
    cut = tmp_path / "cut.json"
    cut.write_text((good / METRICS).read_text()[:-40])
    other = tmp_path / "other.json"
    other.write_text('{"kind": "study"}')
    (tmp_path / "empty").mkdir()
    sweep(tmp_path, "s", report("Baseline", 4.5))
    for second, words, code in (
        ("absent.json", "does not exist", DATA),
        ("empty", "metrics.json does not exist", DATA),
        ("cut.json", "cut short", DATA),
        ("other.json", "kind 'study', which is not compared", DATA),
        ("s.json", "compare one kind", USAGE),
        ("good", "given twice", USAGE),
    ):
        with pytest.raises(ValueError, match=words) as caught:
            compare_results([good, tmp_path / second])
        assert exit_code_of(caught.value) == code
    with pytest.raises(ValueError, match="no budget 9:9; measured: 0.5:2:2") as caught:
        compare_results([good], budget="9:9")
    lost = json.loads((good / METRICS).read_text())
    for entry in lost["budgets"]:
        entry["cross_entropy"] = None
    (good / METRICS).write_text(json.dumps(lost))
    with pytest.raises(ValueError, match="is not finite") as caught:
        compare_results([good])
    assert exit_code_of(caught.value) == DATA
