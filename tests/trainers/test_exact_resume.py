"""A resumed run is bit by bit the uninterrupted one (CPU, fp32, with dropout)."""

from pathlib import Path
from typing import Any

import pytest
import torch
from nestling.trainers.event_log import read_events
from nestling.trainers.hooked_trainer import HookedTrainer
from safetensors.torch import load_file
from tiny_masked_lm_run import StopAt, TinyTrainer, tiny_trainer, weights_of
from torch import nn

ARGUMENTS = {
    "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 2,
    "max_steps": 8,
    "logging_steps": 3,
    "save_strategy": "steps",
    "save_steps": 1,
    "save_total_limit": None,
}


class RunningMean:
    """A hook with a number, a list and a tensor as its state."""

    def __init__(self) -> None:
        """Start at zero."""
        self.mean, self.history = 0.0, [0.0]
        self.moments = torch.zeros(2, dtype=torch.float64)

    def update(self, value: float) -> None:
        """Move towards a value."""
        self.mean = 0.9 * self.mean + 0.1 * value
        self.history = [*self.history, value][-3:]
        self.moments = self.moments + torch.tensor([value, value * value], dtype=torch.float64)

    def state_dict(self) -> dict[str, Any]:
        """Return the state."""
        return {"mean": self.mean, "history": self.history, "moments": {"sums": self.moments}}

    def load_state_dict(self, state_dict: dict[str, Any], /) -> None:
        """Restore the state."""
        self.mean, self.history = state_dict["mean"], state_dict["history"]
        self.moments = state_dict["moments"]["sums"]


class AdaptiveTrainer(TinyTrainer):
    """Scales its loss by what its hook remembers, so a lost state shows in the weights."""

    def step_losses(self, model: nn.Module, batch: dict[str, Any], step: int) -> dict[str, Any]:
        """Scale the loss and update the hook."""
        loss = super().step_losses(model, batch, step)["masked_lm"]
        hook = self.stateful["running_mean"]
        assert isinstance(hook, RunningMean)
        scaled = loss._replace(total=loss.total * (1 + hook.mean))
        hook.update(float(loss.total.detach()) / 100)
        return {"masked_lm": scaled}


def build(folder: Path, **arguments: Any) -> HookedTrainer:
    """Build a trainer with dropout and a hook."""
    return tiny_trainer(
        folder,
        AdaptiveTrainer,
        dropout=0.3,
        arguments={**ARGUMENTS, **arguments},
        stateful={"running_mean": RunningMean()},
    )


def lines_of(trainer: HookedTrainer) -> list[dict[str, float]]:
    """Return the training log lines."""
    return [line for line in trainer.state.log_history if "loss" in line]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> HookedTrainer:
    """Train 8 steps of an epoch of 3 in one go."""
    trainer = build(tmp_path_factory.mktemp("whole"))
    trainer.train()
    return trainer


@pytest.mark.parametrize("stop", [1, 3, 4, 5])
def test_a_resumed_run_equals_the_uninterrupted_one(
    tmp_path: Path, uninterrupted: HookedTrainer, stop: int
) -> None:
    """Inside the first epoch, at its end (3) and inside the second; log lines too."""
    first = build(tmp_path)
    first.add_callback(StopAt(stop))
    first.train()
    torch.manual_seed(999)
    second = build(tmp_path, seed=77)
    second.train(resume_from_checkpoint=True)
    for name, value in weights_of(uninterrupted.model).items():
        assert torch.equal(weights_of(second.model)[name], value), name
    assert lines_of(second) == lines_of(uninterrupted)
    hook, expected = (t.stateful["running_mean"] for t in (second, uninterrupted))
    assert hook.mean == expected.mean and hook.history == expected.history
    assert torch.equal(hook.moments, expected.moments)
    kinds = [event["event"] for event in read_events(tmp_path / "events.jsonl")[0]]
    assert kinds.count("train_start") == 1 and kinds.count("resume") == 1


def test_dropout_makes_the_random_state_matter(
    tmp_path: Path, uninterrupted: HookedTrainer
) -> None:
    """Without the saved random state the weights differ: the test above can fail."""
    first = build(tmp_path)
    first.add_callback(StopAt(4))
    first.train()
    second = build(tmp_path, seed=77)
    second._load_rng_state = lambda checkpoint: None  # type: ignore[method-assign]
    second.train(resume_from_checkpoint=True)
    final = weights_of(uninterrupted.model)
    assert any(not torch.equal(value, final[n]) for n, value in weights_of(second.model).items())


@pytest.mark.parametrize("max_steps", [6, 8], ids=["end of an epoch", "within an epoch"])
def test_a_finished_run_is_not_trained_further(max_steps: int, tmp_path: Path) -> None:
    """It may have been killed after its last step, before its model was published."""
    build(tmp_path, max_steps=max_steps).train()
    saved = tmp_path / f"checkpoint-{max_steps}"
    before = {path.name: path.stat().st_mtime_ns for path in saved.iterdir()}
    resumed = build(tmp_path, max_steps=max_steps)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == max_steps
    assert not (tmp_path / f"checkpoint-{max_steps + 1}").exists()
    assert {path.name: path.stat().st_mtime_ns for path in saved.iterdir()} == before
    expected = load_file(saved / "model.safetensors")
    found = weights_of(resumed.model)
    assert all(torch.equal(found[name], value) for name, value in expected.items())
