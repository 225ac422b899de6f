"""Two gloo processes run the same passes as one, through all phases."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_plus import plus_trainer, tiny_plus
from two_process_plus_worker import CHANGES

WORKER = Path(__file__).parent / "two_process_plus_worker.py"


def test_two_processes_equal_one(tmp_path: Path, tiny_tokenizer: Any) -> None:
    """Weights and losses agree; the preview network is without gradient in half of the steps."""
    tiny_tokenizer.save_pretrained(tmp_path / "tokenizer")
    alone = plus_trainer(tiny_plus(tmp_path / "alone", *CHANGES), tiny_tokenizer)
    alone.train()
    together = tmp_path / "together"
    together.mkdir()
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2"),
        *("--rdzv_backend=c10d", "--rdzv_endpoint=127.0.0.1:0", str(WORKER)),
        *(str(together), str(tmp_path / "tokenizer")),
    ]
    paths = [str(WORKER.parent), os.environ.get("PYTHONPATH", "")]
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "GLOO_SOCKET_IFNAME": "lo",
        "PYTHONPATH": os.pathsep.join(path for path in paths if path),
    }
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=240)
    assert done.returncode == 0, done.stderr[:6000]
    history = json.loads((together / "state.json").read_text())["log_history"]
    losses = [line["loss/masked_lm"] for line in history if "loss" in line]
    expected = [line["loss/masked_lm"] for line in alone.state.log_history if "loss" in line]
    assert losses == pytest.approx(expected, rel=1e-4)
    weights = torch.load(together / "weights.pt", weights_only=True)
    for name, value in alone.model.state_dict().items():
        # The threshold is the mean of the ranks' quantiles, not the quantile of all.
        if ".preview." not in name:
            torch.testing.assert_close(weights[name], value, rtol=1e-3, atol=1e-4, msg=name)
