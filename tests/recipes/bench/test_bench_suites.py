"""Each suite runs once at toy size: its JSON is complete and its predictions are the formulas."""

import json
import math

import pytest
import torch
from nestling.configuration.delta_budget import DeltaBudget
from nestling.recipes.bench import (
    budget_scaling,
    delta_parts,
    elastic_step,
    naive_step,
    packing,
    pretokenized,
    slice_speed,
    token_routing,
)
from nestling.recipes.bench.bench_models import build_model, masked_batch
from nestling.recipes.bench.bench_report import (
    gate,
    missed_targets,
    summary_rows,
    torch_threads,
)
from nestling.recipes.bench.bench_settings import ModelSettings
from nestling.recipes.bench.naive_reference import dense_then_mask_logits, naive_elastic_step
from nestling.recipes.bench.training_steps import elastic_step as our_step

SHAPE = {
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 48,
}
SIZE = {**SHAPE, "sequence_length": 16, "batch_size": 2, "rounds": 1}


def check_file(path, report):
    assert json.loads(path.read_text()) == json.loads(json.dumps(report))
    assert report["kind"] == "benchmark"
    assert report["schema_version"] == 1
    assert report["threads"] == 1
    assert report["environment"]["machine"]["cpus"] >= 1
    assert report["settings"]["rounds"] == 1
    for result in report["results"]:
        for clock in ("wall_ms", "cpu_ms"):
            times = result[clock]
            assert 0 <= times["p25"] <= times["median"] <= times["p75"]


def toy_model(attn_implementation="sdpa"):
    return build_model(ModelSettings(rounds=1, vocab_size=64, **SHAPE), 16, attn_implementation)


def test_budget_scaling(tmp_path):
    settings = budget_scaling.ScalingSettings(**SIZE)
    report = budget_scaling.run(tmp_path / "x.json", settings)
    check_file(tmp_path / "x.json", report)
    assert len(report["results"]) == 2 * 27
    assert set(report["summary"]) == {"inference", "training"}
    config = toy_model().config
    full = DeltaBudget(1.0, 4, 4).flops(config, 16)
    for result in report["results"]:
        expected = DeltaBudget.parse(result["budget"]).flops(config, 16) / full
        assert result["predicted_ratio"] == pytest.approx(expected)
        ratio = result["measured_ratio"] / result["predicted_ratio"]
        assert result["deviation"] == pytest.approx(ratio - 1)


def test_elastic_step(tmp_path):
    settings = elastic_step.ElasticStepSettings(vocab_size=64, sampled_steps=2, bf16=True, **SIZE)
    report = elastic_step.run(tmp_path / "x.json", settings)
    check_file(tmp_path / "x.json", report)
    assert len(report["results"]) == 4
    assert set(report["summary"]) == {"fp32", "bf16"}
    assert all(result["budgets"][0] == "1.0:4:4" for result in report["results"])


def test_predicted_cost_of_an_elastic_step():
    config = toy_model().config
    full, shallow = DeltaBudget(1.0, 4, 4), DeltaBudget(1.0, 4, 2)
    # A depth exit adds its head only, here M (n^2 + n V) multiply-adds.
    head = 2 * 6 * (32 * 32 + 32 * 64)
    whole = full.flops(config, 16, 2, 6)
    ratio = elastic_step.predicted_ratio((full, shallow), config, 16, 2, 6)
    assert ratio == pytest.approx(1 + head / whole)
    narrow = DeltaBudget(0.5, 2, 2)
    ratio = elastic_step.predicted_ratio((full, narrow), config, 16, 2, 6)
    assert ratio == pytest.approx((whole + narrow.flops(config, 16, 2, 6)) / whole)


def test_naive_step(tmp_path):
    budgets = ("1.0:4:4", "0.5:2:2")
    settings = naive_step.NaiveStepSettings(vocab_size=64, budgets=budgets, bf16=False, **SIZE)
    report = naive_step.run(tmp_path / "x.json", settings)
    check_file(tmp_path / "x.json", report)
    assert [result["step"] for result in report["results"]] == ["ours fp32", "naive fp32"]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("budget", ["1.0:4:4", "0.5:2:2", "0.75:3:4", "0.5:4:3"])
