"""The largest budget alone first: what such a step runs, trains and weighs."""

from pathlib import Path
from typing import Any

import pytest
import torch
from nestling.configuration.budget import ends_of
from nestling.configuration.delta_budget import DeltaBudget
from nestling.recipes.delta_encoder.build import scratch_config
from nestling.recipes.delta_encoder.study_costs import training_cost
from nestling.trainers.delta_encoder_trainer import DeltaEncoderTrainer
from tiny_plus import KINDS, TOTAL, plus_trainer, tiny_plus

HALF = [
    *KINDS["dense"], "training.three_phase=false", "training.survival_alpha=0.5",
    "training.largest_alone=0.5", "training.save_steps=100",
]  # fmt: skip


@pytest.fixture(scope="module")
def trained(
    tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: Any
) -> DeltaEncoderTrainer:
    folder = tmp_path_factory.mktemp("largest_alone")
    trainer = plus_trainer(tiny_plus(folder, *HALF), tiny_tokenizer)
    trainer.train()
    return trainer


def test_terms_between_budgets_wait_for_other_budgets(trained: DeltaEncoderTrainer) -> None:
    lines = [line for line in trained.state.log_history if "loss" in line]
    assert len(lines) == TOTAL
    for name in ("distillation", "cross_scale_features", "monotone_upgrade", "delta_residual"):
        weights = [line.get(f"weight/{name}", 0.0) for line in lines]
        assert not any(weights[: TOTAL // 2]), name
        assert any(weights[TOTAL // 2 :]), name
    for line in lines:
        assert line["weight/masked_lm"] == 1.0
    # Losses of the first half are those of the largest budget, not shares of it.
    assert lines[0]["loss/masked_lm"] == pytest.approx(torch.tensor(96.0).log().item(), rel=0.1)


def test_budgets_of_each_half(trained: DeltaEncoderTrainer) -> None:
    sampler = trained.planner.sampler
    smallest, largest = ends_of(trained.model.config.budget_list())
    draws = [sampler.sample(step, TOTAL) for step in range(TOTAL)]
    assert draws[: TOTAL // 2] == [(largest,)] * (TOTAL // 2)
    assert all(draw[:2] == (largest, smallest) for draw in draws[TOTAL // 2 :])


def test_half_of_the_run_costs_less(tmp_path: Path, tiny_tokenizer: Any) -> None:
    """The first half costs what the largest budget costs, the second what a run of it would."""
    plain = ["loss.kd_weight=0", "loss.delta_weight=0", "loss.mug_weight=0", "loss.cscf_weight=0",
             "model.token_routing=false", "loss.preview_weight=0", "loss.packing_weight=0",
             "loss.budget_penalty_weight=0", "model.delta_token_ratio=null"]  # fmt: skip
    costs = {}
    for name, share, steps in (("both", 0.5, TOTAL), ("rest", 0.0, TOTAL // 2)):
        changes = [*HALF, *plain, f"training.largest_alone={share}", "training.survival_alpha=0",
                   f"training.max_steps={steps}"]  # fmt: skip
        recipe = tiny_plus(tmp_path, *changes)
        config = scratch_config(recipe, tiny_tokenizer)
        costs[name] = training_cost(recipe, config, {"rows": 48, "tokens": 1500}).flops
    predicted = recipe.training.batch_size * round(recipe.data.mlm_probability * 32)
    largest = DeltaBudget.full(config).flops(config, 32, recipe.training.batch_size, predicted)
    assert costs["both"] == costs["rest"] + 3 * largest * TOTAL // 2
    assert costs["rest"] > 1.5 * 3 * largest * TOTAL // 2
