"""Small runs for the explorer, written as a trainer writes them."""

import json
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

BEGIN = datetime(2026, 3, 1, tzinfo=UTC)
Event = Callable[..., dict[str, Any]]


@pytest.fixture
def event() -> Event:
    """Makes an event: `event("log", 20, step=10, loss=3.0)`, 20 seconds after the beginning."""

    def make(kind: str, seconds: float = 0.0, **payload: Any) -> dict[str, Any]:
        time = (BEGIN + timedelta(seconds=seconds)).isoformat(timespec="milliseconds")
        return {"schema_version": 1, "event": kind, "time": time, **payload}

    return make


@pytest.fixture
def start(event: Event) -> dict[str, Any]:
    term = {"name": "masked_lm", "unit": "token", "batch_coupled": False, "weight": "Constant(1.0)"}
    return event("train_start", 0, total_steps=100, terms=[term])


@pytest.fixture
def write() -> Callable[..., Path]:
    """Appends events to a file: `write(path, event, event)`."""

    def append(path: Path, *events: Mapping[str, Any]) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(one) + "\n" for one in events)
        return path

    return append


@pytest.fixture
def evaluation() -> dict[str, Any]:
    budgets = [
        {"budget": "0.5:2:2", "cross_entropy": 3.5, "flops": 10_000_000, "safe_alias": "0.5:2:2"},
        {"budget": "1.0:4:4", "cross_entropy": 3.1, "flops": 40_000_000, "safe_alias": "0.5:2:2"},
    ]
    return {
        "schema_version": 1,
        "kind": "evaluation",
        "family": "delta_encoder",
        "sequence_length": 128,
        "budgets": budgets,
        "summary": {"smallest": "0.5:2:2", "largest": "1.0:4:4"},
    }


@pytest.fixture
def benchmark_file() -> dict[str, Any]:
    summary = {
        "packed over padded": {"predicted": 3.0, "measured": 2.5, "target": 2.0, "met": True},
        "routed over dense": {"predicted": 2.0, "measured": 1.2, "target": 1.5, "met": False},
        "fill rate": 0.97,
    }
    return {"schema_version": 1, "kind": "benchmark", "suite": "packing", "summary": summary}


@pytest.fixture
def study() -> dict[str, Any]:
    mean = {"mean": 3.25, "low": 3.2, "high": 3.3}
    ours = {"mean_cross_entropy": {"mean": 0.05, "low": -0.01, "high": 0.11}}
    method = {"seeds": [0, 1, 2], "mean_cross_entropy": mean, "autc": None, "minus_ours": ours}
    tables = {"tokens": {"methods": {"naive": method}}}
    return {"schema_version": 2, "kind": "study", "family": "delta_encoder", "tables": tables}


@pytest.fixture
def spectral_layer() -> dict[str, Any]:
    shares = {"near_identity": 0.1, "interpolating": 0.2, "near_projection": 0.7}
    quantiles = {"p05": 0.2, "p25": 0.7, "p50": 0.9, "p75": 1.1, "p95": 1.25}
    return {
        "layer": 3,
        "sublayer": "attention",
        "beta": {"mean": 0.85, **quantiles},
        "regimes": {**shares, "near_reflection": 0.0, "strong_reflection": 0.0},
        "eigenvalue": 0.15,
        "log_abs_det": -1.9,
        "negative_dets": 0.25,
        "coherence": 0.4,
        "discrepancy_before": 1.2,
        "discrepancy_after": 0.3,
    }