def test_the_naive_reference_computes_the_same_function(attention, budget):
    model = toy_model(attn_implementation=attention)
    # A window narrower than the row, so that local layers count.
    model.config.local_attention = 4
    tokens = masked_batch(64, 2, 16, 0.3, seed=1)["input_ids"]
    drawn = DeltaBudget.parse(budget)
    with torch.no_grad():
        ours = model(input_ids=tokens, budget=drawn).logits
        naive = dense_then_mask_logits(model, tokens, drawn)
    assert torch.allclose(ours, naive, atol=1e-5)


def test_both_steps_have_the_same_masked_lm_loss():
    model = toy_model()
    batch = masked_batch(64, 2, 16, 0.3, seed=1)
    drawn = [DeltaBudget.parse(text) for text in ("1.0:4:4", "0.5:2:2", "0.75:3:4")]
    ours = our_step(model, batch, drawn, bf16=False)
    assert all(p.grad is not None for p in model.parameters())
    naive = naive_elastic_step(model, batch, drawn, bf16=False)
    assert all(p.grad is not None for p in model.parameters())
    assert naive == pytest.approx(ours, rel=1e-5)


def documents(count):
    return {"documents": count, "median_length": 10, "max_length": 64, "vocab_size": 64}


def test_packing(tmp_path):
    size = {key: value for key, value in SIZE.items() if key not in ("sequence_length",)}
    settings = packing.PackingSettings(**documents(9), **size)
    report = packing.run(tmp_path / "x.json", settings)
    check_file(tmp_path / "x.json", report)
    padded, batch, packed = report["results"]
    assert padded["rows"] == batch["rows"] == 9 > packed["rows"]
    assert padded["fill_rate"] < batch["fill_rate"] < packed["fill_rate"]
    rows = summary_rows(report)
    assert [row["what"] for row in rows] == list(report["summary"])
    assert all(list(row) == ["what", "predicted", "measured", "target", "met"] for row in rows)
    gain = report["summary"]["packed over padded to 64"]["predicted"]
    assert gain == pytest.approx(packed["fill_rate"] / padded["fill_rate"])


def test_all_layouts_predict_the_same_tokens():
    pieces = packing.random_documents(packing.PackingSettings(**documents(7)))
    single = [packing.PackedRow.join([piece]) for piece in pieces]
    packed = packing.pack_pieces(pieces, 64)

    def predicted(rows, length):
        batches = packing.pad_rows(rows, 3, length, 0.3)
        return sorted(t for b in batches for t in b["labels"][b["labels"] >= 0].tolist())

    assert predicted(single, 64) == predicted(single, None) == predicted(packed, None)
    assert len(predicted(single, 64)) == sum(math.ceil(len(piece) / 3) for piece in pieces)


def test_lengths_are_skewed_around_the_median():
    settings = packing.PackingSettings(documents=2001, median_length=40, spread=1.0, max_length=512)
    lengths = sorted(map(len, packing.random_documents(settings)))
    assert lengths[1000] == pytest.approx(40, rel=0.1)
    assert max(lengths) == 512
    assert sum(lengths) / len(lengths) > 50


def test_slice_speed(tmp_path):
    size = {key: SIZE[key] for key in (*SHAPE, "rounds")}
    settings = slice_speed.SliceSpeedSettings(
        vocab_size=64, budget="1.0:2:2:16", shapes=((1, 8), (2, 16)), **size
    )
    report = slice_speed.run(tmp_path / "x.json", settings)
    check_file(tmp_path / "x.json", report)
    assert len(report["results"]) == 6
    for comparison in report["summary"].values():
        assert comparison["largest_difference"] < 1e-5
        assert comparison["target"] == 0.98


