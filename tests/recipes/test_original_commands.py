"""The commands of the original README, in our keys: they compose without network."""

from pathlib import Path

import pytest
from nestling.recipes.delta_encoder.build import delta_settings
from nestling.recipes.delta_encoder.loss_terms import weight_schedules
from nestling.recipes.recipe_loader import load_recipe
from nestling.recipes.recipe_schema import DeltaEncoderRecipe
from typer.testing import CliRunner

COMMANDS = {
    "mini to base": [
        "recipe=delta_encoder/mini_to_base",
        "dataset_name=thebajajra/Ecom-niverse",
        "tokenizer=thebajajra/RexBERT-base",
        "base_model_path=thebajajra/RexBERT-mini",
        "target_model_path=thebajajra/RexBERT-base",
        "output_dir=./ckpts",
        "train_steps=100000",
        "batch_size=64",
        "lr=2e-4",
        "hidden_size=768",
        "num_hidden_layers=12",
        "num_attention_heads=12",
        "intermediate_size=3072",
        "width_budgets=0.5,0.75,1.0",
        "head_budgets=6,9,12",
        "depth_budgets=6,9,12",
        "model.delta=dictionary",
        "dds_num_atoms=16",
        "dds_rank=64",
        "enable_three_phase=true",
        "zeta_cscf=0.1",
        "tap_layers=4,8,11",
        "alpha_kd=1.0",
        "rho_mug=0.1",
        "training.survival_alpha=0.5",
        "enable_token_delta=true",
        "fp16=true",
    ],
    "mini to large": [
        "recipe=delta_encoder/mini_to_large",
        "base_model_path=thebajajra/RexBERT-mini",
        "target_model_path=thebajajra/RexBERT-large",
        "init_delta_from_target=true",
        "hidden_size=1024",
        "num_hidden_layers=24",
        "num_attention_heads=16",
        "intermediate_size=4096",
        # The weights of the target need a place to go to, which a dictionary is not.
        "model.delta=dense",
        "loss.sparsity_weight=0",
        "loss.orthogonality_weight=0",
    ],
    "on prepared data": [
        "recipe=delta_encoder/mini_to_base",
        "data.streaming=false",
        "pretokenized_path=./data/ecomniverse_packed",
        "max_length=512",
    ],
    "ablations": [
        "recipe=delta_encoder/ablations",
        "base_ratio=0.5",
        "base_heads=2",
        "drop_path=0.2",
        "budget_cond_ln=true",
        "alpha_kd=1.0",
        "beta_delta=0.7",
        "rho_mug=0.1",
        "zeta_cscf=0.1",
    ],
}


@pytest.mark.parametrize("name", COMMANDS)
def test_train_dry_run(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from nestling.recipes.cli import app

    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, ["train", *COMMANDS[name], "--dry-run"])
    assert done.exit_code == 0, done.output
    assert "delta_encoder" in done.output and not list(tmp_path.iterdir())


@pytest.mark.parametrize("length", [512, 1024])
def test_prepare_dry_run(length: int) -> None:
    from nestling.recipes.cli import app

    arguments = [
        "recipe=delta_encoder/mini_to_base", "dataset=thebajajra/Ecom-niverse",
        "tokenizer=thebajajra/RexBERT-base", f"max_length={length}", "num_proc=8",
        "pretokenized_path=./data/ecomniverse_packed",
    ]  # fmt: skip
    assert CliRunner().invoke(app, ["prepare", *arguments, "--dry-run"]).exit_code == 0


def test_the_command_means_what_it_says() -> None:
    recipe = load_recipe(COMMANDS["mini to base"])
    assert (recipe.init.base, recipe.init.target) == (
        "thebajajra/RexBERT-mini",
        "thebajajra/RexBERT-base",
    )
    assert recipe.model.tap_layers == [4, 8, 11] and recipe.training.three_phase
    schedules = weight_schedules(recipe)
    at = {name: [weight(step, 100) for step in (0, 50, 99)] for name, weight in schedules.items()}
    assert at["delta_residual"] == pytest.approx([0.3, 0.7, 0.5])
    assert at["monotone_upgrade"] == pytest.approx([0.0, 0.05, 0.1])
    assert at["cross_scale_features"] == pytest.approx([0.0, 0.1, 0.2])
    assert at["packing_regularizer"] == [1e-3, 0.0, 0.0]
    assert at["distillation"] == [1.0, 1.0, 1.0]


@pytest.mark.parametrize(("name", "kd"), [("tiny", 1.0), ("demo", 1 / 3), ("ecommerce", 1 / 3)])
def test_the_plain_recipes_have_none_of_it(name: str, kd: float) -> None:
    recipe = load_recipe([f"recipe=delta_encoder/{name}"])
    schedules = weight_schedules(recipe)
    assert {key: weight(0, 9) for key, weight in schedules.items()} == {
        "masked_lm": 1.0,
        "distillation": pytest.approx(kd, abs=1e-6),
    }
    assert recipe.loss.largest_share == (None if name == "tiny" else pytest.approx(2 / 3, abs=1e-6))
    assert delta_settings(recipe, None) == {}
    assert recipe.training.three_phase is False and recipe.training.survival_alpha is None


def test_weights_scale_the_phases() -> None:
    recipe = load_recipe(["recipe=delta_encoder/plus", "loss.delta_weight=1.4", "rho_mug=0"])
    schedules = weight_schedules(recipe)
    assert [schedules["delta_residual"](step, 9) for step in (0, 4, 8)] == pytest.approx(
        [0.6, 1.4, 1.0]
    )
    assert "monotone_upgrade" not in schedules
    constant = weight_schedules(
        load_recipe(["recipe=delta_encoder/plus", "training.three_phase=false"])
    )
    assert [constant["delta_residual"](step, 9) for step in (0, 4, 8)] == [0.7] * 3


def test_sizes_in_the_recipes_are_those_of_rexbert() -> None:
    """Not those of the original's table, which its own parameter counts contradict."""
    def sizes(recipe: DeltaEncoderRecipe) -> tuple[int, ...]:
        model = recipe.model
        return (model.num_hidden_layers, model.hidden_size, model.num_attention_heads,
                model.intermediate_size)  # fmt: skip

    assert sizes(load_recipe(["recipe=delta_encoder/mini_to_base"])) == (22, 768, 12, 1152)
    assert sizes(load_recipe(["recipe=delta_encoder/mini_to_large"])) == (28, 1024, 16, 2624)
