"""What does each part of Delta-Matryoshka++ cost: in a training step, and in an exported slice?"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ...configuration.delta_budget import DeltaBudget
from ...configuration.delta_settings import choose_tokens_by_share
from ...modeling.delta_encoder_heads import DeltaEncoderForMaskedLM
from ...trainers.budget_sampling import SandwichSampler
from ..delta_encoder.step_flops import forward_flops
from ..interleaved_timing import time_interleaved
from .bench_models import build_model, step_batch
from .bench_report import gate, report, torch_threads
from .bench_settings import StepSettings
from .training_steps import passes_step

PLAIN, ROUTING = "plain", "token routing"
# Part -> configuration.
PARTS: dict[str, dict[str, Any]] = {
    PLAIN: {},
    "dictionary delta": {"delta_kind": "dictionary", "delta_atoms": 8, "delta_rank": 8},
    "low-rank delta": {"delta_kind": "low_rank", "delta_rank": 16},
    "conditioned norms": {"conditioned_norms": True},
    "exit affine": {"exit_affine": True},
    ROUTING: {"token_routing": True},
    # A slice keeps two gains of each norm, in a table.
    "token routing, conditioned norms": {"token_routing": True, "conditioned_norms": True},
}
UPGRADE, ROUTED = "upgrade pass", "routed passes"
TOKEN_RATIO = 0.35
# A slice holds plain matrices, so it should take as long whatever it was cut from.
LARGEST_DIFFERENCE = 1.05


@dataclass(frozen=True, kw_only=True)
class DeltaPartsSettings(StepSettings):
    """The step and the slice.

    Attributes:
        budgets_per_step: budgets of one elastic step.
        slice_rows: rows of the inference batch.
    """

    rounds: int = 8
    vocab_size: int = 4096
    hidden_size: int = 256
    num_hidden_layers: int = 6
    num_attention_heads: int = 4
    intermediate_size: int = 384
    mlm_probability: float = 0.3
    budgets_per_step: int = 4
    slice_rows: int = 8


DEFAULT = DeltaPartsSettings()


def run(output: Path | None = None, settings: DeltaPartsSettings = DEFAULT) -> dict[str, Any]:
    """Time one elastic step and the slices of models that differ in one part, in turn.

    Written are ratios to the plain nested model, over one draw of budgets; where the delta runs on
    a share of the tokens, to a slice that routes and has plain norms. Parts that add a pass
    are timed with it; the FLOPs of the passes predict their ratio. What builds deltas and
    conditions norms is not in the FLOPs.

    Args:
        output: JSON file; None writes nothing.
        settings: sizes and rounds.
    """
    models = {
        name: build_model(settings, settings.sequence_length, **part)
        for name, part in PARTS.items()
    }
    config = models[PLAIN].config
    budgets = config.budget_list()
    flops = [budget.flops(config, settings.sequence_length) for budget in budgets]
    sampler = SandwichSampler(
        budgets, flops, settings.budgets_per_step, settings.seed, trunk_of=lambda b: b.trunk
    )
    draw, batch = sampler.sample(0), step_batch(settings)
    between = next(budget for budget in draw[1:] if budget != draw[1])
    passes: dict[str, tuple[DeltaEncoderForMaskedLM, dict[str, Any]]] = {
        **{name: (model, {}) for name, model in models.items()},
        UPGRADE: (models[PLAIN], {"upgrade": (between, draw[1])}),
        ROUTED: (models[ROUTING], {"routed": (draw[0], TOKEN_RATIO)}),
    }
    steps: dict[str, Callable[[], Any]] = {
        name: partial(passes_step, model, batch, draw, more)
        for name, (model, more) in passes.items()
    }
    whole = DeltaBudget.full(config)
    slices = {
        name: _forward(model.slice(whole), batch["input_ids"][: settings.slice_rows])
        for name, model in models.items()
    }
    routed = {
        name: _forward(_routed_slice(models[name]), batch["input_ids"][: settings.slice_rows])
        for name in PARTS
        if models[name].config.token_routing
    }
    results: list[dict[str, Any]] = []
    summary: dict[str, Any] = {}
    with torch_threads(settings.threads):
        for what, actions, reference in (
            ("training step", steps, PLAIN),
            ("exported slice", slices, PLAIN),
            (f"exported slice at a share of {TOKEN_RATIO}", routed, ROUTING),
        ):
            timings = time_interleaved(actions, settings.rounds, warmup=2)
            clocks = {name: timing.summary() for name, timing in timings.items()}
            results += [{"what": what, "part": name, **clock} for name, clock in clocks.items()]
            for name in clocks:
                if name == reference:
                    continue
                ratio = clocks[name]["cpu_ms"]["median"] / clocks[reference]["cpu_ms"]["median"]
                if actions is not steps:
                    row = {"predicted": 1.0, **gate(ratio, LARGEST_DIFFERENCE, at_least=False)}
                else:
                    row = {"predicted": _predicted(settings, passes[name], draw), "measured": ratio}
                summary[f"{what}, {name} over {reference}"] = row
        return report("delta_parts", settings, results, summary, output)


def _predicted(
    settings: DeltaPartsSettings,
    passes: tuple[DeltaEncoderForMaskedLM, dict[str, Any]],
    draw: tuple[DeltaBudget, ...],
) -> float:
    """Return the FLOPs of a step with its passes over those of its budgets alone."""
    model, more = passes
    predicted = settings.batch_size * round(settings.mlm_probability * settings.sequence_length)
    sizes = model.config, settings.sequence_length, settings.batch_size, predicted
    upgrade = more["upgrade"][0] if "upgrade" in more else None
    with_passes = forward_flops(draw, *sizes, routed=more.get("routed"), upgrade=upgrade)
    return with_passes / forward_flops(draw, *sizes)


def _routed_slice(model: DeltaEncoderForMaskedLM) -> DeltaEncoderForMaskedLM:
    """Return the whole as a slice whose delta runs on a share of the tokens."""
    sliced: DeltaEncoderForMaskedLM = model.slice(DeltaBudget.full(model.config))
    choose_tokens_by_share(sliced.config, TOKEN_RATIO)
    return sliced


def _forward(model: DeltaEncoderForMaskedLM, tokens: torch.Tensor) -> Callable[[], Any]:
    def action() -> Any:
        with torch.inference_mode():
            return model.model(input_ids=tokens).last_hidden_state

    return action
