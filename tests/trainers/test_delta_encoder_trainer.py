"""Masked LM and distillation over sampled budgets."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from nestling.trainers.budget_sampling import SandwichSampler
from nestling.trainers.delta_encoder_trainer import DeltaEncoderTrainer
from nestling.trainers.hooked_trainer import HookedTrainer
from nestling.trainers.loss_term import LossSum, LossTerm, WeightedTerm
from nestling.trainers.losses.distillation import DistillationLoss
from nestling.trainers.losses.masked_lm import MaskedLmLoss
from nestling.trainers.schedules import Constant, LateRise, Schedule
from tiny_masked_lm_run import (
    TinyConfig,
    TinyMaskedLm,
    TinyRows,
    collate,
    logged,
    tiny_model,
    tiny_trainer,
    weights_of,
)

BUDGETS = [4, 8, 12, 16]


def both_terms(distillation: float = 0.5) -> list[WeightedTerm]:
    """Masked LM and distillation."""
    return [
        WeightedTerm(MaskedLmLoss(), Constant(1.0)),
        WeightedTerm(DistillationLoss(2.0), Constant(distillation)),
    ]


def sandwich(widths: list[int], budgets_per_step: int) -> SandwichSampler[int]:
    """Widths cost what they are, and no two share a pass."""
    return SandwichSampler(widths, widths, budgets_per_step, trunk_of=lambda width: width)


def build(folder: Path, **changes: Any) -> HookedTrainer:
    """Build the trainer on the tiny elastic model."""
    values: dict[str, Any] = {
        "planner": sandwich(BUDGETS, 3),
        "terms": both_terms(),
    }
    return tiny_trainer(folder, DeltaEncoderTrainer, **{**values, **changes})


@pytest.mark.parametrize(
    ("share", "shares"),
    [
        (None, [1 / 3] * 3),
        (Constant(0.6), [0.6, 0.2, 0.2]),
        # Step 2 of 0..3, two thirds on the way.
        (LateRise(0.2, 0.8, part=1.0), [0.6, 0.2, 0.2]),
    ],
    ids=["even", "largest", "rising"],
)
def test_losses_equal_a_slow_reference(
    share: Schedule | None, shares: list[float], tmp_path: Path
) -> None:
    """Averages over budgets, with a share for the largest; students are all but that one."""
    trainer = build(tmp_path, largest_share=share)
    trainer.state.max_steps = 4
    batch = collate([TinyRows()[position] for position in range(6)])
    losses = trainer.step_losses(trainer.model, batch, 2)
    targets = batch["labels"][batch["labels"] != -100]
    budgets = trainer.planner.sampler.sample(2, 4)
    logits = [trainer.model(**batch, budgets=(budget,)).budget_logits[0] for budget in budgets]
    cross_entropies = [F.cross_entropy(z, targets, reduction="sum").item() for z in logits]
    expected = sum(part * loss for part, loss in zip(shares, cross_entropies, strict=True))
    assert losses["masked_lm"].total.item() == pytest.approx(expected, rel=1e-5)
    teacher = (logits[0] / 2).softmax(-1)
    divergences = [
        4 * (teacher * (teacher.log() - (z / 2).log_softmax(-1))).sum().item() for z in logits[1:]
    ]
    assert losses["distillation"].total.item() == pytest.approx(sum(divergences) / 2, rel=1e-4)
    assert int(losses["masked_lm"].count) == int(losses["distillation"].count) == len(targets)


def test_distillation_does_not_train_the_largest_budget(tmp_path: Path) -> None:
    """Channels that only the in-place teacher uses get no gradient from it."""
    trainer = build(tmp_path, planner=sandwich([4, 16], 2))
    trainer.state.max_steps = 4
    batch = collate([TinyRows()[position] for position in range(6)])
    trainer.step_losses(trainer.model, batch, 0)["distillation"].total.backward()
    assert trainer.model.up.weight.grad[4:].abs().sum() == 0
    assert trainer.model.up.weight.grad[:4].abs().sum() > 0


def test_trains_and_logs_both_terms(tmp_path: Path) -> None:
    """The whole loop, with accumulation invariance of the logged terms."""
    whole = build(tmp_path / "whole")
    whole.train()
    shape = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4}
    cut = build(tmp_path / "cut", arguments=shape)
    cut.train()
    for key in ("loss", "loss/masked_lm", "loss/distillation"):
        assert logged(cut, key) == pytest.approx(logged(whole, key), rel=1e-5, abs=1e-6)
        assert len(logged(whole, key)) == 2


class PositionTeacher(TinyMaskedLm):
    """Favours the token whose id is the position in its row, with dense logits."""

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Any:
        """Return logits (batch, seq, vocab)."""
        assert not self.training and not torch.is_grad_enabled()
        places = torch.arange(input_ids.shape[1]).expand_as(input_ids)
        logits = F.one_hot(places, self.config.vocab_size).float() * 5
        return type("Output", (), {"logits": logits})()


def test_an_external_teacher_sees_documents_one_by_one(tmp_path: Path) -> None:
    """Positions restart in each packed document, and every budget is a student."""
    teacher = PositionTeacher(TinyConfig(dropout=0.5)).train()
    trainer = build(tmp_path, teacher=teacher)
    trainer.state.max_steps = 4
    batch = {
        "input_ids": torch.tensor([[3, 4, 5, 6, 7, 8], [2, 3, 9, 0, 0, 0]]),
        "attention_mask": torch.tensor([[1, 1, 2, 2, 2, 2], [1, 1, 1, 0, 0, 0]]),
        "labels": torch.tensor([[-100, 4, -100, 6, -100, 8], [2, -100, 9, -100, -100, -100]]),
    }
    logits = trainer._teacher_logits(trainer.teacher, batch)
    assert logits.argmax(-1).tolist() == [1, 1, 3, 0, 2]
    total, count = trainer.step_losses(trainer.model, batch, 0)["distillation"]
    students = trainer.model(**batch, budgets=trainer.planner.sampler.sample(0, 4)).budget_logits
    expected = [DistillationLoss(2.0)(student, logits).total.item() for student in students]
    assert total.item() == pytest.approx(sum(expected) / 3, rel=1e-5) and count == 5
    before = weights_of(teacher)
    trainer.train()
    assert all(torch.equal(value, before[name]) for name, value in weights_of(teacher).items())


def test_distillation_of_weight_zero_does_not_run_the_teacher(tmp_path: Path) -> None:
    """Compute that is weighted away is not done."""
    teacher = PositionTeacher(TinyConfig())
    teacher.forward = None  # type: ignore[assignment]
    trainer = build(tmp_path, teacher=teacher, terms=both_terms(0.0))
    trainer.train()
    assert not logged(trainer, "loss/distillation")


class OtherTerm(LossTerm):
    """A term of another family."""

    name = "other"
    unit = "step"

    def forward(self) -> LossSum:
        """Never called."""
        raise AssertionError


def test_arguments_are_checked(tmp_path: Path) -> None:
    """Unknown terms, no student, another vocabulary."""
    with pytest.raises(ValueError, match="does not know the loss terms other"):
        build(tmp_path, terms=[WeightedTerm(OtherTerm(), Constant(1.0))])
    with pytest.raises(ValueError, match="needs 2 or more budgets"):
        build(tmp_path, planner=sandwich(BUDGETS, 1))
    with pytest.raises(ValueError, match="vocabulary of 30 tokens"):
        build(tmp_path, teacher=TinyMaskedLm(TinyConfig(vocab_size=30)))
    build(tmp_path, terms=both_terms()[:1], model=tiny_model())
