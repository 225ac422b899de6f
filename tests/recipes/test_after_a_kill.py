"""A run that was killed: the next start finds the checkpoint it had and clears what is left."""

import subprocess
import sys
from pathlib import Path

import pytest
from nestling.recipes.cli_errors import UsageError
from nestling.recipes.training_run import checkpoint_to_resume
from nestling.trainers.checkpoint_files import MANIFEST_NAME


@pytest.fixture
def killed_run(tmp_path: Path) -> Path:
    """The folder of a run that was killed while it saved step 20 again; exports left folders."""
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    for name in (
        "checkpoint-10", ".replaced-checkpoint-20", ".partial-checkpoint-20",
        f".model.partial-{ended.pid}-aaaaaaaa", f".best.replaced-{ended.pid}-aaaaaaaa",
        f"slices/.v01-d01.replaced-{ended.pid}-aaaaaaaa",
    ):  # fmt: skip
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / MANIFEST_NAME).write_text("{}")
    return tmp_path


def test_the_checkpoint_that_was_being_replaced_is_the_one_resumed_from(killed_run: Path) -> None:
    assert checkpoint_to_resume(killed_run, resume=True) == killed_run / "checkpoint-20"
    # The half-written one is the trainer's to remove, once nothing refuses this command.
    assert [path.name for path in killed_run.glob(".*")] == [".partial-checkpoint-20"]
    assert (killed_run / "best").is_dir() and (killed_run / "slices" / "v01-d01").is_dir()


def test_every_process_finds_it_and_the_first_clears(
    killed_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    assert checkpoint_to_resume(killed_run, resume=True) == killed_run / "checkpoint-20"
    assert not (killed_run / "best").exists()
    monkeypatch.setenv("RANK", "0")
    assert checkpoint_to_resume(killed_run, resume=True) == killed_run / "checkpoint-20"
    assert (killed_run / "best").is_dir()


def test_a_run_without_resume_is_refused_for_it(killed_run: Path) -> None:
    with pytest.raises(UsageError, match="already holds checkpoint-20"):
        checkpoint_to_resume(killed_run, resume=False)


def test_a_new_run_needs_no_folder(tmp_path: Path) -> None:
    assert checkpoint_to_resume(tmp_path / "new", resume=False) is None
    assert not (tmp_path / "new").exists()
