from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import get_type_hints

import pytest
import yaml
from nestling.configuration.budget import BudgetError
from nestling.recipes.cli_errors import ModelFolderError, UsageError
from nestling.recipes.recipe_catalogue import RECIPES_FOLDER, catalogue, describe
from nestling.recipes.recipe_loader import (
    load_recipe,
    load_saved_recipe,
    recipe_yaml,
    save_recipe,
)
from nestling.recipes.recipe_overrides import KEY_ALIASES, recipe_keys
from nestling.recipes.recipe_schema import RECIPE_SCHEMAS, DeltaEncoderRecipe
from nestling.recipes.recipe_sections import DATA_SOURCES

TINY = "recipe=delta_encoder/tiny"
SHIPPED = [entry.name for entry in catalogue()]


def write_recipe(folder: Path, body: str, name: str = "mine.yaml") -> str:
    """Write a user's recipe that builds on tiny and return the argument that selects it."""
    path = folder / name
    path.write_text(f"# mine\ndefaults: [delta_encoder/tiny, _self_]\n{body}")
    return f"recipe={path}"


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_recipes_compose_and_describe_themselves(name: str) -> None:
    recipe = load_recipe([f"recipe={name}"])
    assert recipe.family == name.split("/")[0]
    path = RECIPES_FOLDER / f"{name}.yaml"
    assert path.read_text().startswith("# @package _global_\n")
    assert 20 < len(describe(path)) < 100


@pytest.mark.parametrize("name", SHIPPED)
def test_resolved_recipe_composes_to_itself(name: str, tmp_path: Path) -> None:
    budget = {"delta_encoder": "1:2:2", "ddl": "1:1"}[name.split("/")[0]]
    recipe = load_recipe([f"recipe={name}", "lr=2e-5", f"evaluation.budgets=[{budget}]"])
    save_recipe(recipe, tmp_path)
    assert load_saved_recipe(tmp_path) == recipe
    # Any YAML reader gets the same types: no text turned into numbers, no number into text.
    content = yaml.safe_load((tmp_path / "recipe.yaml").read_text())
    assert content["evaluation"]["budgets"] == [budget]
    assert content["training"]["lr"] == 2e-5


def test_package_header_is_the_one_hydra_reads() -> None:
    from hydra.plugins.config_source import ConfigSource

    text = (RECIPES_FOLDER / "delta_encoder" / "tiny.yaml").read_text()
    assert ConfigSource._get_header_dict(text) == {"package": "_global_"}


def test_the_saved_recipe_is_found_beside_the_model_and_takes_overrides(tmp_path: Path) -> None:
    save_recipe(load_recipe([TINY]), tmp_path)
    model = tmp_path / "model"
    model.mkdir()
    assert load_saved_recipe(model, ["data.path=elsewhere"]).data.path == "elsewhere"
    with pytest.raises(ModelFolderError, match=r"recipe\.yaml"):
        load_saved_recipe(model / "deeper" / "still")


@pytest.mark.parametrize(
    ("argument", "words"),
    [
        ("lr=5", ["training.lr=5 would change nothing", "keys of data or evaluation only"]),
        ("model.delta_token_ratio=0.1", ["would change nothing", "--delta-token-ratio 0.1, or"]),
        ("export.delta_token_ratio=0.1", ["would change nothing", "--delta-token-ratio 0.1, or"]),
        ("output_dir=x", ["output_dir=x would change nothing"]),
        ("seed=3", ["seed=3 would change nothing"]),
        ("evaluation.bathces=1", ["unknown recipe key", "did you mean evaluation.batches"]),
    ],
)
@pytest.mark.parametrize("recipe", [TINY, "recipe=ddl/tiny"])
def test_a_finished_model_is_measured_as_it_is(
    recipe: str, argument: str, words: list[str], tmp_path: Path
) -> None:
    save_recipe(load_recipe([recipe]), tmp_path)
    if "ddl" in recipe and "delta_token_ratio" in argument:
        words = [f"unknown recipe key '{argument.partition('=')[0]}'"]
    with pytest.raises(UsageError) as caught:
        load_saved_recipe(tmp_path, [argument])
    for word in words:
        assert word in str(caught.value)
    assert load_saved_recipe(tmp_path, ["max_length=16", "evaluation.batches=1"]).data == replace(
        load_recipe([recipe]).data, max_length=16
    )


