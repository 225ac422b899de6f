from pathlib import Path

import pytest
from nestling.recipes.bench_catalogue import bench_module, bench_suites
from nestling.recipes.cli_errors import ModelFolderError, UsageError
from nestling.recipes.nearest_match import did_you_mean, nearest
from nestling.recipes.saved_model import family_module, family_of_folder, model_folder


def test_family_comes_from_the_model_type(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text('{"model_type": "delta_encoder"}')
    assert family_of_folder(tmp_path / "model") == "delta_encoder"
    assert family_of_folder(tmp_path) == "delta_encoder"
    assert model_folder(tmp_path) == model_folder(tmp_path / "model") == tmp_path / "model"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "has no config.json"),
        ("{", "damaged"),
        ("[]", "damaged"),
        ("{}", "damaged"),
        ('{"model_type": "modernbert"}', "'modernbert'.*delta_encoder"),
    ],
)
def test_other_folders_are_refused(tmp_path: Path, content: str | None, words: str) -> None:
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(ModelFolderError, match=words):
        family_of_folder(tmp_path)


def test_unknown_part_of_a_family_is_refused() -> None:
    with pytest.raises(UsageError, match="has no no_such_part"):
        family_module("delta_encoder", "no_such_part")


def test_bench_suites_are_modules_with_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "step_time.py").write_text('"""Time of a step.\n\nMore."""\ndef run(output): ...\n')
    (tmp_path / "naive_step.py").write_text("def step(): ...\n")
    monkeypatch.setattr("nestling.recipes.bench_catalogue.BENCH_FOLDER", tmp_path)
    assert bench_suites() == {"step_time": "Time of a step."}
    with pytest.raises(UsageError, match="did you mean step_time"):
        bench_module("step_tme")


def test_nearest_names() -> None:
    keys = ["training.lr", "training.batch_size", "model.hidden_size"]
    assert nearest("lr", keys) == "training.lr"
    assert nearest("model.batch_sise", keys) == "training.batch_size"
    assert nearest("anything", []) is None
    assert did_you_mean("zzz", keys) == ""
