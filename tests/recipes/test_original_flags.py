"""The original tool's command lines compose to the recipes they mean."""

import shlex
from pathlib import Path

import pytest
from nestling.recipes import cli
from nestling.recipes.cli_arguments import rewrite_arguments
from nestling.recipes.cli_errors import UsageError
from nestling.recipes.ddl_schema import DdlRecipe
from nestling.recipes.recipe_loader import load_recipe, of_family, save_recipe

# Verbatim from the original's README, without its name.
TRAIN_DEMO = """train
  --train-tokens "1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16"
  --valid-tokens "5 6 7 8 9 10 11 12 13 14 15 16 1 2 3 4"
  --all-variants --out /elsewhere/ddl-demo --seq-len 8 --max-steps 32"""
TRAIN_FILES = """train
  --train-file data/train.txt --valid-file data/valid.txt
  --out artifacts/ --all-variants
  --d-model 128 --layers 6 --heads 8 --vocab-size 32000 --d-value 4
  --max-steps 1000 --eval-interval 100 --learning-rate 3e-4
  --warmup-steps 50 --weight-decay 0.1 --grad-clip 1.0"""


def _recipe(command: str) -> tuple[DdlRecipe, list[str]]:
    arguments = rewrite_arguments(shlex.split(command))
    assert arguments.pop(0) == "train"
    flags = [word for word in arguments if word.startswith("--")]
    keys = [word for word in arguments if not word.startswith("--")]
    return of_family(load_recipe(keys), DdlRecipe), flags


def test_the_demo_command() -> None:
    recipe, flags = _recipe(TRAIN_DEMO)
    assert flags == ["--all-variants"]
    assert recipe.data.train_tokens == " ".join(map(str, range(1, 17)))
    assert (recipe.data.max_length, recipe.training.max_steps) == (8, 32)
    assert recipe.output_dir == "/elsewhere/ddl-demo"
    # What the command leaves open has the original's defaults.
    training = recipe.training
    assert (training.lr, training.eval_steps, training.warmup_steps) == (1e-3, 4, None)
    assert (training.weight_decay, training.adam_epsilon, training.max_grad_norm) == (0.1, 1e-5, 1)
    assert (training.adam_beta1, training.adam_beta2, training.min_lr_ratio) == (0.9, 0.95, 0)
    assert training.warmup_ratio == 0
    assert recipe.model.preset == "ddl-rs"


def test_the_command_with_files() -> None:
    recipe, flags = _recipe(TRAIN_FILES)
    assert flags == ["--all-variants"]
    model, training = recipe.model, recipe.training
    assert (recipe.data.path, recipe.data.valid_path) == ("data/train.txt", "data/valid.txt")
    assert (model.hidden_size, model.num_hidden_layers, model.num_attention_heads) == (128, 6, 8)
    assert (model.vocab_size, model.d_value) == (32000, 4)
    assert (training.max_steps, training.eval_steps, training.lr) == (1000, 100, 3e-4)
    assert (training.warmup_steps, training.max_grad_norm) == (50, 1.0)


def test_a_flag_changes_a_recipe_that_is_named() -> None:
    arguments = rewrite_arguments(["train", "recipe=ddl/demo", "--d-model=96"])
    assert arguments == ["train", "recipe=ddl/demo", "model.hidden_size=96"]


def test_resume_takes_the_folder_of_a_run(tmp_path: Path) -> None:
    recipe = load_recipe(["recipe=ddl/tiny", f"output_dir={tmp_path}", "model.hidden_size=16"])
    save_recipe(recipe, tmp_path)
    arguments = rewrite_arguments(["train", "--resume", str(tmp_path)])
    assert arguments[:2] == ["train", "--resume"]
    assert load_recipe(arguments[2:]) == recipe
    # The flag alone means the run in output_dir, as for every recipe.
    plain = ["train", "recipe=ddl/tiny", "--resume"]
    assert rewrite_arguments(plain) == plain


@pytest.mark.parametrize("command", ["train --d-model", "train --d-model --layers 2"])
def test_a_flag_without_its_value_is_named(command: str) -> None:
    with pytest.raises(UsageError, match="--d-model needs a value"):
        rewrite_arguments(command.split())


@pytest.mark.parametrize(
    ("command", "hint"),
    [
        ("train --dmodel 32", "No such option: --dmodel; did you mean --d-model? Recipe keys"),
        ("train --out=x --max-step 3", "; did you mean --max-steps?"),
        ("train recipe=ddl/tiny --dryrun", "--dryrun; did you mean --dry-run?"),
        ("generate --checkpont m", "--checkpont; did you mean --checkpoint?"),
    ],
)
def test_a_misspelt_flag_names_the_nearest(
    command: str, hint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli._run(command.split()) == 2
    said = capsys.readouterr().err
    assert hint in said and said.count("\n") == 1


@pytest.mark.parametrize("flag", ["--lr", "--quiet"])
def test_a_flag_that_is_like_no_other_names_none(
    flag: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli._run(["train", "recipe=ddl/tiny", flag, "3"]) == 2
    assert "did you mean" not in capsys.readouterr().err


def test_one_value_channel_for_all_variants_is_refused_in_the_words_typed(
    capsys: pytest.CaptureFixture[str],
) -> None:
    command = ["train", "--train-tokens", "1 2 3", "--all-variants", "--d-value", "1"]
    assert cli._run(command) == 2
    said = capsys.readouterr().err
    assert "model.d_value is 1, but four of the six variants" in said
    assert "ddl-cc" not in said


def test_flags_of_other_verbs_are_left_alone() -> None:
    command = "export M --budget 1:1 --output D"
    assert rewrite_arguments(command.split()) == command.split()
    assert rewrite_arguments(["generate", "--checkpoint", "C"]) == ["generate", "--model", "C"]
