"""A study of two steps: all methods get a cell, finished cells are kept, seeds are summed up."""

import json
from pathlib import Path

import pytest
from nestling.recipes.delta_encoder import study
from nestling.recipes.delta_encoder.study_summary import interval
from nestling.recipes.recipe_loader import load_recipe

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


def test_interval_is_students_t() -> None:
    # n = 3, sd = 1: half-width 4.303 / sqrt(3).
    found = interval([1.0, 2.0, 3.0])
    assert found["mean"] == 2.0
    assert found["high"] - 2.0 == pytest.approx(4.3027 / 3**0.5, rel=1e-4)
    assert interval([1.0])["low"] is None
