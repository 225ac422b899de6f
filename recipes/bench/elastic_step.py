"""What does one elastic step (4 budgets and distillation) cost in full-model steps?"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

from ...configuration.delta_budget import DeltaBudget
from ...modeling.delta_encoder_heads import IGNORED_LABEL, DeltaEncoderForMaskedLM
from ...trainers.budget_sampling import SandwichSampler
from ..environment import cpu_has_bf16
from ..interleaved_timing import time_interleaved
from .bench_models import build_model, masked_batch
from .bench_report import gate, report, torch_threads
from .training_steps import Batch, elastic_step, full_model_step

TARGET = 2.7


def run(
    output: Path | None = None,
    *,
    vocab_size: int = 30_522,
    hidden_size: int = 384,
    num_hidden_layers: int = 6,
    num_attention_heads: int = 6,
    intermediate_size: int = 576,
    sequence_length: int = 128,
    batch_size: int = 8,
    mlm_probability: float = 0.15,
    budgets_per_step: int = 4,
    sampled_steps: int = 6,
    rounds: int = 2,
    bf16: bool | None = None,
    threads: int | None = 1,
    seed: int = 0,
) -> dict[str, Any]:
    """Time the steps that the sandwich sampler draws against the step of the full model.

    Args:
        output: JSON file; None writes nothing.
        vocab_size: vocabulary.
        hidden_size: hidden channels.
        num_hidden_layers: layers.
        num_attention_heads: heads.
        intermediate_size: MLP channels.
        sequence_length: tokens per row.
        batch_size: rows.
        mlm_probability: share of the tokens to predict.
        budgets_per_step: budgets of one elastic step.
        sampled_steps: different draws that are timed.
        rounds: recorded rounds over all of them.
        bf16: also time bfloat16; None does where the processor has it.
        threads: torch threads; None leaves the setting alone.
        seed: seed of weights, tokens and draws.
    """
    settings = {name: value for name, value in locals().items() if name != "output"}
    build = partial(
        build_model,
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        num_hidden_layers=num_hidden_layers,
        num_attention_heads=num_attention_heads,
        intermediate_size=intermediate_size,
        max_length=sequence_length,
        seed=seed,
    )
    # As the recipes choose: the fused attention of a CPU has a slow backward pass in bfloat16.
    models = {"fp32": build(attn_implementation="sdpa")}
    if cpu_has_bf16() if bf16 is None else bf16:
        models["bf16"] = build(attn_implementation="eager")
    config = models["fp32"].config
    budgets = config.budget_list()
    batch = masked_batch(vocab_size, batch_size, sequence_length, mlm_probability, seed)
    flops = [budget.flops(config, sequence_length) for budget in budgets]
    sampler = SandwichSampler(
        budgets, flops, budgets_per_step, seed, trunk_of=lambda budget: budget.trunk
    )
    draws = [sampler.sample(step) for step in range(sampled_steps)]
    results: list[dict[str, Any]] = []
    summary: dict[str, Any] = {}
    with torch_threads(threads):
        for precision, model in models.items():
            rows = _compare_steps(model, batch, draws, precision == "bf16", rounds)
            results += [{"precision": precision, **row} for row in rows]
            measured = mean(row["measured_ratio"] for row in rows)
            summary[precision] = {
                "predicted": mean(row["predicted_ratio"] for row in rows),
                **gate(measured, TARGET, at_least=False),
            }
        return report("elastic_step", settings, results, summary, output, seed)


def _compare_steps(
    model: DeltaEncoderForMaskedLM,
    batch: Batch,
    draws: Sequence[tuple[DeltaBudget, ...]],
    bf16: bool,
    rounds: int,
) -> list[dict[str, Any]]:
    actions = {"full model": partial(full_model_step, model, batch, bf16)}
    for step, draw in enumerate(draws):
        actions[f"elastic {step}"] = partial(elastic_step, model, batch, draw, bf16)
    clocks = {name: t.summary() for name, t in time_interleaved(actions, rounds).items()}
    full = clocks["full model"]
    rows, tokens = batch["input_ids"].shape
    predicted_tokens = int((batch["labels"] != IGNORED_LABEL).sum())
    return [
        {
            "step": step,
            "budgets": [str(budget) for budget in draw],
            "predicted_ratio": predicted_ratio(draw, model.config, tokens, rows, predicted_tokens),
            "measured_ratio": clock["cpu_ms"]["median"] / full["cpu_ms"]["median"],
            **clock,
            "full_model_cpu_ms": full["cpu_ms"],
        }
        for step, draw in enumerate(draws)
        for clock in [clocks[f"elastic {step}"]]
    ]


def predicted_ratio(
    draw: Sequence[DeltaBudget],
    config: Any,
    sequence_length: int,
    batch_size: int,
    predicted_tokens: int,
) -> float:
    """Return the FLOPs of an elastic step over those of the full-model step.

    Budgets that differ only in depth share one trunk; each has its own head. The backward pass
    costs twice the forward pass of either side and cancels.
    """
    trunks: dict[Any, int] = {}
    head = 0
    for budget in draw:
        trunk = budget.flops(config, sequence_length, batch_size)
        trunks[budget.trunk] = max(trunks.get(budget.trunk, 0), trunk)
        head += budget.flops(config, sequence_length, batch_size, predicted_tokens) - trunk
    full = draw[0].flops(config, sequence_length, batch_size, predicted_tokens)
    return (sum(trunks.values()) + head) / full
