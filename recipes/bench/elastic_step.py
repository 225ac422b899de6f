"""What does one elastic step (4 budgets and distillation) cost in full-model steps?"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

from ...configuration.delta_budget import DeltaBudget
from ...modeling.delta_encoder_heads import DeltaEncoderForMaskedLM
from ...modeling.input_checks import IGNORED_LABEL
from ...trainers.budget_sampling import SandwichSampler
from ..delta_encoder.step_flops import forward_flops
from ..interleaved_timing import time_interleaved
from .bench_models import models_by_precision, step_batch
from .bench_report import gate, report, torch_threads
from .bench_settings import StepSettings
from .training_steps import Batch, elastic_step, full_model_step

TARGET = 2.7


@dataclass(frozen=True, kw_only=True)
class ElasticStepSettings(StepSettings):
    """The step and how many draws of it are timed.

    Attributes:
        budgets_per_step: budgets of one elastic step.
        sampled_steps: different draws that are timed.
    """

    budgets_per_step: int = 4
    sampled_steps: int = 6


DEFAULT = ElasticStepSettings()


def run(output: Path | None = None, settings: ElasticStepSettings = DEFAULT) -> dict[str, Any]:
    """Time the steps that the sandwich sampler draws against the step of the full model.

    Args:
        output: JSON file; None writes nothing.
        settings: sizes, draws and rounds.
    """
    models = models_by_precision(settings)
    config = models["fp32"].config
    budgets = config.budget_list()
    batch = step_batch(settings)
    flops = [budget.flops(config, settings.sequence_length) for budget in budgets]
    sampler = SandwichSampler(
        budgets,
        flops,
        settings.budgets_per_step,
        settings.seed,
        trunk_of=lambda budget: budget.trunk,
    )
    draws = [sampler.sample(step) for step in range(settings.sampled_steps)]
    results: list[dict[str, Any]] = []
    summary: dict[str, Any] = {}
    with torch_threads(settings.threads):
        for precision, model in models.items():
            rows = _compare_steps(model, batch, draws, precision == "bf16", settings.rounds)
            results += [{"precision": precision, **row} for row in rows]
            measured = mean(row["measured_ratio"] for row in rows)
            summary[precision] = {
                "predicted": mean(row["predicted_ratio"] for row in rows),
                **gate(measured, TARGET, at_least=False),
            }
        return report("elastic_step", settings, results, summary, output)


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
    sizes = config, sequence_length, batch_size, predicted_tokens
    return forward_flops(draw, *sizes) / forward_flops(draw[:1], *sizes)
