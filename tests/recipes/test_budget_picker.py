import json
import subprocess
import sys

import pytest
from nestling.recipes.budget_picker import FROM_FILE, MEASURED_HERE, OTHER_MACHINE, pick
from nestling.recipes.cli_errors import DataError, UsageError


def by_budget(content):
    return {entry["budget"]: entry for entry in content["budgets"]}


@pytest.mark.parametrize("share", [0.3, 0.5, 0.8, 1.0])
@pytest.mark.parametrize("axis", ["max_flops", "max_mb", "max_ms"])
def test_it_is_the_best_of_what_fits(example_evaluation, axis, share):
    content = example_evaluation()
    value = {
        "max_flops": lambda e: e["flops"],
        "max_mb": lambda e: e["bytes"] / 1e6,
        "max_ms": lambda e: e["latency_ms"]["median"],
    }[axis]
    values = sorted(value(entry) for entry in content["budgets"])
    limit = values[int(share * (len(values) - 1))]
    chosen = pick(content, **{axis: limit})
    fitting = [entry for entry in content["budgets"] if value(entry) <= limit]
    assert chosen.cross_entropy == min(entry["cross_entropy"] for entry in fitting)
    assert value(by_budget(content)[chosen.budget]) <= limit
    assert chosen.time_source == FROM_FILE


def test_the_alias_is_served(example_evaluation):
    content = example_evaluation()
    entries = by_budget(content)
    smallest, largest = content["summary"]["smallest"], content["summary"]["largest"]
    for entry in entries.values():
        entry["safe_alias"] = smallest
    entries[smallest]["cross_entropy"] = 9.0  # even so: the alias was chosen on other data
    assert pick(content, max_flops=entries[largest]["flops"]).budget == smallest


def test_limits_hold_together(example_evaluation):
    content = example_evaluation()
    flops = sorted(entry["flops"] for entry in content["budgets"])[10]
    size = sorted(entry["bytes"] for entry in content["budgets"])[5] / 1e6
    chosen = pick(content, max_flops=flops, max_mb=size)
    assert chosen.flops <= flops
    assert chosen.megabytes <= size


def test_when_nothing_fits_the_named_limit_works(example_evaluation):
    content = example_evaluation()
    with pytest.raises(UsageError, match=r"no budget fits max_ms=0\.001") as error:
        pick(content, max_ms=0.001)
    advised = float(str(error.value).rpartition("max_ms=")[2])
    assert pick(content, max_ms=advised).budget == content["summary"]["smallest"]
    with pytest.raises(UsageError, match="looser limits on all"):
        pick(content, max_ms=0.001, max_mb=0.001)


def test_another_machine_is_pointed_out(example_evaluation):
    content = example_evaluation()
    content["environment"]["machine"]["cpu"] = "Babbage Engine"
    assert pick(content, max_ms=1e9).time_source == OTHER_MACHINE


def test_another_machine_is_measured_again(example_evaluation, tiny_delta_encoder, tmp_path):
    tiny_delta_encoder.save_pretrained(tmp_path)
    content = example_evaluation()
    content["environment"]["machine"]["cpu"] = "Babbage Engine"
    for entry in content["budgets"]:
        entry["latency_ms"]["median"] = 1e12  # nothing would fit
    chosen = pick(content, max_ms=1e6, measure=tmp_path)
    assert chosen.time_source == MEASURED_HERE
    assert 0 < chosen.milliseconds < 1e6


@pytest.mark.parametrize("kind", ["evaluation", "budgets"])
def test_what_is_measured_is_what_the_file_counts(
    example_evaluation, tiny_delta_encoder, tmp_path, monkeypatch, kind
):
    tiny_delta_encoder.save_pretrained(tmp_path)
    content = example_evaluation()
    content["environment"]["machine"]["cpu"] = "Babbage Engine"
    context = {key: value for key, value in content.items() if key != "budgets"}
    if kind == "budgets":
        rows = [{**entry, "measured": entry} for entry in content["budgets"]]
        content = {"schema_version": 1, "kind": "budgets", "budgets": rows, "evaluation": context}
    work = []

    counted = []

    def measure(model, budgets, sequence_length, predicted_tokens, shares):
        work.append((sequence_length, predicted_tokens, model.config.delta_token_ratio))
        counted.append({str(budget): share for budget, share in shares.items() if share})
        return {budget: {"median": 1.0} for budget in budgets}

    monkeypatch.setattr("nestling.recipes.delta_encoder.budget_latency.measure_latency", measure)
    pick(content, max_ms=1e6, measure=tmp_path)
    assert work == [(128, 38, None)]
    # The file says on which share of the tokens the delta ran.
    config = type(tiny_delta_encoder.config)(
        **{**tiny_delta_encoder.config.to_dict(), "token_routing": True}
    )
    type(tiny_delta_encoder)(config).save_pretrained(tmp_path)
    context["delta_token_ratio"] = content["delta_token_ratio"] = 0.35
    pick(content, max_ms=1e6, measure=tmp_path)
    assert work[1:] == [(128, 38, 0.35)]
    # And with a threshold, which share each budget had.
    context["delta_token_ratio"] = content["delta_token_ratio"] = None
    entry = content["budgets"][-1]
    (entry if kind == "evaluation" else entry["measured"])["delta_token_share"] = 0.125
    pick(content, max_ms=1e6, measure=tmp_path)
    assert work[2:] == [(128, 38, None)]
    assert counted == [{}, {}, {entry["budget"]: 0.125}]


def test_exported_ladder(example_evaluation):
    content = example_evaluation()
    kept = content["budgets"][:3]
    ladder = {
        "schema_version": 1,
        "kind": "budgets",
        "evaluation": {"environment": content["environment"], "sequence_length": 128},
        "budgets": [
            {
                "budget": e["budget"],
                "folder": e["folder"],
                "flops": e["flops"],
                "bytes": e["bytes"],
                "measured": {"cross_entropy": e["cross_entropy"], "latency_ms": e["latency_ms"]},
                "safe_alias": "1.0:1:1",  # not among the exported ones
            }
            for e in kept
        ],
    }
    best = min(kept, key=lambda entry: entry["cross_entropy"])
    assert pick(ladder, max_mb=1e6).budget == best["budget"]
    ladder["budgets"] = [{**entry, "measured": None} for entry in ladder["budgets"]]
    with pytest.raises(DataError, match="measured cross-entropy"):
        pick(ladder, max_mb=1e6)


def test_errors(example_evaluation, tmp_path):
    content = example_evaluation()
    with pytest.raises(UsageError, match="no limit"):
        pick(content)
    with pytest.raises(DataError, match="does not exist"):
        pick(tmp_path / "none.json", max_mb=1)
    with pytest.raises(DataError, match="kind 'benchmark'"):
        pick({"kind": "benchmark"}, max_mb=1)
    with pytest.raises(DataError, match="schema version 2"):
        pick({**content, "schema_version": 2}, max_mb=1)
    for entry in content["budgets"]:
        entry["latency_ms"] = None
    with pytest.raises(DataError, match="no times"):
        pick(content, max_ms=1)


def test_picking_does_not_import_torch(example_evaluation, tmp_path):
    path = tmp_path / "metrics.json"
    path.write_text(json.dumps(example_evaluation()))
    script = (
        "import sys; from nestling.recipes.budget_picker import pick; "
        "print(pick(sys.argv[1], max_mb=1e9).budget, 'torch' in sys.modules)"
    )
    command = [sys.executable, "-c", script, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.split()[1] == "False"
