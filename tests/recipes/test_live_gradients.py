"""Every trainable parameter of every shipped preset has a gradient within two steps."""

from pathlib import Path
from typing import Any

import pytest
import torch
from nestling.configuration.delta_budget import DeltaBudget
from nestling.recipes.delta_encoder.study_ablations import ABLATION_CHANGES
from nestling.recipes.delta_encoder.study_methods import METHODS, stages_of
from nestling.recipes.recipe_loader import load_recipe
from nestling.trainers.delta_encoder_trainer import DeltaEncoderTrainer
from tiny_plus import PHASES, TOTAL, batch_of, plus_trainer

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


def dead_parameters(trainer: DeltaEncoderTrainer, begin: int = 0) -> set[str]:
    """Take two steps that run the largest budget; return what got no gradient."""
    model = trainer.model
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    whole = DeltaBudget.full(model.config)
    sampler = trainer.planner.sampler
    steps = [step for step in range(begin, 200) if whole in sampler.sample(step, TOTAL)]
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
    """Every run; a later one starts from the model of the one before, which is also its teacher."""
    stages = stages_of(
        method, load_recipe(SMALL), NAMED, steps=TOTAL, seed=0, folder=tmp_path / "cell"
    )
    assert len(stages) == (3 if method == "dynabert" else 1)
    for index, recipe in enumerate(stages):
        trainer = plus_trainer(recipe, tiny_tokenizer)
        assert (trainer.teacher is not None) == (index > 0)
        assert dead_parameters(trainer) == set(), index
        trainer.model.save_pretrained(Path(recipe.output_dir) / "model")


@pytest.mark.parametrize("name", ABLATION_CHANGES)
def test_changes_of_the_study(name: str, tmp_path: Path, tiny_tokenizer: Any) -> None:
    recipe = load_recipe([*SMALL, *ABLATION_CHANGES[name], f"output_dir={tmp_path}"])
    assert dead_parameters(plus_trainer(recipe, tiny_tokenizer)) == set()


def test_the_share_of_the_largest_budget_reaches_the_trainer(
    tmp_path: Path, tiny_tokenizer: Any
) -> None:
    recipe = load_recipe([*SMALL, "loss.largest_share=0.625", f"output_dir={tmp_path}"])
    assert plus_trainer(recipe, tiny_tokenizer).largest_share == 0.625


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("name", ["mini_to_base", "mini_to_large"])
def test_growth_recipes_at_small_sizes(
    name: str, phase: str, tmp_path: Path, tiny_tokenizer: Any
) -> None:
    """All their parts in each phase; the checkpoints are left out, and packing routes nothing."""
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
    trainer = plus_trainer(recipe, tiny_tokenizer)
    dead = dead_parameters(trainer, begin=PHASES[phase][0])
    preview = {name for name, _ in trainer.model.named_parameters() if ".preview." in name}
    assert len(preview) == 4
    assert dead == (preview if phase == "packing" else set())