def test_pretokenized(tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("\n\n".join(f"Paragraph {i} is about nests and birds." for i in range(300)))
    settings = pretokenized.PretokenizedSettings(
        source="files", path=str(text), vocab_size=300, max_length=32, rounds=1
    )
    report = pretokenized.run(tmp_path / "x.json", settings)
    check_file(tmp_path / "x.json", report)
    assert report["summary"]["prepared over on the fly"]["measured"] > 0
    assert report["results"][0]["rows"] == report["results"][1]["rows"] > 10


def test_masked_batch_labels_a_fixed_number_per_row():
    batch = masked_batch(64, 3, 20, 0.15, seed=0)
    assert ((batch["labels"] >= 0).sum(dim=1) == 3).all()
    labelled = batch["labels"] >= 0
    assert torch.equal(batch["labels"][labelled], batch["input_ids"][labelled])


def test_missed_targets_say_what_was_measured_and_wanted():
    summary = {
        "gain": gate(3.999, 4.0, at_least=True),
        "cost": gate(2.8, 2.7, at_least=False),
        "met": gate(4.0, 4.0, at_least=True),
        "no target": {"measured": 1.0},
        "seconds": 2.5,
    }
    assert missed_targets({"suite": "step", "summary": summary}) == [
        "step, gain: 3.999, target at least 4",
        "step, cost: 2.8, target at most 2.7",
    ]


def test_gate_and_threads():
    assert gate(4.1, 4.0, at_least=True)["met"]
    assert not gate(4.1, 4.0, at_least=False)["met"]
    before = torch.get_num_threads()
    with pytest.raises(RuntimeError), torch_threads(2):
        assert torch.get_num_threads() == 2
        raise RuntimeError
    assert torch.get_num_threads() == before


def test_token_routing(tmp_path):
    settings = token_routing.TokenRoutingSettings(
        **SHAPE, vocab_size=64, rounds=1, batch_size=2, sequence_length=16, ratios=(0.0, 0.35)
    )
    report = token_routing.run(tmp_path / "x.json", settings)
    check_file(tmp_path / "x.json", report)
    assert [result["share"] for result in report["results"]] == ["0", "0.35", "all"]
    model = build_model(
        settings, 16, token_routing=True, base_attention_heads=2, base_intermediate_size=24
    )
    whole = DeltaBudget.full(model.config)
    row = report["summary"]["saving at a share of 0.35"]
    expected = 1 - whole.flops(model.config, 16, delta_ratio=0.35) / whole.flops(model.config, 16)
    assert row["predicted"] == pytest.approx(expected) and 0 < expected < 1
    assert row["measured"] < 1 and row["wall_clock"] < 1
    (shown,) = (each for each in summary_rows(report) if each["what"].endswith("0.35"))
    assert list(shown) == ["what", "predicted", "measured", "wall clock", "target", "met"]
    assert (shown["measured"], shown["wall clock"]) == (row["measured"], row["wall_clock"])


def test_delta_parts(tmp_path):
    settings = delta_parts.DeltaPartsSettings(**SIZE, vocab_size=64)
    report = delta_parts.run(tmp_path / "x.json", settings)
    check_file(tmp_path / "x.json", report)
    parts = set(delta_parts.PARTS)
    passes = {delta_parts.UPGRADE, delta_parts.ROUTED}
    assert {(r["what"], r["part"]) for r in report["results"]} == {
        *(("training step", part) for part in parts | passes),
        *(("exported slice", part) for part in parts),
        *(("exported slice at a share of 0.35", part) for part in parts if "routing" in part),
    }
    summary = report["summary"]
    assert len(summary) == 2 * (len(parts) - 1) + 2 + 1
    routed = "exported slice at a share of 0.35, "
    routed += "token routing, conditioned norms over token routing"
    assert summary[routed]["predicted"] == 1.0
    assert all(row["measured"] > 0 for row in summary.values())
    for name in passes:
        assert summary[f"training step, {name} over plain"]["predicted"] > 1.1
    assert summary["training step, exit affine over plain"]["predicted"] == 1.0
