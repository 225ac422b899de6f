"""The metric scripts load by path, without the network and without the package."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from nestling.trainers import metrics
from nestling.trainers.metrics.monotonicity import find_violations

SCRIPT = """
import sys
sys.modules["nestling"] = None  # the package must not be needed
import json
import evaluate

folder, cache = sys.argv[1:]
def load(name):
    return evaluate.load(f"{folder}/{name}.py", cache_dir=cache)

print(json.dumps([
    load("autc_metric").compute(predictions=[0.2, 0.6], references=[1.0, 2.0], anchors=(1.0, 4.0)),
    load("monotonicity_metric").compute(
        predictions=[[1.0, 1.5], [2.0, 2.5], [1.0, 1.5]], references=[4, 4, 4], pairs=[(0, 1)]
    ),
    load("budget_calibration_metric").compute(
        predictions=[[0.9, 0.1], [0.9, 0.1]], references=[0, 1]
    ),
]))
"""


@pytest.fixture(scope="module")
def computed(tmp_path_factory):
    home = tmp_path_factory.mktemp("home")
    folder = Path(metrics.__file__).parent
    offline = {"HF_HUB_OFFLINE": "1", "HF_EVALUATE_OFFLINE": "1", "HF_HOME": str(home)}
    result = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(folder), str(home / "metrics")],
        env={**os.environ, **offline},
        cwd=home,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1])


def test_autc(computed):
    assert computed[0] == {"autc": pytest.approx(0.4)}


def test_monotonicity(computed):
    losses = np.array([[1.0, 2.0, 1.0], [1.5, 2.5, 1.5]])
    report = find_violations(losses, np.full(3, 4.0), [(0, 1)])
    assert computed[1] == {"pairs": 1, "raw_violations": 1, "significant_violations": 1}
    assert report.significant_violations == 1


def test_calibration(computed):
    assert computed[2]["ece"] == pytest.approx(0.4)
    assert computed[2]["accuracy"] == 0.5
    assert computed[2]["nll"] == pytest.approx(-(np.log(0.9) + np.log(0.1)) / 2)
