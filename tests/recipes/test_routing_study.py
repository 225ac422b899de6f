"""Rules that choose the tokens of the delta, on one tiny trained model."""

import sys
from pathlib import Path

import pytest
import torch
from nestling.configuration.delta_budget import DeltaBudget
from nestling.recipes.cli_errors import ModelFolderError
from nestling.recipes.delta_encoder import routing_study
from nestling.recipes.delta_encoder.evaluate import evaluate_run
from nestling.recipes.delta_encoder.evaluation_inputs import open_run
from nestling.recipes.delta_encoder.routing_study import (
    RULES,
    benefit_auc,
    main,
    run_routing_study,
    score_tokens,
)
from nestling.recipes.delta_encoder.routing_table import routing_table
from nestling.recipes.delta_encoder.train import train
from nestling.recipes.recipe_loader import load_recipe
from nestling.trainers.losses.masked_lm import IGNORED_LABEL, token_losses
from tiny_run import TINY_RUN

ROUTED = ["model.token_routing=true", "loss.preview_weight=1"]


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("routed")
    train(load_recipe([*TINY_RUN, *ROUTED, f"output_dir={folder}"]))
    return folder


def test_auc_by_hand() -> None:
    benefit = torch.tensor([1.0, 1.0, -1.0, -1.0])
    assert benefit_auc(torch.tensor([3.0, 4.0, 1.0, 2.0]), benefit) == 1.0
    assert benefit_auc(torch.tensor([1.0, 2.0, 3.0, 4.0]), benefit) == 0.0
    # Pairs: 3 > 1, 3 = 3, 2 > 1, 2 < 3.
    assert benefit_auc(torch.tensor([3.0, 2.0, 1.0, 3.0]), benefit) == 2.5 / 4
    assert benefit_auc(torch.zeros(4), benefit) == 0.5
    assert torch.tensor(benefit_auc(torch.zeros(4), benefit.abs())).isnan()


def test_curves_run_from_no_token_to_every_token(run_folder: Path) -> None:
    found = run_routing_study([run_folder], [0.0, 0.35, 1.0])
    run = open_run(run_folder)
    whole = DeltaBudget.full(run.model.config)
    losses = {False: 0.0, True: 0.0}
    tokens = 0
    with torch.no_grad():
        for batch in run.loader:
            count = int((batch["labels"] != IGNORED_LABEL).sum())
            tokens += count
            for every in losses:
                chosen = torch.full_like(batch["labels"], every, dtype=torch.bool)
                output = run.model(
                    **batch, budget=whole, delta_tokens=chosen, delta_first_layer=1
                )
                losses[every] += float(output.loss) * count
    assert found["predicted_tokens"] == tokens
    for rule in RULES:
        curve = found["curves"][rule]
        assert curve["0.0"]["mean"] == pytest.approx(losses[False] / tokens, abs=1e-5)
        assert curve["1.0"]["mean"] == pytest.approx(losses[True] / tokens, abs=1e-5)
    benefit = (losses[False] - losses[True]) / tokens
    assert found["benefit"]["mean"] == pytest.approx(benefit, abs=1e-5)
    flops = found["flops"]
    assert flops["0.0"] < flops["0.35"] < flops["1.0"] == 1.0
    assert 0 <= found["preview_auc"]["mean"] <= 1
    shares = found["labelled_share"]
    assert shares["labelled"]["0.35"]["mean"] == shares["benefit"]["0.35"]["mean"] == 1.0
    assert shares["random"]["0.35"]["mean"] == pytest.approx(0.35, abs=0.05)
    # Those of the benefit know more than any other rule, but not how tokens help each other.
    assert set(found["minus_random"]) == set(RULES) - {"random"}
    learned = found["learned_threshold"]
    assert all(0 <= learned[text]["mean"] <= 1 for text in ("masked", "clean"))


def test_the_learned_threshold_is_measured_against_the_same_share(run_folder: Path) -> None:
    found = run_routing_study([run_folder], [0.35])
    run = open_run(run_folder)
    config = run.model.config
    config.delta_token_threshold = config.learned_token_threshold
    report = evaluate_run(run, ["largest"])
    loss = found["threshold_loss"]
    assert loss["threshold"]["mean"] == pytest.approx(
        report["budgets"][0]["cross_entropy"], abs=1e-5
    )
    assert loss["minus_same_share"]["mean"] == pytest.approx(
        loss["threshold"]["mean"] - loss["same_share"]["mean"], abs=1e-9
    )


def test_the_table_says_what_was_measured(run_folder: Path) -> None:
    found = run_routing_study([run_folder], [0.35, 1.0])
    table = routing_table(found)
    rows = [line for line in table.splitlines() if line.startswith(("| 0.35", "| 1.0"))]
    assert len(rows) == 2
    for row, ratio in zip(rows, ("0.35", "1.0"), strict=True):
        cells = [cell.strip() for cell in row.strip("|").split("|")]
        assert cells[1] == f"{found['flops'][ratio]:.3f}"
        for cell, rule in zip(cells[2:], RULES, strict=False):
            assert cell.startswith(f"{found['curves'][rule][ratio]['mean']:.3f}"), rule
        for cell, rule in zip(cells[7:], ("preview", "confidence", "labelled"), strict=True):
            assert cell.startswith(f"{found['minus_random'][rule][ratio]['mean']:+.3f}"), rule
    assert f"{found['preview_auc']['mean']:.3f}" in table
    assert f"{found['learned_threshold']['clean']['mean']:.3f}" in table
    assert f"{found['threshold_loss']['threshold']['mean']:.3f}" in table
    assert "threshold" not in routing_table({**found, "learned_threshold": None})


def test_scores_are_what_the_rules_say(run_folder: Path) -> None:
    run = open_run(run_folder)
    whole = DeltaBudget.full(run.model.config)
    batch = next(iter(run.loader))
    where = batch["labels"] != IGNORED_LABEL
    inputs = batch["input_ids"], batch["attention_mask"]
    with torch.no_grad():
        scores, benefit = score_tokens(run.model, batch, whole, torch.Generator().manual_seed(0))
        nowhere = torch.zeros_like(where)
        logits = run.model(*inputs, delta_tokens=nowhere, delta_first_layer=1).logits
        full = run.model(*inputs).logits
    labels = batch["labels"][where]
    expected = token_losses(logits[where], labels) - token_losses(full[where], labels)
    torch.testing.assert_close(benefit, expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(scores["benefit"][where], benefit)
    assert scores["benefit"][~where].isinf().all()
    assert scores["labelled"][where].min() > scores["labelled"][~where].max()
    torch.testing.assert_close(
        scores["confidence"], -logits.softmax(-1).amax(-1), atol=1e-5, rtol=1e-4
    )
    assert {tuple(score.shape) for score in scores.values()} == {tuple(where.shape)}


def test_a_model_without_preview_is_refused(tmp_path: Path) -> None:
    train(load_recipe([*TINY_RUN, f"output_dir={tmp_path}", "training.max_steps=1"]))
    with pytest.raises(ModelFolderError, match="no preview network"):
        run_routing_study([tmp_path], [0.5])


def test_the_command_line(
    run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "routing.json"
    words = ["routing_study", str(run_folder), "--ratios", "0.5", "--output", str(output)]
    monkeypatch.setattr(sys, "argv", [*words, "--set", "evaluation.batches=1"])
    main()
    assert '"0.5"' in output.read_text()
    monkeypatch.setattr(sys, "argv", [*words, "--ratios", "2"])
    with pytest.raises(SystemExit):
        routing_study.main()
