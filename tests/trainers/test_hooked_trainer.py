"""Totals, logs and guards of the shared trainer."""

import json
import logging
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from nestling.trainers.checkpoint_files import last_complete_checkpoint
from nestling.trainers.event_log import read_events
from nestling.trainers.hooked_trainer import HookedTrainer, NonFiniteLossError
from nestling.trainers.loss_term import LossSum, LossTerm, WeightedTerm
from nestling.trainers.losses.masked_lm import MaskedLmLoss
from nestling.trainers.schedules import Constant, CosineInterpolation
from tiny_masked_lm_run import (
    TinyRows,
    TinySampler,
    TinyTrainer,
    collate,
    logged,
    tiny_model,
    tiny_trainer,
    weights_of,
)
from torch import Tensor, nn

STEPS = 4


class MeanLogit(LossTerm):
    """Mean square of the logits of a row, to have a term per sequence."""

    name = "mean_logit"
    unit = "sequence"

    def forward(self, logits: Tensor, rows: int) -> LossSum:
        """Sum over rows of a value that rows add up to."""
        return LossSum(logits.float().pow(2).mean(-1).sum(), rows)


class TwoTermTrainer(TinyTrainer):
    """Masked LM and a term per sequence."""

    def step_losses(self, model: nn.Module, batch: dict[str, Any], step: int) -> dict[str, LossSum]:
        """Run the model once for both."""
        labels = batch["labels"]
        logits = model(**batch).logits
        return {
            "masked_lm": self.terms["masked_lm"].term(logits, labels[labels != -100]),
            "mean_logit": self.terms["mean_logit"].term(logits, len(labels)),
        }


def two_terms() -> list[WeightedTerm]:
    """Return both terms, the second with a weight that changes."""
    return [
        WeightedTerm(MaskedLmLoss(), Constant(1.0)),
        WeightedTerm(MeanLogit(), CosineInterpolation(0.5, 0.1)),
    ]


def train_two_terms(folder: Path, rows: int, accumulation: int) -> HookedTrainer:
    """Train with 8 rows a step, cut as asked."""
    shape = {"per_device_train_batch_size": rows, "gradient_accumulation_steps": accumulation}
    trainer = tiny_trainer(folder, TwoTermTrainer, arguments=shape, terms=two_terms())
    trainer.train()
    return trainer


@pytest.mark.parametrize(("rows", "accumulation"), [(4, 2), (2, 4), (1, 8)])
def test_totals_do_not_depend_on_accumulation(tmp_path: Path, rows: int, accumulation: int) -> None:
    """1x8 = 2x4 = 8x1, in weights and in every logged loss, over more than one epoch."""
    whole = train_two_terms(tmp_path / "whole", 8, 1)
    cut = train_two_terms(tmp_path / "cut", rows, accumulation)
    for name, value in weights_of(whole.model).items():
        torch.testing.assert_close(weights_of(cut.model)[name], value, rtol=1e-5, atol=1e-6)
    for key in ("loss", "loss/masked_lm", "loss/mean_logit", "weight/mean_logit"):
        assert logged(cut, key) == pytest.approx(logged(whole, key), rel=1e-6)
        assert len(logged(whole, key)) == STEPS // 2


def test_first_gradient_equals_the_plain_mean_over_labels(tmp_path: Path) -> None:
    """One accumulated step moves the weights as torch's own token mean over the 8 rows does."""
    options = {
        "max_steps": 1,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 4,
        "max_grad_norm": 0.0,
        "optim": "sgd",
        "lr_warmup_ratio": 0.0,
        "weight_decay": 0.0,
    }
    trainer = tiny_trainer(tmp_path, arguments=options)
    reference = tiny_model()
    positions = list(TinySampler())[:8]
    rows = collate([TinyRows()[position] for position in positions])
    reference(**rows).loss.backward()
    trainer.train()
    for (name, moved), start in zip(
        trainer.model.named_parameters(), reference.parameters(), strict=True
    ):
        expected = start.detach() - 1e-2 * start.grad
        torch.testing.assert_close(moved.detach(), expected, rtol=1e-5, atol=1e-7, msg=name)


@pytest.mark.parametrize("warmup_steps", [STEPS - 1, STEPS, 100])
def test_a_warmup_as_long_as_the_run_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, warmup_steps: int
) -> None:
    """Once, with the rate that is really reached."""
    arguments = {"warmup_steps": warmup_steps, "logging_steps": 1, "learning_rate": 1e-3}
    trainer = tiny_trainer(tmp_path, arguments=arguments)
    with caplog.at_level(logging.WARNING, logger="nestling"):
        trainer.train()
    said = [line for line in caplog.messages if "warmup_steps" in line]
    assert len(said) == (warmup_steps >= STEPS)
    if said:
        rates = [line["learning_rate"] for line in trainer.state.log_history if "loss" in line]
        assert f"the run has {STEPS} steps" in said[0]
        assert f"reaches {max(rates):.3g} of 0.001" in said[0]


