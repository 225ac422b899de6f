"""Checkpoints are complete or absent, and a damaged one is named."""

import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from nestling.trainers import checkpointing_trainer
from nestling.trainers.checkpoint_files import (
    MANIFEST_NAME,
    CheckpointError,
    CheckpointWriteError,
    atomic_directory,
    is_disk_full,
    last_complete_checkpoint,
    list_checkpoints,
    remove_leftovers,
    rotate_checkpoints,
    verify_checkpoint,
)
from nestling.trainers.hook_state import (
    capture_hook_state,
    load_hook_state,
    save_hook_state,
)
from safetensors import SafetensorError
from tiny_masked_lm_run import StopAt, TinyRows, tiny_trainer

SAVING = {"save_strategy": "steps", "save_steps": 2, "save_total_limit": None}


def make_checkpoint(output_dir: Path, step: int) -> Path:
    """Write a small folder as a checkpoint."""
    target = output_dir / f"checkpoint-{step}"
    with atomic_directory(target) as partial:
        (partial / "weights").write_bytes(bytes(range(100)))
        (partial / "trainer_state.json").write_text("{}")
    return target


def test_a_folder_appears_only_complete(tmp_path: Path) -> None:
    """Inside the block nothing is visible; after it everything is."""
    target = tmp_path / "checkpoint-1"
    with atomic_directory(target) as partial:
        (partial / "weights").write_text("abc")
        assert not target.exists() and last_complete_checkpoint(tmp_path) is None
    assert sorted(path.name for path in target.iterdir()) == [MANIFEST_NAME, "weights"]
    assert last_complete_checkpoint(tmp_path) == target
    verify_checkpoint(target)


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        SafetensorError(
            "Error while serializing: I/O error: No space left on device (os error 28)"
        ),
        RuntimeError("[enforce fail] . PytorchStreamWriter failed writing file data/0"),
    ],
)
def test_a_full_disk_keeps_what_was_there(tmp_path: Path, error: Exception) -> None:
    """The old content of the same name survives, and so does the earlier checkpoint."""
    make_checkpoint(tmp_path, 1)
    target = make_checkpoint(tmp_path, 2)
    assert is_disk_full(error)
    with (
        pytest.raises(CheckpointWriteError, match="disk is full") as caught,
        atomic_directory(target) as partial,
    ):
        (partial / "weights").write_text("half")
        raise error
    assert "\n" not in str(caught.value)
    assert (target / "weights").read_bytes() == bytes(range(100))
    verify_checkpoint(target)
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["checkpoint-1", "checkpoint-2"]


@pytest.mark.parametrize("part", ["save_model", "_save_rng_state"])
def test_a_full_disk_during_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    """The second save fails; the run stops in one line and resumes from the first."""
    trainer = tiny_trainer(tmp_path, arguments=SAVING)
    original = getattr(trainer, part)

    def fill_disk(folder: str, **kwargs: Any) -> None:
        original(folder, **kwargs)
        if trainer.state.global_step == 4:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(trainer, part, fill_disk)
    with pytest.raises(CheckpointWriteError, match="checkpoint-4: the disk is full"):
        trainer.train()
    assert [path.name for path in list_checkpoints(tmp_path)] == ["checkpoint-2"]
    assert not list(tmp_path.glob(".*"))
    again = tiny_trainer(tmp_path, arguments=SAVING)
    again.train(resume_from_checkpoint=True)
    assert again.state.global_step == 4


