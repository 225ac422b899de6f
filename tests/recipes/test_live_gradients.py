"""Every trainable parameter of every shipped preset has a gradient within two steps."""

from pathlib import Path
from typing import Any

import pytest
import torch
from nestling.configuration.delta_budget import DeltaBudget
from nestling.recipes.delta_encoder.study_ablations import ABLATION_CHANGES
from nestling.recipes.delta_encoder.study_methods import METHODS, stages_of
from nestling.recipes.recipe_loader import load_recipe
from nestling.recipes.recipe_schema import DeltaEncoderRecipe
from tiny_plus import TOTAL, batch_of, plus_trainer

SMALL = [
    "recipe=delta_encoder/demo",
    "model.hidden_size=32",
    "model.intermediate_size=48",
    "model.max_position_embeddings=64",
    "data.max_length=32",
    "training.bf16=false",
    "training.use_cpu=true",
    f"training.max_steps={TOTAL}",
    "training.batch_size=8",
]
NAMED = {
    "smallest": DeltaBudget.parse("0.5:2:2"),
    "middle": DeltaBudget.parse("0.5:2:4"),
    "largest": DeltaBudget.parse("1.0:4:4"),
}


def dead_parameters(recipe: DeltaEncoderRecipe, tokenizer: Any) -> set[str]:
    """Take the first two steps that run the largest budget; return what got no gradient."""
    trainer = plus_trainer(recipe, tokenizer)
    model = trainer.model
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    whole = DeltaBudget.full(model.config)
    steps = [
        step
        for step in range(200)
        if whole in trainer.planner.plan(step, TOTAL, trainer.term_weights(0)).budgets
    ]
    dead = {name for name, _ in model.named_parameters()}
    for step in steps[:2]:
        optimizer.zero_grad()
        weights = trainer.term_weights(step)
        losses = trainer.step_losses(model, batch_of(trainer), step)
        total = [weights[name] * loss.total / loss.count for name, loss in losses.items()]
        torch.stack(total).sum().backward()
        for name, parameter in model.named_parameters():
            if parameter.grad is not None:
                assert parameter.grad.isfinite().all(), name
                dead -= {name} if parameter.grad.any() else set()
        optimizer.step()
    return dead


@pytest.mark.parametrize("method", METHODS)
def test_rules_of_the_study(method: str, tmp_path: Path, tiny_tokenizer: Any) -> None:
    """The first run of each; later runs start from its model and train the same parameters."""
    recipe = stages_of(
        method, load_recipe(SMALL), NAMED, steps=TOTAL, seed=0, folder=tmp_path / "cell"
    )[0]
    assert dead_parameters(recipe, tiny_tokenizer) == set()


@pytest.mark.parametrize("name", ABLATION_CHANGES)
def test_changes_of_the_study(name: str, tmp_path: Path, tiny_tokenizer: Any) -> None:
    recipe = load_recipe([*SMALL, *ABLATION_CHANGES[name], f"output_dir={tmp_path}"])
    assert dead_parameters(recipe, tiny_tokenizer) == set()


def test_the_share_of_the_largest_budget_reaches_the_trainer(
    tmp_path: Path, tiny_tokenizer: Any
) -> None:
    recipe = load_recipe([*SMALL, "loss.largest_share=0.625", f"output_dir={tmp_path}"])
    assert plus_trainer(recipe, tiny_tokenizer).largest_share == 0.625


@pytest.mark.parametrize("name", ["mini_to_base", "mini_to_large"])
def test_growth_recipes_at_small_sizes(name: str, tmp_path: Path, tiny_tokenizer: Any) -> None:
    """All their parts; the checkpoints are left out and routing begins with the second phase."""
    sizes = [
        "init.base=null", "init.target=null", "model.hidden_size=32", "model.head_dim=8",
        "model.num_hidden_layers=4", "model.num_attention_heads=4", "model.intermediate_size=48",
        "model.vocab_size=96", "model.max_position_embeddings=64", "model.head_budgets=[2,3,4]",
        "model.depth_budgets=[2,3,4]", "model.base_heads=2", "model.tap_layers=[1,2,3]",
        "model.delta_atoms=3", "model.delta_rank=2", "data.max_length=32", "data.streaming=false",
        "training.batch_size=8", "training.bf16=false", "training.use_cpu=true",
        f"output_dir={tmp_path}",
    ]  # fmt: skip
    recipe = load_recipe([f"recipe=delta_encoder/{name}", *sizes])
    dead = dead_parameters(recipe, tiny_tokenizer)
    assert all(".preview." in parameter for parameter in dead)
