"""Every command and snippet of the README runs, on the model of the tiny recipe."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README, re.DOTALL)
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def shell_lines() -> list[str]:
    """The commands of all shell blocks, continued lines joined, comments dropped."""
    text = "\n".join(body for language, body in BLOCKS if language == "bash")
    lines = (line.split("  #")[0].strip() for line in text.replace("\\\n", " ").splitlines())
    return [line for line in lines if line and not line.startswith("#")]


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with finished runs: `runs/tiny`, the same as `runs/demo`, and `runs/ddl`."""
    folder = tmp_path_factory.mktemp("readme")
    run(["train", "recipe=delta_encoder/tiny", "output_dir=runs/tiny"], folder)
    run(["train", "recipe=ddl/tiny", "output_dir=runs/ddl"], folder)
    shutil.copytree(folder / "runs/tiny", folder / "runs/demo")
    slices = folder / "runs/demo/slices"
    shutil.copytree(slices / "w050-h02-d01", slices / "w050-h02-d02")
    return folder


def run(arguments: list[str], folder: Path) -> str:
    """Run `nestling ARGUMENTS` in a folder and return what it printed."""
    done = subprocess.run(
        [sys.executable, "-m", "nestling.recipes", *arguments],
        cwd=folder, env={**os.environ, **ENVIRONMENT}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = [line.split()[1] for line in shell_lines() if line.startswith("make ")]
    assert targets[:2] == ["demo", "test"]
    for target in targets:
        assert f"\n{target}:" in makefile


COMMANDS = [line for line in shell_lines() if line.startswith("nestling ")]


@pytest.mark.parametrize("command", COMMANDS)
def test_command(command: str, workspace: Path) -> None:
    arguments = shlex.split(command)[1:]
    if arguments[0] == "train" and not {"--dry-run", "--resume"} & set(arguments):
        arguments.append("--dry-run")  # the run itself made the workspace
    if arguments[0] == "prepare":
        arguments = [a.replace("runs/tiny", "runs/prepared") for a in arguments]
    run(arguments, workspace)


@pytest.mark.parametrize(
    "snippet", [body for language, body in BLOCKS if language == "python"], ids=["load", "budget"]
)
def test_snippet(snippet: str, workspace: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", snippet],
        cwd=workspace,
        env={**os.environ, **ENVIRONMENT},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]


def test_picture_exists() -> None:
    for path in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", README):
        assert (ROOT / path).is_file(), path


def test_links_lead_somewhere() -> None:
    for path in re.findall(r"(?<!!)\[[^\]]*\]\(([^)#]+)\)", README):
        assert path.startswith("http") or (ROOT / path).exists(), path
