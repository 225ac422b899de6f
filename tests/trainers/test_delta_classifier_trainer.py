"""Fine-tuning of heads over rows and over tokens at several budgets."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from nestling.modeling.families import FAMILIES, resolve
from nestling.trainers.budget_sampling import SandwichSampler
from nestling.trainers.delta_classifier_trainer import DeltaClassifierTrainer
from nestling.trainers.labelled_rows import LabelledCollator, LabelledRows
from nestling.trainers.loss_term import WeightedTerm
from nestling.trainers.losses.distillation import DistillationLoss
from nestling.trainers.losses.label_cross_entropy import LabelCrossEntropyLoss
from nestling.trainers.losses.masked_lm import MaskedLmLoss
from nestling.trainers.schedules import Constant
from nestling.trainers.stream_sampler import PositionSampler
from tiny_masked_lm_run import logged, tiny_arguments

SEQUENCE, TOKEN = "AutoModelForSequenceClassification", "AutoModelForTokenClassification"
both_heads = pytest.mark.parametrize("head", [SEQUENCE, TOKEN])


def classifier(head: str) -> Any:
    """A seeded model with three classes and two budgets far apart."""
    family = FAMILIES["delta_encoder"]
    config = resolve(family.config)(
        **family.tiny,
        num_labels=3,
        budgets=["0.5:2:2", "1.0:4:4"],
        initializer_range=0.3,  # so that the budgets disagree well above rounding
    )
    torch.manual_seed(0)
    return resolve(family.auto_classes[head])(config)


def rows_for(head: str, count: int = 16) -> LabelledRows:
    """Rows of 3 to 9 tokens; tokens of even id carry a label, so rows have unequal numbers."""
    generator = torch.Generator().manual_seed(3)
    rows = []
    for _ in range(count):
        length = int(torch.randint(3, 10, (), generator=generator))
        ids = torch.randint(5, 96, (length,), generator=generator).tolist()
        tags = [token % 3 if token % 2 == 0 else -100 for token in ids]
        tags[0] = 0
        rows.append({"input_ids": ids, "labels": ids[0] % 3 if head == SEQUENCE else tags})
    return LabelledRows(rows)


def sampler_of(model: Any, per_step: int) -> SandwichSampler[Any]:
    budgets = model.config.budget_list()
    return SandwichSampler(budgets, [1.0, 2.0], per_step, trunk_of=lambda budget: None)


def both_terms(distillation: float = 0.5) -> list[WeightedTerm]:
    return [
        WeightedTerm(LabelCrossEntropyLoss(), Constant(1.0)),
        WeightedTerm(DistillationLoss(2.0), Constant(distillation)),
    ]


def build(folder: Path, head: str, **changes: Any) -> DeltaClassifierTrainer:
    model, rows = changes.pop("model", None) or classifier(head), rows_for(head)
    values: dict[str, Any] = {
        "args": tiny_arguments(folder, **changes.pop("arguments", {})),
        "budget_sampler": sampler_of(model, 2),
        "terms": both_terms(),
        "train_dataset": rows,
        "train_sampler": PositionSampler(rows),
        "data_collator": LabelledCollator(0),
    }
    return DeltaClassifierTrainer(model, **{**values, **changes})


@both_heads
def test_losses_equal_a_slow_reference(tmp_path: Path, head: str) -> None:
    """A loop over slices, rows and tokens; the teacher is the largest budget."""
    trainer = build(tmp_path, head)
    trainer.state.max_steps = 4
    rows = [rows_for(head)[position] for position in range(5)]
    losses = trainer.step_losses(trainer.model, LabelledCollator(0)(rows), 0)
    cross_entropy, divergence, count = 0.0, 0.0, 0
    models = [trainer.model.slice(budget) for budget in ("1.0:4:4", "0.5:2:2")]
    for row in rows:
        large, small = (
            model(input_ids=torch.tensor([row["input_ids"]])).logits[0] for model in models
        )
        labels = [row["labels"]] if head == SEQUENCE else row["labels"]
        for z_large, z_small, label in zip(
            large.view(-1, 3), small.view(-1, 3), labels, strict=True
        ):
            if label == -100:
                continue
            count += 1
            both = [F.cross_entropy(z, torch.tensor(label)).item() for z in (z_large, z_small)]
            cross_entropy += sum(both) / 2
            p, q = ((z.double() / 2).softmax(-1) for z in (z_large, z_small))
            divergence += 4 * (p * (p.log() - q.log())).sum().item()
    assert losses["label_cross_entropy"].total.item() == pytest.approx(cross_entropy, rel=1e-5)
    assert losses["distillation"].total.item() == pytest.approx(divergence, rel=1e-3)
    assert int(losses["label_cross_entropy"].count) == int(losses["distillation"].count) == count


@both_heads
def test_the_teacher_runs_without_stochastic_depth(tmp_path: Path, head: str) -> None:
    """The smaller budgets do not."""
    trainer = build(tmp_path, head)
    trainer.model.config.drop_path = trainer.model.model.config.drop_path = 0.8
    seen: list[tuple[str, bool]] = []

    def note(module: torch.nn.Module, args: object, kwargs: dict[str, object]) -> None:
        seen.append((str(kwargs["budget"]), bool(kwargs["drop_paths"])))

    trainer.model.model.register_forward_pre_hook(note, with_kwargs=True)
    rows = [rows_for(head)[position] for position in range(5)]
    trainer.step_losses(trainer.model, LabelledCollator(0)(rows), 0)
    assert seen == [("1.0:4:4", False), ("0.5:2:2", True)]


@both_heads
def test_distillation_does_not_train_the_largest_budget(tmp_path: Path, head: str) -> None:
    """Layers and channels that only the in-place teacher uses get no gradient from it."""
    trainer = build(tmp_path, head)
    trainer.state.max_steps = 4
    batch = LabelledCollator(0)([rows_for(head)[position] for position in range(5)])
    trainer.step_losses(trainer.model, batch, 0)["distillation"].total.backward()
    layers = trainer.model.model.layers
    assert all(parameter.grad is None for parameter in layers[3].parameters())
    up = layers[1].mlp.up.weight.grad
    assert up[24:].abs().sum() == 0 and up[:24].abs().sum() > 0
    assert trainer.model.classifier.weight.grad.abs().sum() > 0


@both_heads
def test_the_step_does_not_depend_on_accumulation(tmp_path: Path, head: str) -> None:
    """Unequal numbers of labels a row; logs and weights agree."""
    whole = build(tmp_path / "whole", head)
    whole.train()
    shape = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4}
    cut = build(tmp_path / "cut", head, arguments=shape)
    cut.train()
    for key in ("loss", "loss/label_cross_entropy", "loss/distillation"):
        assert logged(cut, key) == pytest.approx(logged(whole, key), rel=1e-4)
        assert len(logged(whole, key)) == 2


def test_every_parameter_learns_from_both_kinds_of_label(tmp_path: Path) -> None:
    for head in (SEQUENCE, TOKEN):
        trainer = build(tmp_path / head, head, terms=both_terms()[:1])
        batch = LabelledCollator(0)([rows_for(head)[position] for position in range(5)])
        trainer.step_losses(trainer.model, batch, 0)["label_cross_entropy"].total.backward()
        dead = [
            name
            for name, parameter in trainer.model.named_parameters()
            if parameter.grad is None or parameter.grad.abs().sum() == 0
        ]
        assert dead == []


def test_arguments_are_checked(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="needs 2 or more budgets"):
        build(tmp_path, SEQUENCE, budget_sampler=sampler_of(classifier(SEQUENCE), 1))
    with pytest.raises(ValueError, match="does not know the loss term masked_lm"):
        build(tmp_path, SEQUENCE, terms=[WeightedTerm(MaskedLmLoss(), Constant(1.0))])
    with pytest.raises(ValueError, match="add label_cross_entropy"):
        build(tmp_path, SEQUENCE, terms=both_terms()[1:])
    noisy = classifier(SEQUENCE)
    noisy.config.classifier_dropout = 0.1
    with pytest.raises(ValueError, match="classifier_dropout is 0.1"):
        build(tmp_path, SEQUENCE, model=noisy)
