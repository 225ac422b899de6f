"""Does the time of each budget follow its FLOPs? Inference and training pass, head left out."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ...configuration.budget import ends_of
from ...configuration.delta_budget import DeltaBudget
from ...modeling.modeling_delta_encoder import DeltaEncoderModel
from ..interleaved_timing import Timing, time_interleaved
from .bench_models import build_model, masked_batch
from .bench_report import gate, report, torch_threads
from .bench_settings import ModelSettings

TARGET = 0.15


@dataclass(frozen=True, kw_only=True)
class ScalingSettings(ModelSettings):
    """A model large enough that fixed costs are small, and its batch.

    Attributes:
        sequence_length: tokens per row.
        batch_size: rows.
    """

    rounds: int = 4
    vocab_size: int = 512
    intermediate_size: int = 1536
    sequence_length: int = 128
    batch_size: int = 8


DEFAULT = ScalingSettings()


def run(output: Path | None = None, settings: ScalingSettings = DEFAULT) -> dict[str, Any]:
    """Time the nested model at every budget, in turn, and compare with the FLOP formula.

    The deviation of a budget is ``|time ratio / FLOP ratio - 1|``, both ratios to the largest.

    Args:
        output: JSON file; None writes nothing.
        settings: sizes and rounds.
    """
    length, rows_per_pass = settings.sequence_length, settings.batch_size
    with torch_threads(settings.threads):
        model = build_model(settings, length)
        trunk, config = model.model, model.config
        budgets = config.budget_list()
        batch = masked_batch(settings.vocab_size, rows_per_pass, length, 0.5, settings.seed)
        tokens = batch["input_ids"]
        results: list[dict[str, Any]] = []
        summary: dict[str, Any] = {}
        for mode, action in (("inference", _inference), ("training", _training)):
            timings = time_interleaved(
                {str(budget): action(trunk, tokens, budget) for budget in budgets},
                settings.rounds,
            )
            rows = compare_with_flops(budgets, config, length, rows_per_pass, timings)
            results += [{"mode": mode, **row} for row in rows]
            worst = max(rows, key=lambda row: abs(row["deviation"]))
            deviation = gate(abs(worst["deviation"]), TARGET, at_least=False)
            summary[mode] = {"worst budget": worst["budget"], **deviation}
        return report("budget_scaling", settings, results, summary, output)


def compare_with_flops(
    budgets: list[DeltaBudget],
    config: Any,
    sequence_length: int,
    batch_size: int,
    timings: dict[str, Timing],
) -> list[dict[str, Any]]:
    """Put the measured ratio of each budget to the largest beside the predicted one."""
    clocks = {name: timing.summary() for name, timing in timings.items()}
    largest = ends_of(budgets)[1]
    full_time = clocks[str(largest)]["cpu_ms"]["median"]
    full_flops = largest.flops(config, sequence_length, batch_size)
    rows = []
    for budget in budgets:
        measured = clocks[str(budget)]["cpu_ms"]["median"] / full_time
        predicted = budget.flops(config, sequence_length, batch_size) / full_flops
        rows.append(
            {
                "budget": str(budget),
                "predicted_ratio": predicted,
                "measured_ratio": measured,
                "deviation": measured / predicted - 1.0,
                **clocks[str(budget)],
            }
        )
    return rows


def _inference(
    trunk: DeltaEncoderModel, tokens: torch.Tensor, budget: DeltaBudget
) -> Callable[[], object]:
    def action() -> None:
        with torch.inference_mode():
            trunk(input_ids=tokens, budget=budget)

    return action


def _training(
    trunk: DeltaEncoderModel, tokens: torch.Tensor, budget: DeltaBudget
) -> Callable[[], object]:
    def action() -> None:
        trunk.zero_grad(set_to_none=True)
        trunk(input_ids=tokens, budget=budget).last_hidden_state.square().mean().backward()

    return action