def test_a_real_write_limit_is_reported(tmp_path: Path) -> None:
    """No mock: the system refuses to write files beyond 4 kB."""
    code = (
        "import resource, signal, sys\n"
        "sys.path.insert(0, sys.argv[2])\n"
        "from tiny_masked_lm_run import tiny_trainer\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "trainer = tiny_trainer(sys.argv[1], arguments={'save_strategy':'steps','save_steps':1})\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
        "try:\n    trainer.train()\n"
        "except Exception as error:\n    sys.exit(f'{type(error).__name__}: {error}')\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path), str(Path(__file__).parent)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)
    last_line = done.stderr.strip().splitlines()[-1]
    assert last_line.startswith("CheckpointWriteError: could not write"), done.stderr[-2000:]
    assert list_checkpoints(tmp_path) == [] and not list(tmp_path.glob(".*"))


def test_a_kill_during_a_save_leaves_nothing_visible(tmp_path: Path) -> None:
    """SIGKILL inside the save; the next start cleans up and resumes from the checkpoint before."""
    code = (
        "import os, signal, sys\n"
        "sys.path.insert(0, sys.argv[2])\n"
        "from tiny_masked_lm_run import tiny_trainer\n"
        f"trainer = tiny_trainer(sys.argv[1], arguments={SAVING!r})\n"
        "original = trainer._save_rng_state\n"
        "def kill(folder):\n"
        "    original(folder)\n"
        "    if trainer.state.global_step == 4:\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "trainer._save_rng_state = kill\n"
        "trainer.train()\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path), str(Path(__file__).parent)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, env=environment, timeout=120)
    assert done.returncode == -signal.SIGKILL
    assert [path.name for path in list_checkpoints(tmp_path)] == ["checkpoint-2"]
    assert (tmp_path / ".partial-checkpoint-4").is_dir()
    again = tiny_trainer(tmp_path, arguments=SAVING)
    again.train(resume_from_checkpoint=True)
    assert again.state.global_step == 4
    assert not list(tmp_path.glob(".*"))
    verify_checkpoint(tmp_path / "checkpoint-4")


def test_a_kill_between_the_two_renames_loses_nothing(tmp_path: Path) -> None:
    """The checkpoint that was being replaced comes back."""
    target = make_checkpoint(tmp_path, 3)
    os.replace(target, tmp_path / ".replaced-checkpoint-3")
    (tmp_path / ".partial-checkpoint-3").mkdir()
    remove_leftovers(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-3"]
    verify_checkpoint(target)


def truncate(path: Path) -> None:
    """Cut a file in half."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path: Path) -> None:
    """Change one byte."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 255
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("file", "damage", "words"),
    [
        ("model.safetensors", truncate, "is truncated"),
        ("optimizer.pt", flip, "is damaged"),
        ("hook_state.json", Path.unlink, "is missing"),
        (MANIFEST_NAME, truncate, "is damaged"),
    ],
)
def test_a_damaged_checkpoint_is_named(tmp_path: Path, file: str, damage: Any, words: str) -> None:
    """The error names the file and what to remove; the same call then works."""
    tiny_trainer(tmp_path, arguments=SAVING).train()
    damage(tmp_path / "checkpoint-4" / file)
    # An interrupted copy: nothing to go on from.
    (tmp_path / "checkpoint-3").mkdir()
    with pytest.raises(CheckpointError, match=f"{file} {words}") as caught:
        tiny_trainer(tmp_path, arguments=SAVING).train(resume_from_checkpoint=True)
    message = str(caught.value)
    assert "\n" not in message and message.endswith("goes on from checkpoint-2")
    named = re.search(r"remove (\S+) and give the same command again", message)
    assert named is not None
    shutil.rmtree(named[1])
    again = tiny_trainer(tmp_path, arguments=SAVING)
    again.train(resume_from_checkpoint=True)
    assert again.state.global_step == 4


def test_without_another_checkpoint_a_run_starts_anew(tmp_path: Path) -> None:
    """Nothing is promised that is not there."""
    (make_checkpoint(tmp_path, 2) / "weights").unlink()
    with pytest.raises(CheckpointError, match=r"remove \S*checkpoint-2 .*starts anew: there is no"):
        verify_checkpoint(tmp_path / "checkpoint-2")


def test_other_checkpoints_that_cannot_be_resumed(tmp_path: Path) -> None:
    """Nothing there, weights only, another model, other hooks."""
    with pytest.raises(CheckpointError, match="no complete checkpoint"):
        tiny_trainer(tmp_path).train(resume_from_checkpoint=True)
    tiny_trainer(tmp_path / "light", arguments={**SAVING, "save_only_model": True}).train()
    with pytest.raises(CheckpointError, match=r"holds no optimizer\.pt"):
        tiny_trainer(tmp_path / "light").train(resume_from_checkpoint=True)
    tiny_trainer(tmp_path / "full", arguments=SAVING).train()
    wider = tiny_trainer(tmp_path / "full", arguments=SAVING)
    wider.model.decoder = torch.nn.Linear(8, 30)
    with pytest.raises(CheckpointError, match=r"does not fit this model.*decoder"):
        wider.train(resume_from_checkpoint=True)
    hooked = tiny_trainer(tmp_path / "full", arguments=SAVING, stateful={"more": Counter()})
    with pytest.raises(CheckpointError, match=r"holds the hooks \['loss_log', "):
        hooked.train(resume_from_checkpoint=True)
    larger = tiny_trainer(
        tmp_path / "full", arguments={**SAVING, "gradient_accumulation_steps": 2}
    )
    with pytest.raises(CheckpointError, match=r"rows per optimizer step, this run has .*1 proc"):
        larger.train(resume_from_checkpoint=True)


def test_rotation_keeps_the_newest_and_the_best(tmp_path: Path) -> None:
    """By step number, whatever the file times say."""
    paths = [make_checkpoint(tmp_path, step) for step in (100, 20, 3, 40)]
    rotate_checkpoints(tmp_path, 2, str(paths[2]))
    assert [path.name for path in list_checkpoints(tmp_path)] == ["checkpoint-3", "checkpoint-100"]


def test_rotation_and_best_model_in_training(tmp_path: Path) -> None:
    """save_total_limit and load_best_model_at_end still work; paths are the final ones."""
    arguments = {
        **SAVING,
        "save_total_limit": 1,
        "eval_strategy": "steps",
        "eval_steps": 2,
        "load_best_model_at_end": True,
        "metric_for_best_model": "eval_loss",
        "greater_is_better": True,
        "max_steps": 8,
    }
    trainer = tiny_trainer(tmp_path, arguments=arguments, eval_dataset=TinyRows(8))
    trainer.train()
    # The loss falls, so that with greater_is_better the first checkpoint is the best one.
    assert trainer.state.best_model_checkpoint == str(tmp_path / "checkpoint-2")
    assert (tmp_path / "checkpoint-2" / "model.safetensors").is_file()
    saved = json.loads((tmp_path / "checkpoint-2" / "trainer_state.json").read_text())
    assert saved["best_model_checkpoint"] == str(tmp_path / "checkpoint-2")
    # The newest is kept beside it: a run that is killed afterwards goes on from there.
    assert [path.name for path in list_checkpoints(tmp_path)] == ["checkpoint-2", "checkpoint-8"]
    assert trainer.args.save_total_limit == 1


def test_saving_over_a_checkpoint_of_an_earlier_run(tmp_path: Path) -> None:
    """A new run in an old folder replaces checkpoints of the same step."""
    tiny_trainer(tmp_path, arguments=SAVING).train()
    before = (tmp_path / "checkpoint-2" / "model.safetensors").read_bytes()
    second = tiny_trainer(tmp_path, arguments={**SAVING, "learning_rate": 1e-3})
    second.add_callback(StopAt(2))
    second.train()
    assert (tmp_path / "checkpoint-2" / "model.safetensors").read_bytes() != before
    verify_checkpoint(tmp_path / "checkpoint-2")


def test_a_save_that_fails_on_another_rank_fails_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ranks agree on failure, so none waits for ever."""
    trainer = tiny_trainer(tmp_path, arguments=SAVING)
    monkeypatch.setattr(
        trainer.accelerator, "reduce", lambda tensor, reduction: tensor + 1, raising=True
    )
    with pytest.raises(CheckpointWriteError, match="another process failed"):
        trainer._on_all_ranks(tmp_path / "checkpoint-1", lambda: None)
    assert checkpointing_trainer.partial_path(tmp_path / "checkpoint-1").exists() is False


class Counter:
    """A hook."""

    def __init__(self, state: Any = None) -> None:
        """Keep any state."""
        self.state = state or {}

    def state_dict(self) -> dict[str, Any]:
        """Return the state."""
        return self.state

    def load_state_dict(self, state_dict: dict[str, Any], /) -> None:
        """Restore the state."""
        self.state = state_dict


def test_hook_state_round_trip(tmp_path: Path) -> None:
    """Tensors keep their bits and types, numbers their value; nothing is shared."""
    tensor = torch.randn(3, 2, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    state = {"a": 0.1, "b": [1, None, {"t": tensor.T, "s": torch.tensor(5)}], "c": "x"}
    captured = capture_hook_state({"hook": Counter(state)})
    expected = tensor.T.clone()
    tensor.zero_()
    save_hook_state(tmp_path, captured)
    target = Counter()
    load_hook_state(tmp_path, {"hook": target})
    assert target.state["a"] == 0.1 and target.state["c"] == "x"
    first, nothing, inner = target.state["b"]
    assert (first, nothing) == (1, None)
    assert torch.equal(inner["t"], expected) and inner["t"].dtype == torch.bfloat16
    assert inner["s"].item() == 5


@pytest.mark.parametrize("state", [{"a": object()}, {"a": {1: 2}}, {"a": {1, 2}}])
def test_hook_state_that_cannot_be_saved(state: Any) -> None:
    """Nothing is pickled or silently turned into text."""
    with pytest.raises(TypeError, match="hook state"):
        capture_hook_state({"hook": Counter(state)})
