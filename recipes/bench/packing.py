"""Real tokens per second of packed rows against rows padded to full length, for skewed lengths."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...modeling.delta_encoder_heads import DeltaEncoderForMaskedLM
from ...modeling.input_checks import IGNORED_LABEL
from ..data.packing import PackedRow, fill_rate, pack_pieces
from ..interleaved_timing import time_interleaved
from .bench_models import build_model
from .bench_report import gate, report, torch_threads
from .bench_settings import ModelSettings

TARGET = 5.0
LOWEST_LENGTH = 4


@dataclass(frozen=True, kw_only=True)
class PackingSettings(ModelSettings):
    """The documents, the rows they fill and the model that reads them.

    Attributes:
        documents: documents of the data set.
        median_length: median of their log-normal lengths, in tokens.
        spread: standard deviation of the logarithm of the length.
        max_length: tokens per row.
        batch_size: rows per forward pass.
        mlm_probability: share of the tokens to predict.
    """

    rounds: int = 3
    vocab_size: int = 4096
    hidden_size: int = 256
    num_hidden_layers: int = 4
    num_attention_heads: int = 4
    intermediate_size: int = 384
    documents: int = 32
    median_length: int = 40
    spread: float = 1.0
    max_length: int = 512
    batch_size: int = 8
    mlm_probability: float = 0.3


DEFAULT = PackingSettings()


def run(output: Path | None = None, settings: PackingSettings = DEFAULT) -> dict[str, Any]:
    """Time forward and backward passes over the same documents in three layouts.

    Layouts: padded to ``max_length``, padded to the longest of each batch, packed with document
    masks. All three predict the same number of tokens of the same documents.

    Args:
        output: JSON file; None writes nothing.
        settings: sizes, lengths and rounds.
    """
    max_length = settings.max_length
    pieces = random_documents(settings)
    real = sum(map(len, pieces))
    single = [PackedRow.join([piece]) for piece in pieces]
    layouts = {
        f"padded to {max_length}": (single, max_length),
        "padded to the batch": (single, None),
        "packed": (pack_pieces(pieces, max_length), None),
    }
    model = build_model(settings, max_length)
    batches = {
        name: pad_rows(rows, settings.batch_size, length, settings.mlm_probability)
        for name, (rows, length) in layouts.items()
    }
    with torch_threads(settings.threads):
        actions = {name: _training_pass(model, parts) for name, parts in batches.items()}
        clocks = {n: t.summary() for n, t in time_interleaved(actions, settings.rounds).items()}
        computed = {n: sum(b["input_ids"].numel() for b in parts) for n, parts in batches.items()}
        speed = {name: 1e3 * real / clock["cpu_ms"]["median"] for name, clock in clocks.items()}
        results = [
            {
                "layout": name,
                "rows": len(layouts[name][0]),
                "fill_rate": real / computed[name],
                "real_tokens_per_second": speed[name],
                **clock,
            }
            for name, clock in clocks.items()
        ]
        # Attention over long rows costs more per token, so places alone predict only roughly.
        places = computed[f"padded to {max_length}"] / computed["packed"]
        gain = gate(speed["packed"] / speed[f"padded to {max_length}"], TARGET, at_least=True)
        summary = {
            f"packed over padded to {max_length}": {"predicted": places, **gain},
            "packed over padded to the batch": {
                "predicted": computed["padded to the batch"] / computed["packed"],
                "measured": speed["packed"] / speed["padded to the batch"],
            },
            "packed fill rate": fill_rate(real, len(layouts["packed"][0]), max_length),
        }
        return report("packing", settings, results, summary, output)


def random_documents(settings: PackingSettings) -> list[list[int]]:
    """Return documents of random tokens whose lengths are log-normal, cut to the allowed range."""
    generator = np.random.default_rng(settings.seed)
    normal = generator.standard_normal(settings.documents)
    lengths = np.exp(np.log(settings.median_length) + settings.spread * normal).round()
    sizes = np.clip(lengths, LOWEST_LENGTH, settings.max_length).astype(int)
    return [generator.integers(3, settings.vocab_size, size).tolist() for size in sizes]


def pad_rows(
    rows: list[PackedRow], batch_size: int, length: int | None, mlm_probability: float
) -> list[dict[str, Tensor]]:
    """Make batches; every (1 / mlm_probability)-th token of each document is predicted."""
    every = round(1 / mlm_probability)
    batches = []
    for start in range(0, len(rows), batch_size):
        part = rows[start : start + batch_size]
        width = length or max(len(row.input_ids) for row in part)
        batch = {
            "input_ids": torch.zeros(len(part), width, dtype=torch.long),
            "attention_mask": torch.zeros(len(part), width, dtype=torch.long),
            "labels": torch.full((len(part), width), IGNORED_LABEL),
        }
        for index, row in enumerate(part):
            size = len(row.input_ids)
            tokens, numbers = torch.tensor(row.input_ids), torch.tensor(row.document_ids)
            first = torch.searchsorted(numbers, numbers)
            is_predicted = (torch.arange(size) - first) % every == 0
            batch["input_ids"][index, :size] = tokens
            batch["attention_mask"][index, :size] = numbers
            batch["labels"][index, :size] = tokens.masked_fill(~is_predicted, IGNORED_LABEL)
        batches.append(batch)
    return batches


def _training_pass(
    model: DeltaEncoderForMaskedLM, batches: list[dict[str, Tensor]]
) -> Callable[[], object]:
    def action() -> None:
        model.zero_grad(set_to_none=True)
        for batch in batches:
            model(**batch).loss.backward()

    return action
