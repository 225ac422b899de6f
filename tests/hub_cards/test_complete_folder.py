"""Exports that were killed: what they leave is cleared, what they took away comes back."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from nestling.hub_cards.complete_folder import clear_leftovers
from nestling.hub_cards.export_slices import export, export_elastic

KILLED = """
import os, signal, sys
from pathlib import Path
from nestling.hub_cards import complete_folder

target, deadly_rename = Path(sys.argv[1]), int(sys.argv[2])
replace, renames = os.replace, []

def count(source, place):
    renames.append(place)
    if len(renames) == deadly_rename:
        os.kill(os.getpid(), signal.SIGKILL)
    replace(source, place)

os.replace = count
with complete_folder.staging_folder(target) as staged:
    (staged / "weights").write_text("new")
    complete_folder.move_into_place(staged, target)
"""


@pytest.fixture(scope="module")
def ended_process() -> int:
    """The number of a process that is no more."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


@pytest.fixture
def running_process() -> Iterator[int]:
    """The number of a process that runs."""
    command = [sys.executable, "-c", "import sys; sys.stdin.read()"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE)
    yield process.pid
    process.communicate()  # ends its input, and so the process


def leave(folder: Path, name: str, kind: str, process: int) -> Path:
    """Leave what an export has hidden beside NAME."""
    hidden = folder / f".{name}.{kind}-{process}-abc_12ef"
    hidden.mkdir(parents=True)
    (hidden / "weights").write_text("old")
    return hidden


def hidden_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob(".*"))


@pytest.mark.parametrize("deadly_rename", [1, 2])
def test_a_killed_export_loses_nothing_and_leaves_nothing(
    deadly_rename: int, tmp_path: Path
) -> None:
    target = tmp_path / "model"
    target.mkdir()
    (target / "weights").write_text("old")
    command = [sys.executable, "-c", KILLED, str(target), str(deadly_rename)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert target.exists() == (deadly_rename == 1)
    assert len(hidden_in(tmp_path)) == 2
    clear_leftovers(target)
    assert hidden_in(tmp_path) == [] and (target / "weights").read_text() == "old"


def test_what_a_running_process_writes_is_left_alone(running_process: int, tmp_path: Path) -> None:
    target = tmp_path / "model"
    hidden = [leave(tmp_path, "model", kind, running_process) for kind in ("partial", "replaced")]
    clear_leftovers(target)
    assert all(path.is_dir() for path in hidden) and not target.exists()


def test_another_process_had_the_number_of_this_one(tmp_path: Path) -> None:
    """In a container the first process always has the same number."""
    leave(tmp_path, "model", "partial", os.getpid())
    clear_leftovers(tmp_path / "model")
    assert hidden_in(tmp_path) == []


def test_only_the_folder_concerned_is_cleared(ended_process: int, tmp_path: Path) -> None:
    other = leave(tmp_path, "other", "partial", ended_process)
    unknown = tmp_path / ".model.partial-notes"
    unknown.mkdir()
    clear_leftovers(tmp_path / "model")
    assert other.is_dir() and unknown.is_dir()


def test_an_export_begins_by_clearing(
    elastic_folder: Path, lively_encoder: Any, ended_process: int, tmp_path: Path
) -> None:
    output = tmp_path / "slices"
    leave(tmp_path, "slices", "partial", ended_process)
    leave(output, "w100-h04-d04", "replaced", ended_process)
    leave(output, "w050-h02-d02", "replaced", ended_process)
    (output / "budgets.json").write_text('{"budgets": []}')
    export(elastic_folder, ["0.5:2:2"], output, verify=False)
    assert hidden_in(tmp_path) == hidden_in(output) == []
    assert (output / "w100-h04-d04" / "weights").read_text() == "old"
    assert (output / "w050-h02-d02" / "model.safetensors").is_file()
    leave(tmp_path, "model", "partial", ended_process)
    export_elastic(lively_encoder, None, tmp_path / "model")
    assert hidden_in(tmp_path) == []
