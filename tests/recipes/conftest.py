"""Fixtures of the recipe tests."""

import math
import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from nestling.configuration.budget import ends_of, middle_of
from nestling.configuration.configuration_delta_encoder import DeltaEncoderConfig
from nestling.recipes.environment import environment_block

# The small Delta-Matryoshka++ run lies beside these tests.
sys.path.insert(0, str(Path(__file__).parent))
# For ``delta_models``.
sys.path.insert(0, str(Path(__file__).parents[1] / "modeling"))


@pytest.fixture
def kept_memory(allocator_options: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """The options that a test sets in the allocator."""
    allocator_options.clear()
    return allocator_options


def make_evaluation(shift: float = 0.0, seed: int = 0) -> dict[str, Any]:
    config = DeltaEncoderConfig(
        vocab_size=256,
        hidden_size=64,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=128,
        pad_token_id=0,
        cls_token_id=1,
        sep_token_id=2,
    )
    budgets = config.budget_list()
    noise = random.Random(seed)
    entries = []
    for budget in budgets:
        flops = budget.flops(config, 128, predicted_tokens=38)
        loss = 4.0 - 0.4 * math.log(flops / 1e7) + noise.uniform(-0.03, 0.05) + shift
        entries.append(
            {
                "budget": str(budget),
                "folder": budget.folder_name,
                "cross_entropy": loss,
                "cross_entropy_ci": [loss - 0.01, loss + 0.01],
                "perplexity": math.exp(loss),
                "accuracy": 1 / loss,
                "ece": 0.02,
                "nll": loss,
                "parameters": budget.parameters(config),
                "trunk_flops": budget.flops(config, 128),
                "flops": flops,
                "bytes": budget.weight_bytes(config),
                "latency_ms": {"median": flops / 1e7, "p25": flops / 1.1e7, "p75": flops / 0.9e7},
                "safe_alias": str(budget),
            }
        )
    smallest, largest = ends_of(budgets)
    names = {"smallest": smallest, "middle": middle_of(budgets, config), "largest": largest}
    return {
        "schema_version": 1,
        "kind": "evaluation",
        "family": "delta_encoder",
        "environment": environment_block([0]),
        "data": {"name": "example"},
        "sequence_length": 128,
        "predicted_tokens_per_sequence": 38,
        "budgets": entries,
        "summary": {
            "autc": 0.2,
            "autc_anchors": [1.0, 2.0],
            "monotonicity": {},
            **{name: str(budget) for name, budget in names.items()},
        },
    }


@pytest.fixture
def example_evaluation() -> Callable[..., dict[str, Any]]:
    """A maker of evaluations with made-up but lawful numbers: 27 budgets, this machine."""
    return make_evaluation


# One thread: two threads on a busy machine wait for each other.
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "COLUMNS": "200"}
RunNestling = Callable[..., subprocess.CompletedProcess[str]]


def _run(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "nestling.recipes", *arguments],
        cwd=cwd,
        env={**os.environ, **ENVIRONMENT},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


@pytest.fixture(scope="session")
def run_nestling() -> RunNestling:
    """Runs ``nestling ARGUMENTS`` in a process of its own and returns what it printed."""
    return _run


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the tiny recipe, trained, measured, exported and verified once."""
    folder = tmp_path_factory.mktemp("tiny") / "run"
    done = _run("train", "recipe=delta_encoder/tiny", f"output_dir={folder}")
    assert done.returncode == 0, done.stderr[-2000:]
    (folder / "printed.txt").write_text(done.stdout)
    return folder
