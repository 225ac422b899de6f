"""Every loss term of Delta-Matryoshka++, its gradient and the threshold, against a slow step."""

from pathlib import Path
from typing import Any

import pytest
import torch
from nestling.configuration.delta_budget import DeltaBudget
from nestling.trainers.delta_encoder_trainer import DeltaEncoderTrainer
from nestling.trainers.loss_term import LossSum
from slow_plus_step import CHANNELS, MARGIN, RATIO, TEMPERATURE, SlowStep, slow_quantile
from tiny_plus import KINDS, TOTAL, batch_of, plus_trainer, tiny_plus
from torch import Tensor

SETTINGS = [
    "model.drop_path=0",
    f"model.delta_token_ratio={RATIO}",
    f"loss.kd_temperature={TEMPERATURE}",
    f"loss.mug_margin={MARGIN}",
]
UPGRADES = ("delta_residual", "monotone_upgrade")
MOMENTUM = 0.99  # of the routing threshold
HALVES = (range(4), range(4, 8))


def lively_trainer(
    folder: Path, tokenizer: Any, kind: str, largest_share: float | None
) -> DeltaEncoderTrainer:
    """The trainer of the shipped recipe; parameters away from zero, spectral norms converged.

    The packing hinge is open in the even layers and closed in the odd ones.
    """
    share = "null" if largest_share is None else largest_share
    changes = [*KINDS[kind], *SETTINGS, f"loss.largest_share={share}"]
    trainer = plus_trainer(tiny_plus(folder, *changes), tokenizer)
    trunk = trainer.model.model
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in trainer.model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.15)
        for index, layer in enumerate(trunk.layers):
            factor = 0.2 if index % 2 else 3.0
            if kind == "dense":
                layer.mlp.up.weight[CHANNELS:] *= factor
            else:
                trunk.deltas.blocks["up"].coefficients[index] *= 4 * factor
    term: Any = trainer.terms["packing_regularizer"].term
    term.iterations = 500
    return trainer


def gradients(total: Tensor, trainer: DeltaEncoderTrainer) -> dict[str, Tensor]:
    """The gradient of a loss for each parameter, 0 where it does not reach."""
    named = dict(trainer.model.named_parameters())
    found = torch.autograd.grad(total, list(named.values()), retain_graph=True, allow_unused=True)
    return {
        name: torch.zeros_like(parameter) if gradient is None else gradient
        for (name, parameter), gradient in zip(named.items(), found, strict=True)
    }


def outside(
    smaller: DeltaBudget, slow: SlowStep, trainer: DeltaEncoderTrainer
) -> dict[str, Tensor]:
    """1 for each number that the smaller budget does not read, 0 for the others.

    The network behind conditioned norms belongs to all budgets.
    """
    logits = slow.by_budget[smaller].logits
    weight = torch.randn(logits.shape, generator=torch.Generator().manual_seed(7))
    read = gradients((logits * weight).sum(), trainer)
    return {
        name: torch.zeros_like(gradient) if "conditioner" in name else (gradient == 0).float()
        for name, gradient in read.items()
    }


def compare(trainer: DeltaEncoderTrainer, name: str, found: LossSum, slow: SlowStep) -> float:
    """Hold value, units and gradients of a term against the slow one; return how large they are."""
    expected = getattr(slow, name)()
    assert int(found.count) == slow.counts().get(name, 1), name
    torch.testing.assert_close(
        found.total, expected, rtol=1e-4, atol=1e-5, msg=lambda text: f"{name}: {text}"
    )
    wanted = gradients(expected, trainer)
    if name in UPGRADES:
        free = outside(slow.plan.upgrade[1], slow, trainer)
        wanted = {key: wanted[key] * free[key] for key in wanted}
    for key, gradient in gradients(found.total, trainer).items():
        where = f"{name} reaches {key}"
        torch.testing.assert_close(
            gradient, wanted[key], rtol=1e-3, atol=2e-5, msg=lambda text, w=where: f"{w}: {text}"
        )
    steepest = max(gradient.abs().max().item() for gradient in wanted.values())
    return min(expected.item(), steepest)


def moved(threshold: float | None, scores: list[float]) -> float | None:
    """The routing threshold after a step whose real tokens had these scores."""
    if not scores:
        return threshold
    quantile = slow_quantile(scores, RATIO)
    if threshold is None:
        return quantile
    return MOMENTUM * threshold + (1 - MOMENTUM) * quantile


@pytest.mark.parametrize(
    ("kind", "largest_share"), [("dictionary", None), ("dense", 0.4)], ids=["dictionary", "dense"]
)
def test_every_term_equals_a_slow_step(
    kind: str, largest_share: float | None, tmp_path: Path, tiny_tokenizer: Any
) -> None:
    """At all steps of all phases; the threshold takes the scores of both micro-batches."""
    trainer = lively_trainer(tmp_path, tiny_tokenizer, kind, largest_share)
    batches = [batch_of(trainer, rows) for rows in HALVES]
    sizes: dict[str, float] = {}
    threshold: float | None = None
    for step in range(TOTAL):
        weights = trainer.term_weights(step)
        plan = trainer.planner.plan(step, TOTAL, weights)
        scores: list[float] = []
        for batch in batches:
            found = trainer.step_losses(trainer.model, batch, step)
            slow = SlowStep(trainer, batch, plan, threshold or 0.0, largest_share)
            for name in (name for name, weight in weights.items() if weight):
                size = compare(trainer, name, found[name], slow)
                sizes[name] = max(sizes.get(name, 0.0), size)
            if plan.routed is not None:
                scores += slow.routed.scores[slow.is_real].tolist()
        trainer._end_window()
        threshold = moved(threshold, scores)
        if threshold is not None:
            assert trainer.threshold.threshold.item() == pytest.approx(threshold, rel=1e-5)
    assert set(sizes) == set(trainer.terms)
    assert all(size > 1e-3 for size in sizes.values()), sizes
