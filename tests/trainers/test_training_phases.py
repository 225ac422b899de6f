"""The three phases: the original's numbers at the right steps, and no jump of the learning rate."""

from dataclasses import replace
from itertools import pairwise

import pytest
from nestling.trainers.losses.budget_penalty import BudgetPenalty
from nestling.trainers.losses.cross_scale_features import CrossScaleFeatureLoss
from nestling.trainers.losses.delta_residual import DeltaResidualLoss
from nestling.trainers.losses.dictionary_regularizers import AtomOrthogonality, CoefficientSparsity
from nestling.trainers.losses.distillation import DistillationLoss
from nestling.trainers.losses.masked_lm import MaskedLmLoss
from nestling.trainers.losses.monotone_upgrade import MonotoneUpgradeLoss
from nestling.trainers.losses.packing_regularizer import PackingRegularizer
from nestling.trainers.losses.preview_benefit import PreviewBenefitLoss
from nestling.trainers.training_phases import (
    CALIBRATION,
    PACKING,
    RESIDUALIZATION,
    TrainingPhase,
    TrainingPhases,
)

TOTAL = 1000
STEPS = (0, 329, 330, 659, 660, 999)  # both ends of each phase


@pytest.mark.parametrize(
    ("term", "weights"),
    [
        (MaskedLmLoss, (1.0, 1.0, 1.0)),
        (DistillationLoss, (1.0, 1.0, 1.0)),
        (DeltaResidualLoss, (0.3, 0.7, 0.5)),
        (MonotoneUpgradeLoss, (0.0, 0.05, 0.1)),
        (CrossScaleFeatureLoss, (0.0, 0.1, 0.2)),
        (CoefficientSparsity, (1e-4, 1e-4, 5e-5)),
        (AtomOrthogonality, (1e-4, 1e-4, 1e-4)),
        (PackingRegularizer, (1e-3, 0.0, 0.0)),
        (PreviewBenefitLoss, (0.0, 1.0, 1.0)),
        (BudgetPenalty, (0.0, 1.0, 1.0)),
    ],
)
def test_weights_of_every_term(term: type, weights: tuple[float, float, float]) -> None:
    """Named as the terms name themselves."""
    schedule = TrainingPhases().weights()[term.name]
    expected = [weight for weight in weights for _ in range(2)]
    assert [schedule(step, TOTAL) for step in STEPS] == expected


def test_what_each_phase_does() -> None:
    phases = TrainingPhases()
    names = ["packing", "residualization", "calibration"]
    modes = ["oversample_smallest", "sandwich", "fixed"]
    assert [phases.phase_name(step, TOTAL) for step in STEPS[::2]] == names
    assert [phases.phase_name(step, TOTAL) for step in STEPS[1::2]] == names
    assert [phases.budget_mode(step, TOTAL) for step in STEPS[::2]] == modes


def test_survival_alpha_falls_smoothly_to_that_of_the_last_phase() -> None:
    """Each phase ends where the next begins."""
    alpha = TrainingPhases().survival_alpha()
    assert [alpha(step, TOTAL) for step in STEPS] == pytest.approx([0.5, 0.3, 0.3, 0.2, 0.2, 0.2])
    values = [alpha(step, TOTAL) for step in range(TOTAL)]
    assert all(0 <= before - after < 0.002 for before, after in pairwise(values))


def test_the_learning_rate_ramps_down_instead_of_jumping() -> None:
    """1 until calibration, 0.3 after 5 % of the run, and never more than a small step between."""
    factor = TrainingPhases().learning_rate_factor()
    values = [factor(step, TOTAL) for step in range(TOTAL)]
    assert values[:661] == [1.0] * 661
    assert values[709:] == pytest.approx([0.3] * 291)
    drops = [before - after for before, after in pairwise(values)]
    assert 0 <= min(drops) and max(drops) < 0.03


def test_a_run_of_a_few_steps_has_all_phases() -> None:
    """The tiny recipes."""
    phases = TrainingPhases()
    names = [phases.phase_name(step, 6) for step in range(6)]
    assert names == ["packing"] * 2 + ["residualization"] * 2 + ["calibration"] * 2
    factor = phases.learning_rate_factor()
    assert factor(0, 6) == 1.0 and factor(5, 6) == pytest.approx(0.3)


def test_ratios_and_weights_can_be_changed() -> None:
    phases = TrainingPhases(
        (
            replace(PACKING, ratio=0.5, weights={"masked_lm": 2.0}),
            replace(CALIBRATION, ratio=0.5, weights={"delta_residual": 0.1}),
        )
    )
    weights = phases.weights()
    assert list(weights) == ["masked_lm", "delta_residual"]
    assert [weights["masked_lm"](step, 10) for step in (4, 5)] == [2.0, 0.0]
    assert [weights["delta_residual"](step, 10) for step in (4, 5)] == [0.0, 0.1]
    assert phases == TrainingPhases(phases.phases)


def test_arguments_are_checked() -> None:
    with pytest.raises(ValueError, match="phase ratios"):
        TrainingPhases((PACKING, RESIDUALIZATION))
    with pytest.raises(ValueError, match="phase ratios"):
        TrainingPhases(())
    with pytest.raises(ValueError, match="each may occur once"):
        TrainingPhases((replace(PACKING, ratio=0.5), replace(PACKING, ratio=0.5)))
    for ramp in (0.0, 0.33):
        with pytest.raises(ValueError, match=f"lr_ramp_ratio is {ramp}"):
            TrainingPhases(lr_ramp_ratio=ramp)
    with pytest.raises(ValueError, match=r"survival_alpha is 1\.5"):
        TrainingPhase("p", 1.0, survival_alpha=1.5)
    with pytest.raises(ValueError, match=r"learning_rate_factor is 0\.0"):
        TrainingPhase("p", 1.0, learning_rate_factor=0.0)
    with pytest.raises(ValueError, match=r"weights \{'masked_lm': -1\.0\}"):
        TrainingPhase("p", 1.0, weights={"masked_lm": -1.0})
    with pytest.raises(ValueError, match="budget_mode is 'all'"):
        TrainingPhase("p", 1.0, budget_mode="all")  # type: ignore[arg-type]
