"""Delta-Matryoshka++ on random tokens: the shipped recipe, cut down to steps of milliseconds."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from nestling.recipes.data.corpus import PreparedData
from nestling.recipes.delta_encoder.build import build_model, build_trainer
from nestling.recipes.recipe_loader import load_recipe
from nestling.recipes.recipe_schema import DeltaEncoderRecipe
from nestling.trainers.delta_encoder_trainer import DeltaEncoderTrainer
from torch import Tensor
from transformers import TrainerCallback

TOTAL = 12  # optimizer steps, four in each phase
PHASES = {"packing": (0, 1), "residualization": (4, 5), "calibration": (8, 9)}
KINDS = {
    "dense": ["model.delta=dense", "loss.sparsity_weight=0", "loss.orthogonality_weight=0"],
    "dictionary": ["model.delta=dictionary"],
    "low_rank": ["model.delta=low_rank", "loss.sparsity_weight=0", "loss.orthogonality_weight=0"],
}


def tiny_plus(folder: Path | str, *changes: str) -> DeltaEncoderRecipe:
    """Compose the recipe."""
    return load_recipe(
        [
            "recipe=delta_encoder/plus",
            f"output_dir={folder}",
            "model.hidden_size=32",
            "model.intermediate_size=48",
            "model.max_position_embeddings=64",
            "model.delta_atoms=3",
            "model.delta_rank=2",
            "data.max_length=32",
            f"training.max_steps={TOTAL}",
            "training.batch_size=8",
            "training.save_steps=1",
            "training.save_total_limit=50",
            "training.eval_steps=null",
            "training.logging_steps=1",
            "training.bf16=false",
            "training.use_cpu=true",
            *changes,
        ]
    )


def random_rows(count: int, seed: int = 0) -> list[dict[str, list[int]]]:
    """Rows of 20 to 32 tokens in two documents."""
    rows = []
    for position in range(count):
        generator = np.random.Generator(np.random.Philox(key=[seed, position]))
        length = int(generator.integers(20, 33))
        ids = generator.integers(5, 96, length)
        rows.append(
            {
                "input_ids": ids.tolist(),
                "document_ids": [1] * 12 + [2] * (length - 12),
            }
        )
    return rows


def prepared(tokenizer: Any) -> PreparedData:
    """Rows that need no corpus."""
    train: Any = random_rows(48)
    validation: Any = random_rows(10, seed=1)
    return PreparedData(train, validation, tokenizer, {})


def plus_trainer(recipe: DeltaEncoderRecipe, tokenizer: Any) -> DeltaEncoderTrainer:
    """Build model and trainer as `train` does."""
    data = prepared(tokenizer)
    torch.manual_seed(recipe.seed)
    trainer = build_trainer(recipe, build_model(recipe, data), data)
    trainer.state.max_steps = TOTAL
    trainer.model.train()
    return trainer


def batch_of(trainer: DeltaEncoderTrainer, positions: range = range(8)) -> dict[str, Tensor]:
    """Collate rows."""
    return trainer.data_collator([trainer.train_dataset[position] for position in positions])


class StopAt(TrainerCallback):
    """Ends the run after a step, as an interruption just after a save would."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        control.should_training_stop |= state.global_step == self.step
