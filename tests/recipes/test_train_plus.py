"""Delta-Matryoshka++ from text to folders: what a run with evaluations leaves."""

import json
from pathlib import Path

import torch
from nestling.modeling.delta_encoder_heads import DeltaEncoderForMaskedLM
from nestling.recipes.delta_encoder.train import train
from nestling.recipes.evaluation_file import read_evaluation
from nestling.trainers.event_log import read_events
from safetensors.torch import load_file
from tiny_plus import tiny_plus


def test_a_run_leaves_the_last_and_the_best_model(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    recipe = tiny_plus(
        folder, "data.vocab_size=600", "data.max_bytes=100000", "training.max_steps=6",
        "training.eval_steps=2", "training.save_steps=6", "training.save_total_limit=2",
        "evaluation.batches=1", "evaluation.bootstrap_samples=2", "evaluation.latency=false",
        "export.budgets=[]",
    )  # fmt: skip
    report = train(recipe)
    assert report.written["best"] == folder / "best"
    assert (folder / "last").resolve() == (folder / "model").resolve()
    events, _ = read_events(folder / "events.jsonl")
    losses = {e["step"]: e["eval_loss"] for e in events if "eval_loss" in e}
    assert sorted(losses) == [2, 4, 6]
    best = min(losses, key=lambda step: losses[step])
    for name, step in (("best", best), ("model", 6)):
        weights = load_file(folder / name / "model.safetensors")
        kept = load_file(folder / f"checkpoint-{step}" / "model.safetensors")
        assert all(torch.equal(weights[key], kept[key]) for key in weights), name
    assert len(read_evaluation(folder / "metrics.json")["budgets"]) == 27
    model = DeltaEncoderForMaskedLM.from_pretrained(folder / "best")
    assert model.config.delta_kind == "dictionary" and model.config.token_routing


def test_the_slices_of_a_run_have_the_share_of_its_recipe(tmp_path: Path) -> None:
    """And its evaluation measures that share, so that their cards show what they run."""
    recipe = tiny_plus(
        tmp_path / "run", "data.vocab_size=600", "data.max_bytes=100000", "training.max_steps=6",
        "training.save_steps=6", "evaluation.batches=1", "evaluation.bootstrap_samples=2",
        "evaluation.budgets=[smallest,largest]", "evaluation.latency=false", "export.verify=false",
        "export.budgets=[smallest,largest]", "export.delta_token_ratio=0.4",
    )  # fmt: skip
    folder = train(recipe).written["slices"]
    configs = {
        name: json.loads((folder / name / "config.json").read_text())
        for name in ("w050-h02-d02", "w100-h04-d04")
    }
    ratios = {name: config["delta_token_ratio"] for name, config in configs.items()}
    assert ratios == {"w050-h02-d02": None, "w100-h04-d04": 0.4}
    assert configs["w100-h04-d04"]["learned_token_threshold"] is not None
    assert read_evaluation(tmp_path / "run" / "metrics.json")["delta_token_ratio"] == 0.4
    assert "Delta on 40 % of the tokens." in (folder / "w100-h04-d04" / "README.md").read_text()
    # The nested model chooses at run time.
    nested = json.loads((tmp_path / "run" / "model" / "config.json").read_text())
    assert nested["delta_token_ratio"] is None