def test_save_leaves_only_the_whole_file(tmp_path: Path) -> None:
    recipe = load_recipe([TINY])
    save_recipe(recipe, tmp_path)
    save_recipe(recipe, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["recipe.yaml"]


def test_numbers_in_scientific_notation_are_numbers(tmp_path: Path) -> None:
    assert load_recipe([TINY, "training.lr=2e-4"]).training.lr == 2e-4
    in_file = load_recipe([write_recipe(tmp_path, "training: {lr: 2e-4}")])
    assert in_file.training.lr == 2e-4
    assert isinstance(in_file.training.lr, float)


def test_unquoted_budget_in_yaml_is_explained(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, "model: {extra_budgets: [1:12:12]}")
    with pytest.raises(UsageError, match=r"4332; quote budgets in YAML"):
        load_recipe([recipe])


def test_quoted_budgets_and_budgets_of_overrides_stay_text(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, 'export: {budgets: ["1:3:3"]}')
    assert load_recipe([recipe]).export.budgets == ["1:3:3"]
    override = load_recipe([TINY, "export.budgets=[1:3:3,0.5:2:1]"])
    assert override.export.budgets == ["1:3:3", "0.5:2:1"]


@pytest.mark.parametrize(
    ("argument", "words"),
    [
        ("training.lrr=1", ["training.lrr", "did you mean training.lr?"]),
        ("hidden_sise=1", ["hidden_sise", "did you mean hidden_size?"]),
        ("model.lr=1", ["model.lr", "training.lr"]),
        ("+training.extra=1", ["training.extra"]),
        ("model=3", ["section"]),
        ("~model.hidden_size", ["key=value"]),
        ("lr=abc", ["training.lr", "abc", "float"]),
        ("training.max_steps=1.5", ["training.max_steps", "1.5"]),
        ("lr=nan", ["training.lr", "nan"]),
        ("lr=0", ["training.lr", "> 0"]),
        ("lr=1,2", ["training.lr", "[a,b]"]),
        ("training.epochs=3", ["max_steps=40", "epochs=3.0", "null"]),
        ("training.max_steps=null", ["max_steps=None", "epochs=None"]),
        ("data.mlm_probability=0", ["data.mlm_probability", "(0, 1)"]),
        ("data.mlm_probability=1", ["data.mlm_probability", "(0, 1)"]),
        ("training.batch_size=0", ["training.batch_size", ">= 1"]),
        ("model.head_budgets=[5]", ["model.head_budgets", "1..4"]),
        ("width_budgets=[1.5]", ["model.width_budgets", "(0, 1]"]),
        ("data.max_length=4096", ["data.max_length", "128", "max_position_embeddings"]),
        ("data.source=embeded", ["embeded", "did you mean embedded?"]),
        ("data.source=ecommerce", ["data.path"]),
        ("data.source=hub", ["data.name"]),
        ("training.budget_sampling=lottery", ["sandwich, fixed, random"]),
        ("export.format=onnx", ["auto, native, remote, state-dict"]),
        ("model.width_budgets=[a]", ["width_budgets", "'a'"]),
        ("lr=[1", ["[1"]),
    ],
)
def test_bad_overrides_get_one_line(argument: str, words: list[str]) -> None:
    with pytest.raises(UsageError) as caught:
        load_recipe([TINY, argument])
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["data.path=a", "data.name=b"], "both given"),
        (["data.source=embedded", "data.path=a"], "data.source=null"),
        (["loss.kd_weight=0", "loss.masked_lm_weight=0"], "masked_lm_weight is 0 and loss.teacher"),
        (["data.text_column=a", "data.text_columns=[b]"], "text_columns"),
        (["recipe=delta_encoder/demo"], "2 recipes"),
    ],
)
def test_keys_that_do_not_go_together(arguments: list[str], word: str) -> None:
    with pytest.raises(UsageError, match=word):
        load_recipe([TINY, *arguments])


