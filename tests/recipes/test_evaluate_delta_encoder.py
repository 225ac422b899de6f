import json
import math

import pytest
import torch
import torch.nn.functional as F
from nestling.configuration.budget import BudgetError
from nestling.configuration.delta_budget import DeltaBudget
from nestling.hub_cards.delta_pack import pack_size
from nestling.recipes.cli_errors import DataError, ModelFolderError
from nestling.recipes.console import show_rows
from nestling.recipes.delta_encoder import budget_latency
from nestling.recipes.delta_encoder.budget_latency import standalone_slice
from nestling.recipes.delta_encoder.evaluate import (
    resolve_budgets,
    run_full_evaluation,
)
from nestling.recipes.delta_encoder.evaluation_inputs import evaluation_loader
from nestling.recipes.evaluation.budget_scoring import group_by_trunk, score_budgets
from nestling.recipes.evaluation.evaluation_files import write_evaluation
from nestling.recipes.evaluation.evaluation_table import (
    console_rows,
    csv_table,
    ladder_rows,
    markdown_table,
)
from nestling.trainers.masked_lm_collator import MaskedLMCollator
from nestling.trainers.metrics.calibration import expected_calibration_error
from nestling.trainers.metrics.monotonicity import monotone_safe_alias, nested_pairs
from torch.utils.flop_counter import FlopCounterMode


