"""Tokens chosen by a threshold: predicted, counted and timed on the share that scores above it."""

import pytest
import torch
import torch.nn.functional as F
from delta_models import lively_model
from nestling.configuration.delta_budget import DeltaBudget
from nestling.modeling.token_routing import choose_by_threshold
from nestling.recipes.delta_encoder import budget_latency
from nestling.recipes.delta_encoder.evaluate import run_full_evaluation
from nestling.recipes.delta_encoder.evaluation_inputs import evaluation_loader
from nestling.recipes.evaluation.evaluation_table import csv_table, markdown_table, notes
from nestling.trainers.masked_lm_collator import MaskedLMCollator
from tiny_plus import random_rows
from torch.utils.flop_counter import FlopCounterMode

TEXTS = ["0.5:2:2", "0.75:3:3", "1.0:4:4"]  # the first has no delta


def loader(count=12, batch_size=5, seed=0):
    collator = MaskedLMCollator(
        mask_token_id=4, pad_token_id=0, vocab_size=96, special_token_ids=range(5)
    )
    return evaluation_loader(random_rows(count, seed), collator, batch_size)


@pytest.fixture
def model():
    """Its threshold lies among the scores of every budget."""
    routing = lively_model(token_routing=True)
    batch = next(iter(loader()))
    with torch.no_grad():
        outputs = routing(
            **batch, budgets=(DeltaBudget.full(routing.config),),
            routed=(DeltaBudget.full(routing.config), 0.5),
        )  # fmt: skip
    scores = outputs.scores[batch["attention_mask"] > 0]
    routing.config.delta_token_threshold = float(scores.quantile(0.6))
    return routing


def evaluate(model, **changes):
    options = {"sequence_length": 16, "latency": False, "bootstrap_samples": 50, "progress": False}
    return run_full_evaluation(model, loader(), TEXTS, **{**options, **changes})


def test_the_measured_share_is_what_is_counted_and_timed(model, monkeypatch):
    """Against a loop over slices and rows. Calibration rows are others and are not counted."""
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
    report = evaluate(model, latency=True, calibration_loader=loader(count=9, seed=7))
    threshold = model.config.delta_token_threshold
    assert report["delta_token_threshold"] == threshold and "delta_token_ratio" not in report
    shares, scores = [], []
    for entry in report["budgets"]:
        sliced, budget = model.slice(entry["budget"]), DeltaBudget.parse(entry["budget"])
        losses = []
        if sliced.config.token_routing:
            sliced.model.preview.register_forward_hook(lambda _m, _i, out: scores.append(out))
        chosen = real = 0
        for batch in loader(batch_size=1):
            with torch.no_grad():
                logits = sliced(batch["input_ids"], batch["attention_mask"]).logits
            labelled = batch["labels"] != -100
            losses += F.cross_entropy(
                logits[labelled], batch["labels"][labelled], reduction="none"
            ).tolist()
            is_real = batch["attention_mask"] > 0
            real += int(is_real.sum())
            if scores:
                chosen += int(choose_by_threshold(scores.pop(), is_real, threshold).sum())
        assert entry["cross_entropy"] == pytest.approx(sum(losses) / len(losses), rel=1e-4)
        share = chosen / real if sliced.config.token_routing else None
        assert entry["delta_token_share"] == share
        work = {} if share is None else {"delta_ratio": share}
        predicted = report["predicted_tokens_per_sequence"]
        assert entry["trunk_flops"] == budget.flops(model.config, 16, **work)
        assert entry["flops"] == budget.flops(model.config, 16, predicted_tokens=predicted, **work)
        assert entry["flops"] == counted[entry["budget"]]
        shares.append(share)
    assert shares[0] is None and all(0.05 < share < 0.95 for share in shares[1:])
    assert shares[1] != shares[2]
    assert model.config.delta_token_threshold == threshold
    spread = " to ".join(f"{100 * share:.3g}" for share in sorted(shares[1:]))
    (line, *_) = notes(report)
    assert f"score above {threshold:g}, {spread} % of all by budget" in line
    assert line in markdown_table(report)
    assert "delta share" in csv_table(report).splitlines()[0]


def test_nothing_is_left_on_the_model(model):
    evaluate(model)
    assert not model.model.preview._forward_hooks
    model.config.delta_token_threshold = None
    report = evaluate(model)
    assert "delta_token_threshold" not in report
    assert all("delta_token_share" not in entry for entry in report["budgets"])
    assert "delta share" not in csv_table(report)
