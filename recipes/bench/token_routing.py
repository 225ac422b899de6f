"""What does running the delta on a share of the tokens save, in FLOPs and in time?"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ...configuration.delta_budget import DeltaBudget
from ...modeling.delta_encoder_heads import DeltaEncoderForMaskedLM
from ..interleaved_timing import time_interleaved
from .bench_models import build_model
from .bench_report import report, torch_threads
from .bench_settings import ModelSettings


@dataclass(frozen=True, kw_only=True)
class TokenRoutingSettings(ModelSettings):
    """The nested model and its inputs.

    Attributes:
        ratios: shares of the tokens that get the delta.
        base_share: share of the heads and MLP channels in the base slice.
        batch_size: rows.
        sequence_length: tokens per row.
    """

    rounds: int = 15
    vocab_size: int = 4096
    ratios: tuple[float, ...] = (0.0, 0.1, 0.2, 0.35, 0.5, 0.75)
    base_share: float = 0.5
    batch_size: int = 8
    sequence_length: int = 256


DEFAULT = TokenRoutingSettings()


def run(output: Path | None = None, settings: TokenRoutingSettings = DEFAULT) -> dict[str, Any]:
    """Time the trunk with the delta on all tokens and on shares of them, in turn.

    The saving is `1 - time(share) / time(all)`; predicted from the FLOPs, preview network included.

    Args:
        output: JSON file; None writes nothing.
        settings: sizes, shares and rounds.
    """
    heads = max(1, round(settings.base_share * settings.num_attention_heads))
    channels = max(1, round(settings.base_share * settings.intermediate_size))
    model = build_model(
        settings,
        settings.sequence_length,
        token_routing=True,
        base_attention_heads=heads,
        base_intermediate_size=channels,
    ).train(False)
    whole = DeltaBudget.full(model.config)
    generator = torch.Generator().manual_seed(settings.seed)
    shape = (settings.batch_size, settings.sequence_length)
    tokens = torch.randint(3, settings.vocab_size, shape, generator=generator)
    actions = {f"{ratio:g}": _trunk(model, tokens, ratio) for ratio in settings.ratios}
    actions["all"] = _trunk(model, tokens, None)
    full = whole.flops(model.config, settings.sequence_length)
    results: list[dict[str, Any]] = []
    summary: dict[str, Any] = {}
    with torch_threads(settings.threads):
        timings = time_interleaved(actions, settings.rounds, warmup=2)
        clocks = {name: timing.summary() for name, timing in timings.items()}
        for name, clock in clocks.items():
            results.append({"share": name, **clock})
        for ratio in settings.ratios:
            flops = whole.flops(model.config, settings.sequence_length, delta_ratio=ratio)
            summary[f"saving at a share of {ratio:g}"] = {
                "predicted": 1 - flops / full,
                **{
                    name: 1 - clocks[f"{ratio:g}"][clock]["median"] / clocks["all"][clock]["median"]
                    for name, clock in (("measured", "cpu_ms"), ("wall_clock", "wall_ms"))
                },
            }
        return report("token_routing", settings, results, summary, output)


def _trunk(
    model: DeltaEncoderForMaskedLM, tokens: torch.Tensor, ratio: float | None
) -> Callable[[], Any]:
    def action() -> Any:
        model.config.delta_token_ratio = ratio
        with torch.inference_mode():
            return model.model(input_ids=tokens).last_hidden_state

    return action
