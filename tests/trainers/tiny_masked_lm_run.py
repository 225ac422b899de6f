"""A masked LM, data and trainer small enough to train in milliseconds.

The model has one nested axis: a budget is the number of MLP channels that run.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nestling.trainers.hooked_trainer import HookedTrainer
from nestling.trainers.loss_term import LossSum, WeightedTerm
from nestling.trainers.losses.masked_lm import MaskedLmLoss
from nestling.trainers.schedules import Constant
from nestling.trainers.training_arguments import NestlingTrainingArguments
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import PretrainedConfig, PreTrainedModel, TrainerCallback
from transformers.utils import ModelOutput

VOCAB, HIDDEN, WIDTH, ROWS = 23, 8, 16, 24


class TinyConfig(PretrainedConfig):
    """Sizes of the model."""

    model_type = "tiny_elastic_masked_lm"

    def __init__(self, vocab_size: int = VOCAB, dropout: float = 0.0, **kwargs: Any) -> None:
        """Keep the sizes."""
        super().__init__(pad_token_id=kwargs.pop("pad_token_id", 0), **kwargs)
        self.vocab_size = vocab_size
        self.dropout = dropout


@dataclass
class TinyOutput(ModelOutput):
    """Logits of one or several budgets."""

    loss: Tensor | None = None
    logits: Tensor | None = None
    budget_logits: tuple[Tensor, ...] | None = None
    labels: Tensor | None = None


class TinyMaskedLm(PreTrainedModel):
    """Embedding, one residual MLP whose width is nested, a head."""

    config_class = TinyConfig

    def __init__(self, config: TinyConfig) -> None:
        """Build the layers."""
        super().__init__(config)
        self.embedding = nn.Embedding(config.vocab_size, HIDDEN)
        self.norm = nn.LayerNorm(HIDDEN)
        self.up = nn.Linear(HIDDEN, WIDTH)
        self.down = nn.Linear(WIDTH, HIDDEN)
        self.dropout = nn.Dropout(config.dropout)
        self.decoder = nn.Linear(HIDDEN, config.vocab_size)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """Leave torch's initialisation."""

    def _logits(self, hidden: Tensor, width: int) -> Tensor:
        inner = self.norm(hidden) @ self.up.weight[:width].T + self.up.bias[:width]
        update = torch.relu(inner) @ self.down.weight[:, :width].T + self.down.bias
        return self.decoder(hidden + self.dropout(update))

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        budgets: tuple[int, ...] | None = None,
    ) -> TinyOutput:
        """Return logits of labelled positions where there are labels, else of all."""
        hidden = self.dropout(self.embedding(input_ids))
        if labels is None:
            return TinyOutput(logits=self._logits(hidden, WIDTH))
        where = labels != -100
        hidden, targets = hidden[where], labels[where]
        all_logits = tuple(self._logits(hidden, width) for width in budgets or (WIDTH,))
        loss = nn.functional.cross_entropy(all_logits[0].float(), targets)
        return TinyOutput(
            loss=loss, logits=all_logits[0], budget_logits=all_logits, labels=targets
        )


class TinyRows(Dataset):
    """Rows of 4 to 10 tokens with 1 to 4 labels: a pure function of the position."""

    def __init__(self, num_rows: int = ROWS) -> None:
        """Set the number of rows."""
        self.num_rows = num_rows

    def __len__(self) -> int:
        """Return the number of rows."""
        return self.num_rows

    def __getitem__(self, position: int) -> dict[str, list[int]]:
        """Draw the row at a position."""
        rng = np.random.Generator(np.random.Philox(key=[7, position]))
        length = int(rng.integers(4, 11))
        ids = rng.integers(1, VOCAB, length)
        labels = np.full(length, -100)
        chosen = rng.choice(length, int(rng.integers(1, 5)), replace=False)
        labels[chosen] = ids[chosen]
        return {"input_ids": ids.tolist(), "labels": labels.tolist()}


def collate(rows: list[dict[str, list[int]]]) -> dict[str, Tensor]:
    """Pad rows."""
    length = max(len(row["input_ids"]) for row in rows)

    def pad(values: list[int], filler: int) -> list[int]:
        return values + [filler] * (length - len(values))

    return {
        "input_ids": torch.tensor([pad(row["input_ids"], 0) for row in rows]),
        "attention_mask": torch.tensor([pad([1] * len(row["input_ids"]), 0) for row in rows]),
        "labels": torch.tensor([pad(row["labels"], -100) for row in rows]),
    }


class TinySampler:
    """Yields `epoch * rows + row` in an order drawn from (seed, epoch)."""

    def __init__(self, num_rows: int = ROWS, seed: int = 0) -> None:
        """Start at epoch 0."""
        self.num_rows, self.seed, self.epoch = num_rows, seed, 0

    def __len__(self) -> int:
        """Return the rows of an epoch."""
        return self.num_rows

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        """Yield the positions."""
        order = np.random.Generator(np.random.Philox(key=[self.seed, self.epoch]))
        for row in order.permutation(self.num_rows):
            yield self.epoch * self.num_rows + int(row)


class TinyTrainer(HookedTrainer):
    """Plain masked LM."""

    def step_losses(self, model: nn.Module, batch: dict[str, Any], step: int) -> dict[str, LossSum]:
        """Run the full model."""
        logits = model(**batch).logits
        labels = batch["labels"]
        return {"masked_lm": self.terms["masked_lm"].term(logits, labels[labels != -100])}


class StopAt(TrainerCallback):
    """Ends the run after a step, as an interruption just after a save would."""

    def __init__(self, step: int) -> None:
        """Set the step."""
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Ask to stop."""
        if state.global_step == self.step:
            control.should_training_stop = True


def tiny_model(dropout: float = 0.0, seed: int = 1) -> TinyMaskedLm:
    """Build the model from a seed."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return TinyMaskedLm(TinyConfig(dropout=dropout))


def tiny_arguments(output_dir: Path | str, **changes: Any) -> NestlingTrainingArguments:
    """Arguments of a run on the CPU, 8 rows a step."""
    values: dict[str, Any] = {
        "output_dir": str(output_dir),
        "per_device_train_batch_size": 8,
        "gradient_accumulation_steps": 1,
        "learning_rate": 1e-2,
        "max_steps": 4,
        "logging_steps": 2,
        "save_strategy": "no",
        "use_cpu": True,
        "disable_tqdm": True,
        "seed": 11,
    }
    return NestlingTrainingArguments(**{**values, **changes})


def tiny_trainer(
    output_dir: Path | str,
    trainer_class: type[HookedTrainer] = TinyTrainer,
    dropout: float = 0.0,
    arguments: dict[str, Any] | None = None,
    **changes: Any,
) -> HookedTrainer:
    """Build a trainer; `changes` replace its constructor arguments."""
    values: dict[str, Any] = {
        "model": tiny_model(dropout),
        "args": tiny_arguments(output_dir, **(arguments or {})),
        "terms": [WeightedTerm(MaskedLmLoss(), Constant(1.0))],
        "train_dataset": TinyRows(),
        "train_sampler": TinySampler(),
        "data_collator": collate,
    }
    return trainer_class(**{**values, **changes})


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    """Copy all weights."""
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def logged(trainer: HookedTrainer, key: str) -> list[float]:
    """Collect one key of the log history."""
    return [line[key] for line in trainer.state.log_history if key in line]
