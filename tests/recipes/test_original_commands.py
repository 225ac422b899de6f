"""The commands of the original README, in our keys: they compose without network."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from nestling.configuration.budget import ends_of
from nestling.configuration.delta_budget import DeltaBudget
from nestling.modeling.delta_encoder_heads import DeltaEncoderForMaskedLM
from nestling.recipes.delta_encoder.budget_plan import planner_of
from nestling.recipes.delta_encoder.loss_terms import weight_schedules
from nestling.recipes.delta_encoder.model_config import (
    check_checkpoints,
    delta_settings,
    grown_config,
)
from nestling.recipes.planned_sizes import planned_sizes
from nestling.recipes.recipe_loader import load_recipe
from nestling.recipes.recipe_schema import DeltaEncoderRecipe
from transformers import ModernBertConfig
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
        "enable_dds=true",
        "dds_num_atoms=16",
        "dds_rank=64",
        "enable_three_phase=true",
        "enable_cscf=true",
        "tap_layers=4,8,11",
        "enable_kd=true",
        "enable_mug=true",
        "enable_delta_depth=true",
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
        "enable_dds=false",
    ],
    # The outer step of the original's picture, for which its README has no command.
    "base to large": ["recipe=delta_encoder/base_to_large"],
    "on prepared data": [
        "recipe=delta_encoder/mini_to_base",
        "data.streaming=false",
        "pretokenized_path=./data/ecomniverse_packed",
        "tokenizer=thebajajra/RexBERT-base",
        "max_length=512",
    ],
    "ablations": [
        "recipe=delta_encoder/ablations",
        "base_ratio=0.5",
        "base_heads=6",
        "drop_path=0.2",
        "budget_cond_ln=true",
        "enable_dds=true",
        "dds_num_atoms=16",
        "dds_rank=64",
        "alpha_kd=1.0",
        "beta_delta=0.7",
        "rho_mug=0.1",
        "zeta_cscf=0.1",
    ],
    "ablations in small": [
        "recipe=delta_encoder/ablations",
        "hidden_size=128",
        "num_hidden_layers=4",
        "num_attention_heads=4",
        "intermediate_size=256",
        "base_heads=2",
        "dds_rank=16",
        "tap_layers=1,2,3",
        "head_budgets=2,3,4",
        "depth_budgets=2,3,4",
    ],
}
# layers, hidden, heads, MLP channels of the published checkpoints; head_dim is 64 everywhere.
REXBERT = {"mini": (19, 512, 8, 768), "base": (22, 768, 12, 1152), "large": (28, 1024, 16, 2624)}


@pytest.mark.parametrize("name", COMMANDS)
def test_train_dry_run(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from nestling.recipes.cli import app

    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, ["train", *COMMANDS[name], "--dry-run"])
    assert done.exit_code == 0, done.output
    assert "delta_encoder" in done.output and not list(tmp_path.iterdir())


@pytest.fixture
def true_shapes(tmp_path: Path) -> Path:
    """Folders with the configurations of RexBERT and no weights."""
    for name, (layers, hidden, heads, channels) in REXBERT.items():
        sizes = {"num_hidden_layers": layers, "hidden_size": hidden,
                 "num_attention_heads": heads, "intermediate_size": channels}  # fmt: skip
        ModernBertConfig(**sizes).save_pretrained(tmp_path / name)
    return tmp_path


def at_true_shapes(command: list[str], folder: Path) -> DeltaEncoderRecipe:
    recipe: Any = load_recipe(command)
    places = {f"thebajajra/RexBERT-{name}": str(folder / name) for name in REXBERT}
    base, target = recipe.init.base, recipe.init.target
    return replace(recipe, init=replace(recipe.init, base=places[base], target=places[target]))


@pytest.mark.parametrize(
    ("command", "small", "ends", "count"),
    [
        # Mini lies neither below nor above the command's budgets, and base has 22 layers.
        (
            COMMANDS["mini to base"],
            "0.666667:8:19:512",
            ("0.5:6:6:512", "1.0:12:22"),
            27 + 3,
        ),
        (
            COMMANDS["mini to large"],
            "0.292683:8:19:512",
            ("0.292683:8:19:512", "1.0:16:28"),
            27 + 1,
        ),
        (
            ["recipe=delta_encoder/mini_to_base"],
            "0.666667:8:19:512",
            ("0.666667:8:19:512", "1.0:12:22"),
            27 + 1,
        ),
        (
            ["recipe=delta_encoder/mini_to_large"],
            "0.292683:8:19:512",
            ("0.292683:8:19:512", "1.0:16:28"),
            27 + 1,
        ),
        (
            COMMANDS["base to large"],
            "0.439025:12:22:768",
            ("0.439025:12:22:768", "1.0:16:28"),
            27 + 1,
        ),
        # Mini inside base inside large.
        (
            [*COMMANDS["base to large"], 'model.extra_budgets=["0.292683:8:19:512"]'],
            "0.439025:12:22:768",
            ("0.292683:8:19:512", "1.0:16:28"),
            27 + 2,
        ),
    ],
    ids=["base command", "large command", "mini_to_base", "mini_to_large", "base_to_large",
         "all three"],
)
def test_every_step_can_be_planned_at_the_true_shapes(
    command: list[str], small: str, ends: tuple[str, str], count: int, true_shapes: Path
) -> None:
    """From the configurations alone: budgets with both ends, and passes in all three phases."""
    recipe = at_true_shapes(command, true_shapes)
    check_checkpoints(recipe)
    config = grown_config(recipe)
    budgets = config.budget_list()
    assert tuple(map(str, ends_of(budgets))) == ends
    assert small in map(str, budgets) and len(budgets) == count
    with torch.device("meta"):
        model = DeltaEncoderForMaskedLM(config)
    planner, schedules = planner_of(recipe, model.config), weight_schedules(recipe)
    for step in range(30):
        plan = planner.plan(step, 30, {name: w(step, 30) for name, w in schedules.items()})
        assert plan.budgets[0] == DeltaBudget.full(config)
        assert plan.routed is None or plan.routed[0].has_routed_delta(config)


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


def test_the_ablations_have_the_values_of_the_original() -> None:
    recipe = load_recipe(["recipe=delta_encoder/ablations"])
    model, loss = recipe.model, recipe.loss
    assert (model.num_hidden_layers, model.num_attention_heads) == (12, 12)
    assert (model.base_ratio, model.base_heads, model.drop_path) == (0.5, 6, 0.2)
    assert (model.delta, model.delta_atoms, model.delta_rank) == ("dictionary", 16, 64)
    weights = (loss.kd_weight, loss.delta_weight, loss.mug_weight, loss.cscf_weight)
    assert weights == (1.0, 0.7, 0.1, 0.1)
    budgets = set(map(str, planned_sizes(recipe).budgets))
    assert {"0.5:6:6", "0.75:9:9", "1.0:12:12"} <= budgets
    small, plus = (
        load_recipe(COMMANDS["ablations in small"]),
        load_recipe(["recipe=delta_encoder/plus"]),
    )
    assert small.model == plus.model


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
    for name in ("mini_to_large", "base_to_large"):
        assert sizes(load_recipe([f"recipe=delta_encoder/{name}"])) == (28, 1024, 16, 2624)
