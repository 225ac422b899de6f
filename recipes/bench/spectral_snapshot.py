"""What does a snapshot of gates and spectrum cost beside a training step?

A snapshot runs the model on rows of its own, so a run pays the pass and what notes and statistics
add to it, once every ``training.eval_steps`` steps.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ...trainers.spectral_callback import measure_spectrum
from ..cli_errors import UsageError
from ..ddl_schema import DdlRecipe
from ..interleaved_timing import time_interleaved
from ..recipe_loader import load_recipe, of_family
from .bench_report import gate, report, torch_threads
from .bench_settings import BenchSettings
from .ddl_cases import EAGER
from .model import DEFAULT as MODEL
from .model import ModelBenchSettings, build_model, token_batch, training_step

STEP, FORWARD, SNAPSHOT = "training step", "forward pass", "snapshot"
# Most that notes and statistics may add to a pass, over a training step; and most that whole
# snapshots may take of the training steps between them.
LARGEST_SHARE = 0.05


@dataclass(frozen=True, kw_only=True)
class SpectralSnapshotSettings(BenchSettings):
    """The models that are looked into.

    Attributes:
        variants: slugs.
        sizes: model and batch, those of the suite ``model``.
        recipes: how often they evaluate and on how many rows decides what a run pays.
        toys: recipes that evaluate after a few small steps: what they pay has no target.
    """

    rounds: int = 10
    variants: tuple[str, ...] = ("ddl", "ddl-tokenconv", "ddl-cc")
    sizes: ModelBenchSettings = MODEL
    recipes: tuple[str, ...] = ("ddl/demo", "ddl/nested", "ddl/study")
    toys: tuple[str, ...] = ("ddl/tiny", "ddl/original")


DEFAULT = SpectralSnapshotSettings()


def run(
    output: Path | None = None, settings: SpectralSnapshotSettings = DEFAULT
) -> dict[str, Any]:
    """Time a training step, a forward pass and a snapshot of the same batch in turns.

    Written are, over one training step, what notes and statistics add to the forward pass and the
    whole snapshot (pass, notes and statistics); and for each recipe what a run pays: its whole
    snapshots over the training steps between two of them.

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
            summary[f"{variant}, added to a forward pass, over one training step"] = gate(
                added, LARGEST_SHARE, at_least=False
            )
            summary[f"{variant}, whole snapshot over one training step"] = {
                "measured": snapshot / step
            }
            summary.update(_paid_by_runs(settings, variant, snapshot / step))
        return report("spectral_snapshot", settings, results, summary, output)


def _paid_by_runs(
    settings: SpectralSnapshotSettings, variant: str, ratio: float
) -> dict[str, Any]:
    """Return the share of each recipe.

    Args:
        settings: names the recipes.
        variant: what was measured.
        ratio: a whole snapshot over a training step, of as many rows.
    """
    paid: dict[str, Any] = {}
    for name in (*settings.recipes, *settings.toys):
        steps, rows = snapshot_rhythm(name)
        share = ratio * rows / steps
        label = f"{variant}, whole snapshots over the {steps} steps between them, recipe {name}"
        has_target = name in settings.recipes
        paid[label] = (
            gate(share, LARGEST_SHARE, at_least=False) if has_target else {"measured": share}
        )
    return paid


def snapshot_rhythm(name: str) -> tuple[int, float]:
    """Return the steps between two snapshots of a recipe, and their rows over those of a step.

    Raises:
        UsageError: for a recipe that takes no snapshots while it trains.
    """
    recipe = of_family(load_recipe([f"recipe={name}"]), DdlRecipe)
    training, evaluation = recipe.training, recipe.evaluation
    if training.eval_steps is None or not evaluation.spectral_batches:
        raise UsageError(
            f"recipe {name} takes no snapshots while it trains; name one with training.eval_steps "
            "and evaluation.spectral_batches"
        )
    rows = training.batch_size * training.gradient_accumulation_steps
    return training.eval_steps, evaluation.spectral_batches * evaluation.batch_size / rows


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
