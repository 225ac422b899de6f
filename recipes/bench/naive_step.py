"""How much faster is our elastic step than computing everything and masking afterwards?"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from ...configuration.delta_budget import DeltaBudget
from ..interleaved_timing import time_interleaved
from .bench_models import models_by_precision, step_batch
from .bench_report import gate, report, torch_threads
from .bench_settings import StepSettings
from .naive_reference import naive_elastic_step
from .training_steps import elastic_step

TARGET_FP32, TARGET_BF16 = 4.0, 9.0


@dataclass(frozen=True, kw_only=True)
class NaiveStepSettings(StepSettings):
    """The step and its budgets.

    Attributes:
        budgets: the budgets of the step, the largest first.
    """

    budgets: tuple[str, ...] = ("1.0:6:6", "0.5:3:3", "0.75:6:3", "0.5:3:6")


DEFAULT = NaiveStepSettings()


def run(output: Path | None = None, settings: NaiveStepSettings = DEFAULT) -> dict[str, Any]:
    """Time both steps on equal weights, budgets and data.

    Args:
        output: JSON file; None writes nothing.
        settings: sizes, budgets and rounds.
    """
    models = models_by_precision(settings)
    batch = step_batch(settings)
    drawn = [DeltaBudget.parse(text) for text in settings.budgets]
    actions: dict[str, Any] = {}
    for name, model in models.items():
        half = name == "bf16"
        actions[f"ours {name}"] = partial(elastic_step, model, batch, drawn, half)
        actions[f"naive {name}"] = partial(naive_elastic_step, model, batch, drawn, half)
    with torch_threads(settings.threads):
        clocks = {n: t.summary() for n, t in time_interleaved(actions, settings.rounds).items()}
        tokens = batch["input_ids"].numel()
        cpu = {name: clock["cpu_ms"]["median"] for name, clock in clocks.items()}
        results = [
            {"step": name, "tokens_per_second": 1e3 * tokens / cpu[name], **clock}
            for name, clock in clocks.items()
        ]
        summary: dict[str, Any] = {
            "fp32 over naive fp32": gate(cpu["naive fp32"] / cpu["ours fp32"], TARGET_FP32, True)
        }
        if "ours bf16" in cpu:
            gain = cpu["naive fp32"] / cpu["ours bf16"]
            summary["bf16 over naive fp32"] = gate(gain, TARGET_BF16, True)
            summary["bf16 over naive bf16"] = {"measured": cpu["naive bf16"] / cpu["ours bf16"]}
        return report("naive_step", settings, results, summary, output)
