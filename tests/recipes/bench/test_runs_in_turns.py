"""A suite run by child processes: memory of fresh processes, and two checkouts in turns."""

import shutil
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from nestling.recipes.bench import normalization, runs_in_turns
from nestling.recipes.bench.ddl_cases import Case
from nestling.recipes.bench.peak_memory import peak_in_child
from nestling.recipes.bench.runs_in_turns import samples_in_turns
from nestling.recipes.bench.worker_process import WorkerProcess
from nestling.recipes.bench_regression import FAILED, THROUGHPUT, Limits, compare_samples
from nestling.recipes.cli_errors import DataError
from nestling.recipes.environment import PACKAGE_FOLDER

ROOMS = ("configuration", "modeling", "recipes", "trainers")
SETTINGS = replace(
    normalization.SHORT,
    hidden_size=64,
    tokens=512,
    rounds=20,
    warmup=2,
    variants=("baseline",),
    device="cpu",
)


@pytest.fixture(scope="module")
def slower_checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the package whose RmsNorm does its work many times."""
    folder = tmp_path_factory.mktemp("other") / "slower"
    folder.mkdir()
    shutil.copy(PACKAGE_FOLDER / "__init__.py", folder)
    for room in ROOMS:
        skipped = shutil.ignore_patterns("__pycache__")
        shutil.copytree(PACKAGE_FOLDER / room, folder / room, ignore=skipped)
    source = folder / "modeling" / "ddl_sublayers.py"
    text = source.read_text()
    start = text.index("def forward", text.index("class RmsNorm"))
    line = text.index("        return", start)
    source.write_text(
        f"{text[:line]}        for _ in range(40):\n            states.exp()\n{text[line:]}"
    )
    return folder


def test_slower_code_is_found_and_nothing_else(slower_checkout, monkeypatch):
    # One pair of processes is quicker; nothing here is near the limit.
    monkeypatch.setattr(runs_in_turns, "PAIRS", 1)
    before, now, block = samples_in_turns(
        PACKAGE_FOLDER, "normalization", asdict(SETTINGS), current=slower_checkout
    )
    assert block == 21
    assert all(len(values) == 21 for side in (before, now) for values in side.values())
    found = compare_samples(before, now, Limits(min_throughput=0.5))
    failed = {c.case for c in found if c.measure == THROUGHPUT and c.verdict == FAILED}
    ours = {case for case in now if case.startswith("RmsNorm")}
    assert failed == ours and len(ours) == 2


def test_a_worker_weighs_cases_and_refuses_in_one_line():
    settings = {**asdict(SETTINGS), "tokens": 2**16}
    with WorkerProcess(PACKAGE_FOLDER, "normalization", settings) as worker:
        peak = worker.ask(do="memory", case="RmsNorm forward fp32 eager")["bytes"]
        # The input, its scaled copy and the result, next to what norms need on the way.
        states = 2**16 * 64 * 4
        assert 2 * states <= peak <= 6 * states
        with pytest.raises(DataError, match="stopped: TypeError: .*'hiden'"):
            worker.ask(do="load", suite="normalization", settings={**settings, "hiden": 1})


def test_a_checkout_that_cannot_be_imported_is_one_line(tmp_path):
    worker = tmp_path / "recipes" / "bench" / "case_worker.py"
    worker.parent.mkdir(parents=True)
    worker.write_text("")
    (tmp_path / "__init__.py").write_text("raise RuntimeError('too old')")
    with pytest.raises(DataError, match="stopped: RuntimeError: too old"):
        WorkerProcess(tmp_path, "normalization", asdict(SETTINGS))


# In a process of its own, as cases are measured: this one has memory to reuse from earlier tests.
MEASURE_PEAKS = """
import torch
from nestling.recipes.bench.ddl_cases import Case
from nestling.recipes.bench.peak_memory import peak_in_child

def allocation(numbers):
    prepare = lambda: lambda: torch.ones(numbers)
    return Case(labels={"what": "allocation"}, tokens=1, prepare=prepare)

print(*(peak_in_child(allocation(2**power), threads=1) for power in (10, 24)))
"""


def test_peak_memory_is_that_of_the_case():
    done = subprocess.run(
        [sys.executable, "-c", MEASURE_PEAKS], capture_output=True, text=True, check=True
    )
    small, large = map(int, done.stdout.split())
    assert small < 2**22 < 4 * 2**24 <= large < 4 * 2**24 + 2**22


def test_a_case_that_fails_in_its_fork_is_an_error():
    def fail():
        raise ValueError("no")

    with pytest.raises(RuntimeError, match="broken ended"):
        peak_in_child(Case(labels={"what": "broken"}, tokens=1, prepare=fail), threads=1)