@pytest.mark.parametrize("budget", ["0.5:9:1", "0.5:1:9", "0.5:1:1:999", "1.5:1:1", "0.5:1"])
def test_impossible_budgets_fail_before_training(budget: str) -> None:
    with pytest.raises(BudgetError, match=r"export\.budgets: "):
        load_recipe([TINY, f"export.budgets=[{budget}]"])


def test_budgets_of_an_unopened_checkpoint_are_not_judged() -> None:
    recipe = load_recipe([TINY, "init_from=org/model", "export.budgets=[0.5:9:9]"])
    assert recipe.export.budgets == ["0.5:9:9"]


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("training: {stepz: 3}", ["training.stepz", "max_steps"]),
        ("training: {batch_size: many}", ["training.batch_size", "many"]),
        ("training: [1", ["not YAML"]),
    ],
)
def test_bad_files_get_one_line(tmp_path: Path, body: str, words: list[str]) -> None:
    with pytest.raises(UsageError) as caught:
        load_recipe([write_recipe(tmp_path, body)])
    for word in words:
        assert word in str(caught.value)


def test_a_file_without_defaults_needs_a_family(tmp_path: Path) -> None:
    path = tmp_path / "own recipe.v2.yaml"
    path.write_text("training: {max_steps: 3}\n")
    with pytest.raises(UsageError, match="family: delta_encoder"):
        load_recipe([f"recipe={path}"])
    path.write_text("family: delta_encoder\ntraining: {max_steps: 3}\n")
    assert load_recipe([f"recipe={path}"]).training.max_steps == 3


@pytest.mark.parametrize("name", ["tiny", "delta_encoder/tinny", "nowhere.yaml", "delta_encoder"])
def test_unknown_recipes_list_what_there_is(name: str) -> None:
    with pytest.raises(UsageError, match="delta_encoder/demo"):
        load_recipe([f"recipe={name}"])


@pytest.mark.parametrize(
    "text", ["/a=b, c", "it's", "~/x", "back\\slash\\", "a\\'b", "1e3", "0.5:2:2", "[x]"]
)
def test_text_values_are_taken_literally(text: str) -> None:
    assert load_recipe([TINY, f"output_dir={text}"]).output_dir == text


def test_lists_need_no_brackets_and_free_keys_need_no_plus() -> None:
    recipe = load_recipe([TINY, "width_budgets=0.5,1.0", "training.lr_multipliers.embed=0.5"])
    assert recipe.model.width_budgets == [0.5, 1.0]
    assert recipe.training.lr_multipliers == {"embed": 0.5}


def test_aliases_point_at_keys_and_work() -> None:
    keys = recipe_keys(DeltaEncoderRecipe)
    assert set(KEY_ALIASES.values()) <= set(keys)
    recipe = load_recipe(
        [TINY, "train_steps=7", "batch_size=3", "base_model_path=org/x", "fp16=true"]
    )
    training = recipe.training
    assert (training.max_steps, training.batch_size, training.bf16) == (7, 3, True)
    assert recipe.init.base == "org/x"


@pytest.mark.parametrize("family", list(RECIPE_SCHEMAS))
def test_every_key_is_documented(family: str) -> None:
    for section, kind in get_type_hints(RECIPE_SCHEMAS[family]).items():
        if not is_dataclass(kind):
            continue
        # A section inherits the keys, and their documentation, that all families share.
        documented = "".join(base.__doc__ or "" for base in kind.__mro__ if is_dataclass(base))
        for item in fields(kind):
            assert f"        {item.name}: " in documented, f"{section}.{item.name}"


def test_no_hydra_state_or_folders_are_left_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hydra.core.global_hydra import GlobalHydra

    monkeypatch.chdir(tmp_path)
    load_recipe([TINY])
    assert not GlobalHydra.instance().is_initialized()
    assert list(tmp_path.iterdir()) == []


def test_sources_are_those_of_the_data_room() -> None:
    from nestling.recipes.data.document_sources import SOURCES

    assert set(DATA_SOURCES) == set(SOURCES)


def test_recipe_yaml_begins_with_the_header() -> None:
    assert recipe_yaml(load_recipe([TINY])).startswith("# @package _global_\n# ")