def test_each_term_is_logged_unweighted_with_its_weight(tmp_path: Path) -> None:
    """Loss lines reach trainer_state.json and the event file, and add up."""
    arguments = {"logging_steps": 1, "save_strategy": "steps", "save_steps": 4}
    trainer = tiny_trainer(tmp_path, TwoTermTrainer, arguments=arguments, terms=two_terms())
    trainer.train()
    state = json.loads((tmp_path / "checkpoint-4" / "trainer_state.json").read_text())
    lines = [line for line in state["log_history"] if "loss" in line]
    assert len(lines) == STEPS
    for line in lines:
        total = line["loss/masked_lm"] + line["weight/mean_logit"] * line["loss/mean_logit"]
        assert line["loss"] == pytest.approx(total, rel=1e-6)
    assert [line["weight/mean_logit"] for line in lines] == pytest.approx([0.5, 0.4, 0.2, 0.1])
    events, _ = read_events(tmp_path / "events.jsonl")
    kinds = [event["event"] for event in events]
    assert kinds[0] == "train_start" and kinds[-1] == "train_end" and "checkpoint" in kinds
    written = [event for event in events if event["event"] == "log" and "loss" in event]
    assert [event["loss/mean_logit"] for event in written] == [
        line["loss/mean_logit"] for line in lines
    ]


def test_a_batch_coupled_term_declares_itself_in_the_event_file(tmp_path: Path) -> None:
    """The total of such a term does depend on the micro-batch; the log says so."""

    class Coupled(MaskedLmLoss):
        name = "masked_lm"
        batch_coupled = True

    trainer = tiny_trainer(tmp_path, terms=[WeightedTerm(Coupled(), Constant(1.0))])
    trainer.train()
    start = read_events(tmp_path / "events.jsonl")[0][0]
    assert start["terms"] == [
        {
            "name": "masked_lm",
            "unit": "token",
            "batch_coupled": True,
            "weight": "Constant(value=1.0)",
        }
    ]


class SpoiledTrainer(TinyTrainer):
    """Returns something wrong at one step."""

    bad_step = 2
    total: float = 1.0
    extra_count: int = 0
    name = "masked_lm"

    def step_losses(self, model: nn.Module, batch: dict[str, Any], step: int) -> dict[str, LossSum]:
        """Spoil the loss at the bad step."""
        loss = super().step_losses(model, batch, step)["masked_lm"]
        if step == self.bad_step:
            loss = LossSum(loss.total * self.total, loss.count + self.extra_count)
            return {self.name: loss}
        return {"masked_lm": loss}


class NanTrainer(SpoiledTrainer):
    """NaN at step 2."""

    total = math.nan


class InfiniteTrainer(SpoiledTrainer):
    """Infinite at step 2."""

    total = math.inf


@pytest.mark.parametrize("trainer_class", [NanTrainer, InfiniteTrainer])
@pytest.mark.parametrize("accumulation", [1, 4])
def test_a_non_finite_loss_stops_before_the_update(
    tmp_path: Path, trainer_class: type[HookedTrainer], accumulation: int
) -> None:
    """The weights stay those of step 2 and a checkpoint holds them; the error names the term.

    Resuming from it without the cause gives the run that never failed, dropout included.
    """
    shape = {
        "gradient_accumulation_steps": accumulation,
        "per_device_train_batch_size": 8 // accumulation,
    }
    good = tiny_trainer(tmp_path / "good", dropout=0.3, arguments=shape)
    seen: list[dict[str, Tensor]] = []
    original = good._begin_step
    good._begin_step = lambda: (seen.append(weights_of(good.model)), original())  # type: ignore
    good.train()

    bad = tiny_trainer(tmp_path / "bad", trainer_class, dropout=0.3, arguments=shape)
    with pytest.raises(NonFiniteLossError, match="masked_lm is not finite at step 2") as caught:
        bad.train()
    assert "\n" not in str(caught.value)
    for name, value in weights_of(bad.model).items():
        assert torch.equal(value, seen[2][name])
    saved = last_complete_checkpoint(tmp_path / "bad")
    assert saved is not None and saved.name == "checkpoint-2"
    assert str(saved) in str(caught.value)
    event = read_events(tmp_path / "bad" / "events.jsonl")[0][-1]
    assert (event["event"], event["step"], event["terms"]) == ("non_finite_loss", 2, ["masked_lm"])

    healed = tiny_trainer(tmp_path / "bad", dropout=0.3, arguments=shape)
    healed.train(resume_from_checkpoint=True)
    for name, value in weights_of(healed.model).items():
        assert torch.equal(value, weights_of(good.model)[name])


