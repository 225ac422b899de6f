import time

import pytest
from nestling.recipes.interleaved_timing import quartiles, time_interleaved


def test_every_action_runs_once_per_round_from_changing_starts():
    calls = []
    actions = {name: lambda name=name: calls.append(name) for name in "abc"}
    timings = time_interleaved(actions, rounds=3, warmup=1)
    assert "".join(calls[3:]) == "abc" + "bca" + "cab"
    assert len(calls) == 12
    assert all(len(t.wall) == len(t.cpu) == 3 for t in timings.values())


def test_sleep_costs_wall_time_only():
    timing = time_interleaved({"sleep": lambda: time.sleep(0.02)}, rounds=2)["sleep"].summary()
    assert timing["wall_ms"]["median"] >= 20
    assert timing["cpu_ms"]["median"] < 15


def test_quartiles_by_hand():
    assert quartiles((0.001, 0.002, 0.003, 0.004, 0.010)) == pytest.approx(
        {"median": 3.0, "p25": 2.0, "p75": 4.0}
    )
    assert quartiles((0.5,)) == {"median": 500.0, "p25": 500.0, "p75": 500.0}


def test_errors():
    with pytest.raises(ValueError, match="1 or more"):
        time_interleaved({}, rounds=1)
    with pytest.raises(ValueError, match="0 rounds"):
        time_interleaved({"a": print}, rounds=0)