def random_rows(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for size in torch.randint(10, 20, (count,), generator=generator).tolist():
        tokens = torch.randint(5, 96, (size,), generator=generator).tolist()
        numbers = [1] * (size // 2) + [2] * (size - size // 2)
        rows.append({"input_ids": tokens, "document_ids": numbers})
    return rows


def loader(count=12, batch_size=5, seed=0):
    collator = MaskedLMCollator(
        mask_token_id=4, pad_token_id=0, vocab_size=96, special_token_ids=range(5)
    )
    return evaluation_loader(random_rows(count, seed), collator, batch_size)


@pytest.fixture
def model(tiny_delta_encoder):
    # Wide weights: an untrained model would give every budget nearly the same loss.
    with torch.no_grad():
        for parameter in tiny_delta_encoder.parameters():
            if parameter.dim() == 2:
                parameter.mul_(8.0)
    return tiny_delta_encoder


def evaluate(model, **changes):
    options = {"sequence_length": 16, "latency": False, "bootstrap_samples": 50, "progress": False}
    return run_full_evaluation(model, loader(), **{**options, **changes})


def test_every_number_against_a_plain_loop(model):
    report = evaluate(model)
    assert len(report["budgets"]) == 27
    for entry in report["budgets"]:
        sliced = model.slice(entry["budget"])
        losses, hits, confidences = [], [], []
        for batch in loader(batch_size=1):
            with torch.no_grad():
                logits = sliced(batch["input_ids"], batch["attention_mask"]).logits
            labelled = batch["labels"] != -100
            z, y = logits[labelled], batch["labels"][labelled]
            losses += F.cross_entropy(z, y, reduction="none").tolist()
            hits += (z.argmax(-1) == y).tolist()
            confidences += z.softmax(-1).max(-1).values.tolist()
        mean = sum(losses) / len(losses)
        assert entry["cross_entropy"] == pytest.approx(mean, rel=1e-4)
        assert entry["nll"] == entry["cross_entropy"]
        assert entry["perplexity"] == pytest.approx(math.exp(mean), rel=1e-3)
        assert entry["accuracy"] == pytest.approx(sum(hits) / len(hits))
        expected = expected_calibration_error(confidences, hits)
        assert entry["ece"] == pytest.approx(expected, abs=1e-4)
        low, high = entry["cross_entropy_ci"]
        assert low < mean < high
        assert entry["parameters"] == sum(p.numel() for p in sliced.parameters())
        assert entry["bytes"] == 4 * entry["parameters"]
        budget = DeltaBudget.parse(entry["budget"])
        assert entry["trunk_flops"] == budget.flops(model.config, 16)
        predicted = report["predicted_tokens_per_sequence"]
        assert entry["flops"] == budget.flops(model.config, 16, predicted_tokens=predicted)
        assert entry["folder"] == budget.folder_name


def test_the_head_counts_at_the_share_of_tokens_that_are_predicted(model):
    batches = list(loader())
    labelled = sum(int((batch["labels"] != -100).sum()) for batch in batches)
    real = sum(int((batch["attention_mask"] != 0).sum()) for batch in batches)
    assert any((batch["attention_mask"] == 0).any() for batch in batches)  # padding does not count
    for length in (16, 60):
        report = evaluate(model, sequence_length=length)
        assert report["data"]["predicted_share"] == pytest.approx(labelled / real, abs=1e-6)
        assert report["predicted_tokens_per_sequence"] == round(length * labelled / real) > 0
    low, high = report["summary"]["autc_anchors"]
    flops = {entry["budget"]: entry["flops"] for entry in report["budgets"]}
    assert (low, high) == (flops["0.5:2:2"], flops["1.0:4:4"])


def test_a_narrower_hidden_width_has_a_cheaper_head(model):
    entries = evaluate(model, budgets=["1.0:4:4", "1.0:4:4:16"])["budgets"]
    heads = [entry["flops"] - entry["trunk_flops"] for entry in entries]
    assert 0 < heads[1] < heads[0]


def test_the_middle_does_not_depend_on_the_evaluation(model):
    names = [evaluate(model, sequence_length=n)["summary"]["middle"] for n in (4, 60)]
    assert names[0] == names[1]


def test_summary(model):
    report = evaluate(model)
    summary, entries = report["summary"], report["budgets"]
    losses = {entry["budget"]: entry["cross_entropy"] for entry in entries}
    budgets = [DeltaBudget.parse(text) for text in losses]
    wrong = [
        (i, j)
        for i, j in nested_pairs(budgets)
        if losses[str(budgets[j])] > losses[str(budgets[i])]
    ]
    counts = summary["monotonicity"]
    assert counts["pairs"] == 189
    assert counts["raw_violations"] == len(wrong) > 0  # random weights are not monotone
    assert 0 <= counts["significant_violations"] <= counts["raw_violations"]
    assert counts["alias_violations"] == 0
    assert counts["alias_violations_calibration"] is None  # no rows were held out
    assert report["data"]["aliases_chosen_on"] == "evaluation rows"
    scores = score_budgets(model, loader(), budgets)
    for confidence, settings in ((0.99, {}), (0.5, {"alias_confidence": 0.5})):
        report = evaluate(model, **settings)
        assert report["data"]["alias_confidence"] == confidence
        alias = monotone_safe_alias(budgets, scores.row_losses, scores.row_tokens, confidence)
        chosen = [entry["safe_alias"] for entry in report["budgets"]]
        assert chosen == [str(budgets[i]) for i in alias]
    assert summary["smallest"] == "0.5:2:2"
    assert summary["largest"] == "1.0:4:4"
    assert 0 <= summary["autc"] <= 1
    json.dumps(report, allow_nan=False)


def test_anchors_do_not_depend_on_the_budgets_evaluated(model):
    some = evaluate(model, budgets=[(0.5, 2, 2), "0.75:3:3", DeltaBudget(1.0, 4, 3)])
    assert [entry["budget"] for entry in some["budgets"]] == ["0.5:2:2", "0.75:3:3", "1.0:4:3"]
    assert some["summary"]["autc_anchors"] == evaluate(model)["summary"]["autc_anchors"]
    given = evaluate(model, autc_anchors=(1.0, 10.0))["summary"]
    assert given["autc_anchors"] == [1.0, 10.0]
    assert given["autc"] == 0.0  # no model is that cheap


def test_a_slice_has_one_budget_and_no_curve(model):
    report = evaluate(model.slice("0.5:2:2"))
    assert [entry["budget"] for entry in report["budgets"]] == ["1.0:2:2"]
    assert report["summary"]["autc"] is None
    assert report["summary"]["monotonicity"]["pairs"] == 0


def test_the_same_seed_gives_the_same_report(model):
    reports = [evaluate(model, seed=seed) for seed in (0, 0, 1)]
    assert reports[0]["budgets"] == reports[1]["budgets"]
    intervals = [[entry["cross_entropy_ci"] for entry in r["budgets"]] for r in reports]
    assert intervals[0] != intervals[2]


def test_held_out_rows_choose_aliases_and_temperatures(model):
    report = evaluate(model, calibration_loader=loader(count=30, seed=7))
    held_out = score_budgets(
        model, loader(count=30, seed=7), resolve_budgets(None, model.config)
    )
    alias = monotone_safe_alias(held_out.budgets, held_out.row_losses, held_out.row_tokens)
    expected = [str(held_out.budgets[index]) for index in alias]
    assert [entry["safe_alias"] for entry in report["budgets"]] == expected
    largest = report["budgets"][-1]
    # Logits of these weights are far too confident.
    assert largest["temperature"] > 1.5
    assert largest["nll_after_temperature"] < largest["nll"]
    hits, confidences = [], []
    for batch in loader():
        with torch.no_grad():
            z = model(**batch).logits / largest["temperature"]
        hits += (z.argmax(-1) == batch["labels"][batch["labels"] >= 0]).tolist()
        confidences += z.softmax(-1).max(-1).values.tolist()
    expected = expected_calibration_error(confidences, hits)
    assert largest["ece_after_temperature"] == pytest.approx(expected, abs=1e-4)
    assert report["data"]["aliases_chosen_on"] == "calibration rows"
    assert report["data"]["calibration_rows"] == 30
    counts = report["summary"]["monotonicity"]
    assert counts["alias_violations_calibration"] == 0  # by construction
    losses = {entry["budget"]: entry["cross_entropy"] for entry in report["budgets"]}
    served = [losses[entry["safe_alias"]] for entry in report["budgets"]]
    wrong = sum(served[j] > served[i] for i, j in nested_pairs(held_out.budgets))
    assert counts["alias_violations"] == wrong


def test_one_trunk_pass_serves_all_depths(model):
    groups = group_by_trunk(resolve_budgets(None, model.config))
    assert len(groups) == 9
    passes = []
    model.model.layers[0].register_forward_hook(lambda *_: passes.append(1))
    batches = list(loader())
    score_budgets(model, batches, resolve_budgets(None, model.config))
    assert len(passes) == 9 * len(batches)


def test_the_mode_of_the_model_is_restored(model):
    model.train()
    model.config.mlp_dropout = 0.5
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.5
    first, second = evaluate(model), evaluate(model)
    assert model.training
    assert first["budgets"] == second["budgets"]  # dropout was off


def test_latency_is_that_of_the_standalone_slice(model):
    report = evaluate(model, budgets=["smallest", "largest"], latency=True)
    for entry in report["budgets"]:
        times = entry["latency_ms"]
        assert 0 < times["p25"] <= times["median"] <= times["p75"]
    sliced = standalone_slice(model, DeltaBudget.parse("0.5:2:2"))
    assert len(sliced.model.layers) == 2
    assert sliced.model.layers[0].mlp.up.weight.shape == (24, 32)
    # The table is shared, not copied, and the nested model is untouched.
    assert sliced.model.embeddings.token.weight is model.model.embeddings.token.weight
    assert sliced.decoder.weight is model.decoder.weight


def test_what_is_timed_is_what_the_flops_count(model, monkeypatch):
    counted = {}

    def count(actions, rounds, warmup):
        for name, action in actions.items():
            with FlopCounterMode(display=False) as counter:
                action()
            counted[name] = counter.get_total_flops()
        return time_interleaved(actions, rounds, warmup=warmup)

    model.set_attn_implementation("eager")  # the counter does not see fused attention on a CPU
    time_interleaved = budget_latency.time_interleaved
    monkeypatch.setattr(budget_latency, "time_interleaved", count)
    report = evaluate(model, budgets=["0.5:2:2", "1.0:4:4", "0.5:3:3:16"], latency=True)
    assert report["predicted_tokens_per_sequence"] > 0
    assert counted == {entry["budget"]: entry["flops"] for entry in report["budgets"]}


@pytest.fixture
def routing_model(model):
    """The same shape with a preview network; every part shows in the output."""
    settings = {**model.config.to_dict(), "token_routing": True, "preview_size": 2}
    config = type(model.config)(**settings)
    torch.manual_seed(0)
    routing = type(model)(config).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in routing.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.15)
    return routing


def test_a_share_of_the_tokens_is_predicted_counted_and_timed(routing_model, monkeypatch):
    """As a loop over the slices, which route by themselves; the largest is cheaper and worse."""
    model, texts = routing_model, ["0.5:2:2", "0.75:3:3", "1.0:4:4"]
    everywhere = evaluate(model, budgets=texts)
    assert "delta_token_ratio" not in everywhere
    model.config.delta_token_ratio = 0.35
    counted = {}

    def count(actions, rounds, warmup):
        for name, action in actions.items():
            with FlopCounterMode(display=False) as counter:
                action()
            counted[name] = counter.get_total_flops()
        return time_interleaved(actions, rounds, warmup=warmup)

    model.set_attn_implementation("eager")
    time_interleaved = budget_latency.time_interleaved
    monkeypatch.setattr(budget_latency, "time_interleaved", count)
    report = evaluate(model, budgets=texts, latency=True)
    assert report["delta_token_ratio"] == 0.35
    predicted = report["predicted_tokens_per_sequence"]
    for entry, before in zip(report["budgets"], everywhere["budgets"], strict=True):
        sliced, budget = model.slice(entry["budget"]), DeltaBudget.parse(entry["budget"])
        losses = []
        for batch in loader(batch_size=1):
            with torch.no_grad():
                logits = sliced(batch["input_ids"], batch["attention_mask"]).logits
            labelled = batch["labels"] != -100
            losses += F.cross_entropy(
                logits[labelled], batch["labels"][labelled], reduction="none"
            ).tolist()
        assert entry["cross_entropy"] == pytest.approx(sum(losses) / len(losses), rel=1e-4)
        given = {"predicted_tokens": predicted, "delta_ratio": 0.35}
        assert entry["flops"] == budget.flops(model.config, 16, **given)
        assert entry["flops"] == counted[entry["budget"]]
        assert entry["trunk_flops"] == budget.flops(model.config, 16, delta_ratio=0.35)
        is_routed = budget.has_routed_delta(model.config)
        assert is_routed == (entry["budget"] != "0.5:2:2")
        assert (entry["flops"] < before["flops"]) == is_routed
        assert (abs(entry["cross_entropy"] - before["cross_entropy"]) > 1e-3) == is_routed
    assert report["summary"]["autc_anchors"] == everywhere["summary"]["autc_anchors"]


def test_the_bytes_of_the_delta_are_reported(model, routing_model):
    assert "delta" not in evaluate(model, budgets=["largest"])
    report = evaluate(routing_model, budgets=["largest"])
    size = pack_size(routing_model)
    assert report["delta"] == {
        "kind": "dense", "pack_bytes": size.pack, "atom_bytes": 0, "dense_bytes": size.dense,
    }  # fmt: skip
    line = (
        f"Delta outside the base slice (dense): upgrade pack {size.pack:,} bytes, atoms 0 bytes, "
        f"dense {size.dense:,} bytes."
    )
    assert markdown_table(report).splitlines()[-2:] == ["", line]


def test_errors(model):
    with pytest.raises(DataError, match="0 rows"):
        run_full_evaluation(model, [], sequence_length=16, latency=False, progress=False)
    with pytest.raises(DataError, match="0 rows"):
        loader(count=0)
    batch = next(iter(loader()))
    batch["labels"].fill_(-100)
    with pytest.raises(DataError, match="no token to predict"):
        run_full_evaluation(model, [batch], sequence_length=16, latency=False, progress=False)
    with pytest.raises(BudgetError, match="nearest possible"):
        evaluate(model, budgets=["1.0:9:9"])
    with torch.no_grad():
        model.model.layers[3].mlp.down.weight[0, 0] = float("nan")
    with pytest.raises(ModelFolderError, match=r"budget 0\.5:2:4 gives a loss that is not finite"):
        evaluate(model)


def test_a_row_keeps_its_mask_in_any_batch_size():
    one = [batch["labels"] for batch in loader(count=4, batch_size=1)]
    four = next(iter(loader(count=4, batch_size=4)))["labels"]
    for row, labels in enumerate(one):
        assert torch.equal(four[row, : labels.shape[1]], labels[0])


def test_files_and_tables(model, tmp_path):
    report = evaluate(model)
    rows = write_evaluation(report, tmp_path / "run" / "metrics.json")
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert names == {f"metrics.{suffix}" for suffix in ("json", "md", "csv", "png", "svg")}
    assert json.loads((tmp_path / "run" / "metrics.json").read_text()) == report
    assert rows == console_rows(report)
    assert "ms" not in rows[0]  # latency was off
    assert "ECE at T" not in ladder_rows(report)[0]  # no temperature was fitted
    assert [row["MFLOPs"] for row in rows] == sorted(row["MFLOPs"] for row in rows)
    assert len(markdown_table(report).splitlines()) == 2 + 27
    assert len(csv_table(report).splitlines()) == 1 + 27


def test_the_console_table_fits_100_columns(model, monkeypatch, capsys):
    report = evaluate(model, calibration_loader=loader(count=30, seed=7), latency=True)
    monkeypatch.setattr("nestling.recipes.console.PIPE_WIDTH", 300)
    show_rows("ladder", console_rows(report))
    printed = capsys.readouterr().out
    assert "ECE at T" in printed and "ms" in printed
    assert max(map(len, printed.splitlines())) <= 100
