"""Speed of a sliced encoder against stock ModernBERT of the same shape and weights."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...modeling.delta_encoder_heads import DeltaEncoderForMaskedLM
from ...modeling.modernbert_weights import to_modernbert_config, to_modernbert_state
from ..interleaved_timing import time_interleaved
from .bench_models import build_model
from .bench_report import gate, report, torch_threads
from .bench_settings import ModelSettings

TARGET = 0.98


@dataclass(frozen=True, kw_only=True)
class SliceSpeedSettings(ModelSettings):
    """The nested model, its slice and the inputs of both.

    Attributes:
        budget: the slice; heads x head_dim must equal its hidden width.
        shapes: (rows, tokens) to time.
    """

    rounds: int = 25
    vocab_size: int = 4096
    budget: str = "1.0:4:4:256"
    shapes: tuple[tuple[int, int], ...] = ((1, 128), (8, 128))


DEFAULT = SliceSpeedSettings()


def run(output: Path | None = None, settings: SliceSpeedSettings = DEFAULT) -> dict[str, Any]:
    """Time three trunks in turn: the slice, stock ModernBERT with its weights, the nested model.

    A native export *is* the stock class, so its speed is the stock speed by construction; what is
    measured is our own class.

    Args:
        output: JSON file; None writes nothing.
        settings: sizes, the slice and rounds.
    """
    budget = settings.budget
    nested = build_model(settings, max(tokens for _, tokens in settings.shapes)).train(False)
    sliced = nested.slice(budget)
    stock = stock_modernbert(sliced)
    generator = torch.Generator().manual_seed(settings.seed)
    results: list[dict[str, Any]] = []
    summary: dict[str, Any] = {}
    with torch_threads(settings.threads):
        for shape in settings.shapes:
            tokens = torch.randint(3, settings.vocab_size, shape, generator=generator)
            mask = torch.ones_like(tokens)
            actions = {
                "slice": _forward(sliced.model, tokens, mask),
                "stock ModernBERT": _forward(stock, tokens, mask),
                "nested at the budget": _forward(nested.model, tokens, mask, budget=budget),
            }
            difference = (actions["slice"]() - actions["stock ModernBERT"]()).abs().max()
            timings = time_interleaved(actions, settings.rounds, warmup=3)
            clocks = {n: t.summary() for n, t in timings.items()}
            cpu = {name: clock["cpu_ms"]["median"] for name, clock in clocks.items()}
            name = f"{shape[0]} x {shape[1]}"
            results += [{"shape": name, "model": model, **c} for model, c in clocks.items()]
            speedup = cpu["stock ModernBERT"] / cpu["slice"]
            summary[f"slice over stock, {name}"] = {
                **gate(speedup, TARGET, at_least=True),
                "largest_difference": float(difference),
            }
        return report("slice_speed", settings, results, summary, output)


def stock_modernbert(sliced: DeltaEncoderForMaskedLM) -> nn.Module:
    """Return the trunk of stock ModernBERT with the weights of a slice.

    Raises:
        ValueError: if the slice is not of a ModernBERT shape.
    """
    from transformers import ModernBertConfig, ModernBertForMaskedLM

    source: Any = sliced.config
    config = ModernBertConfig(**to_modernbert_config(source))
    config._attn_implementation = source._attn_implementation
    stock = ModernBertForMaskedLM(config)
    stock.load_state_dict(to_modernbert_state(sliced.state_dict(), source))
    trunk: nn.Module = stock.model
    return trunk.train(False)


def _forward(
    trunk: nn.Module, tokens: Tensor, mask: Tensor, **kwargs: Any
) -> Callable[[], Tensor]:
    def action() -> Tensor:
        with torch.inference_mode():
            states: Tensor = trunk(
                input_ids=tokens, attention_mask=mask, **kwargs
            ).last_hidden_state
        return states

    return action
