"""Two gloo processes give what one process gives."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from nestling.trainers.event_log import read_events
from tiny_masked_lm_run import logged, tiny_trainer, weights_of
from two_process_worker import HAS_MULTI_PROCESS_CPU_RESUME

WORKER = Path(__file__).parent / "two_process_worker.py"


def test_two_processes_equal_one(tmp_path: Path) -> None:
    """Weights and logged losses agree, through a resume in the middle of the second epoch."""
    alone = tiny_trainer(tmp_path / "alone", arguments={"max_steps": 6})
    alone.train()

    together = tmp_path / "together"
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2"),
        *("--rdzv_backend=c10d", "--rdzv_endpoint=127.0.0.1:0", str(WORKER), str(together)),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=240)
    # The cause stands first, the table of torchrun last.
    assert done.returncode == 0, done.stderr[:6000]

    weights = torch.load(together / "weights.pt", weights_only=True)
    for name, value in weights_of(alone.model).items():
        torch.testing.assert_close(weights[name], value, rtol=1e-5, atol=1e-6)
    history = json.loads((together / "final_state.json").read_text())["log_history"]
    losses = [line["loss"] for line in history if "loss" in line]
    assert losses == pytest.approx(logged(alone, "loss"), rel=1e-5)
    kinds = [event["event"] for event in read_events(together / "events.jsonl")[0]]
    assert kinds.count("train_start") == 1
    assert kinds.count("resume") == int(HAS_MULTI_PROCESS_CPU_RESUME)
    # The random state of each rank is part of the checkpoint.
    assert len(list((together / "checkpoint-4").glob("rng_state_*.pth"))) == 2
