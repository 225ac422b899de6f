"""What does a snapshot of gates and spectrum cost beside a training step?"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ...trainers.spectral_callback import measure_spectrum
from ..interleaved_timing import time_interleaved
from .bench_report import gate, report, torch_threads
from .bench_settings import BenchSettings
from .ddl_cases import EAGER
from .model import DEFAULT as MODEL
from .model import ModelBenchSettings, build_model, token_batch, training_step

STEP, FORWARD, SNAPSHOT = "training step", "forward pass", "snapshot"
# Most that notes and statistics may add to a pass, over a training step.
LARGEST_SHARE = 0.05


@dataclass(frozen=True, kw_only=True)
class SpectralSnapshotSettings(BenchSettings):
    """The models that are looked into.

    Attributes:
        variants: slugs.
        sizes: model and batch, those of the suite ``model``.
    """

    rounds: int = 10
    variants: tuple[str, ...] = ("ddl", "ddl-tokenconv", "ddl-cc")
    sizes: ModelBenchSettings = MODEL


DEFAULT = SpectralSnapshotSettings()


def run(
    output: Path | None = None, settings: SpectralSnapshotSettings = DEFAULT
) -> dict[str, Any]:
    """Time a training step, a forward pass and a snapshot of the same batch in turns.

    Written are, over the training step, what the snapshot adds to the forward pass that it needs,
    and the whole snapshot. A run takes one at each evaluation, not at each step.

    Args:
        output: JSON file; None writes nothing.
        settings: variants, sizes and rounds.
    """
    results: list[dict[str, Any]] = []
    summary: dict[str, Any] = {}
    with torch_threads(settings.threads):
        for variant in settings.variants:
            timings = time_interleaved(_actions(settings.sizes, variant), settings.rounds, 2)
            clocks = {name: timing.summary() for name, timing in timings.items()}
            results += [{"variant": variant, "what": n, **clock} for n, clock in clocks.items()]
            step, forward, snapshot = (
                clocks[name]["cpu_ms"]["median"] for name in (STEP, FORWARD, SNAPSHOT)
            )
            added = (snapshot - forward) / step
            summary[f"{variant}, notes and statistics over a training step"] = gate(
                added, LARGEST_SHARE, at_least=False
            )
            summary[f"{variant}, snapshot with its pass over a training step"] = {
                "measured": snapshot / step
            }
        return report("spectral_snapshot", settings, results, summary, output)


def _actions(sizes: ModelBenchSettings, variant: str) -> dict[str, Callable[[], Any]]:
    """Return the three calls; all run in fp32 and not compiled."""
    model = build_model(sizes, variant, "sdpa").train(False)
    ids = token_batch(sizes, sizes.batch_size, sizes.sequence_length)

    @torch.no_grad()
    def forward() -> None:
        model(input_ids=ids, use_cache=False, logits_to_keep=1)

    def snapshot() -> None:
        measure_spectrum(model, [{"input_ids": ids}])

    return {
        STEP: training_step(sizes, variant, "fp32", EAGER),
        FORWARD: forward,
        SNAPSHOT: snapshot,
    }