def test_a_non_finite_gradient_stops_too(tmp_path: Path) -> None:
    """A finite loss may still have a NaN gradient (square root at 0)."""

    class RootTrainer(TinyTrainer):
        def step_losses(
            self, model: nn.Module, batch: dict[str, Any], step: int
        ) -> dict[str, LossSum]:
            loss = super().step_losses(model, batch, step)["masked_lm"]
            zero = (loss.total - loss.total).abs().sqrt()
            return {"masked_lm": LossSum(loss.total + zero, loss.count)}

    with pytest.raises(NonFiniteLossError, match="gradient"):
        tiny_trainer(tmp_path, RootTrainer).train()


def test_a_wrong_count_is_refused(tmp_path: Path) -> None:
    """A term that counts its units once per sub-model would be weighted too low."""

    class DoubleCount(SpoiledTrainer):
        extra_count = 5

    with pytest.raises(ValueError, match=r"masked_lm counted .* mean_over_models"):
        tiny_trainer(tmp_path, DoubleCount).train()


def test_unknown_and_missing_terms_are_refused(tmp_path: Path) -> None:
    """Names must fit the terms of the trainer."""

    class Renamed(SpoiledTrainer):
        name = "masked_ml"

    with pytest.raises(ValueError, match="masked_ml"):
        tiny_trainer(tmp_path, Renamed).train()
    with pytest.raises(ValueError, match=r"did not return \['mean_logit'\]"):
        tiny_trainer(tmp_path, terms=two_terms()).train()


def test_a_term_of_weight_zero_may_be_left_out(tmp_path: Path) -> None:
    """It is neither needed nor logged."""
    terms = [
        WeightedTerm(MaskedLmLoss(), Constant(1.0)),
        WeightedTerm(MeanLogit(), Constant(0.0)),
    ]
    trainer = tiny_trainer(tmp_path, terms=terms)
    trainer.train()
    assert logged(trainer, "loss") and not logged(trainer, "loss/mean_logit")


def test_labels_that_are_all_ignored_are_refused(tmp_path: Path) -> None:
    """There is nothing to learn from; the error says so."""

    def without_labels(rows: list[dict[str, list[int]]]) -> dict[str, Tensor]:
        batch = collate(rows)
        return {**batch, "labels": torch.full_like(batch["labels"], -100)}

    with pytest.raises(ValueError, match="all labels are -100"):
        tiny_trainer(tmp_path, data_collator=without_labels).train()


def test_terms_are_checked_at_construction(tmp_path: Path) -> None:
    """Repeated names, no terms, and terms with parameters."""

    class Learned(MaskedLmLoss):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))

    one = WeightedTerm(MaskedLmLoss(), Constant(1.0))
    for terms, message in (
        ([one, one], "each name once"),
        ([], "at least one"),
        ([WeightedTerm(Learned(), Constant(1.0))], "trainable parameters"),
    ):
        with pytest.raises(ValueError, match=message):
            tiny_trainer(tmp_path, terms=terms)


def test_rows_that_do_not_fill_one_step_are_refused(tmp_path: Path) -> None:
    """One-line data get one clear line."""
    with pytest.raises(ValueError, match="have 3 rows, one optimizer step takes 8"):
        tiny_trainer(tmp_path, train_sampler=TinySampler(3)).train()


def test_learning_rate_multipliers_and_floor(tmp_path: Path) -> None:
    """A multiplier of 0 freezes a part; the schedule ends at the floor."""
    arguments = {"lr_multipliers": {"^embedding": 0.0, "decoder": 2.0}, "min_lr_ratio": 0.25}
    trainer = tiny_trainer(tmp_path, arguments={**arguments, "logging_steps": 1})
    before = weights_of(trainer.model)
    trainer.train()
    after = weights_of(trainer.model)
    assert torch.equal(before["embedding.weight"], after["embedding.weight"])
    assert not torch.equal(before["decoder.weight"], after["decoder.weight"])
    rates = {group["initial_lr"] for group in trainer.optimizer.param_groups}
    assert rates == {0.0, 1e-2, 2e-2}
    multiplier = trainer.lr_scheduler.lr_lambdas[0]
    assert multiplier(3) == pytest.approx(0.25)


def test_bf16_autocast_on_the_cpu_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Mixed precision through the arguments, losses in fp32."""
    # transformers 4.57 leaves this variable behind for every later run of the process.
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    trainer = tiny_trainer(tmp_path, arguments={"bf16": True, "max_steps": 8, "logging_steps": 4})
    trainer.train()
    first, last = logged(trainer, "loss")
    assert last < first
    assert next(trainer.model.parameters()).dtype == torch.float32


def test_evaluation_uses_the_loss_of_the_model(tmp_path: Path) -> None:
    """`evaluate` works while training and is not rescaled."""
    trainer = tiny_trainer(tmp_path, eval_dataset=TinyRows(8))
    expected = trainer.model.eval()(**collate([TinyRows()[i] for i in range(8)])).loss.item()
    assert trainer.evaluate()["eval_loss"] == pytest.approx(expected, rel=1e-5)
