"""Does the time of each budget follow its FLOPs? Inference and training pass, head left out."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ...configuration.budget import ends_of
from ...configuration.delta_budget import DeltaBudget
from ...modeling.modeling_delta_encoder import DeltaEncoderModel
from ..interleaved_timing import Timing, time_interleaved
from .bench_models import build_model, masked_batch
from .bench_report import gate, report, torch_threads

TARGET = 0.15


def run(
    output: Path | None = None,
    *,
    hidden_size: int = 384,
    num_hidden_layers: int = 6,
    num_attention_heads: int = 6,
    intermediate_size: int = 1536,
    sequence_length: int = 128,
    batch_size: int = 8,
    rounds: int = 4,
    threads: int | None = 1,
    seed: int = 0,
) -> dict[str, Any]:
    """Time the nested model at every budget, in turn, and compare with the FLOP formula.

    The deviation of a budget is ``|time ratio / FLOP ratio - 1|``, both ratios to the largest.

    Args:
        output: JSON file; None writes nothing.
        hidden_size: hidden channels; large enough that fixed costs are small.
        num_hidden_layers: layers.
        num_attention_heads: heads.
        intermediate_size: MLP channels.
        sequence_length: tokens per row.
        batch_size: rows.
        rounds: recorded rounds.
        threads: torch threads; None leaves the setting alone.
        seed: seed of weights and tokens.
    """
    settings = {name: value for name, value in locals().items() if name != "output"}
    with torch_threads(threads):
        model = build_model(
            vocab_size=512,
            hidden_size=hidden_size,
            num_hidden_layers=num_hidden_layers,
            num_attention_heads=num_attention_heads,
            intermediate_size=intermediate_size,
            max_length=sequence_length,
            seed=seed,
        )
        trunk, config = model.model, model.config
        budgets = config.budget_list()
        batch = masked_batch(config.vocab_size, batch_size, sequence_length, 0.5, seed)
        tokens = batch["input_ids"]
        results: list[dict[str, Any]] = []
        summary: dict[str, Any] = {}
        for mode, action in (("inference", _inference), ("training", _training)):
            timings = time_interleaved(
                {str(budget): action(trunk, tokens, budget) for budget in budgets}, rounds
            )
            rows = compare_with_flops(budgets, config, sequence_length, batch_size, timings)
            results += [{"mode": mode, **row} for row in rows]
            worst = max(rows, key=lambda row: abs(row["deviation"]))
            deviation = gate(abs(worst["deviation"]), TARGET, at_least=False)
            summary[mode] = {"worst budget": worst["budget"], **deviation}
        return report("budget_scaling", settings, results, summary, output, seed)


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
