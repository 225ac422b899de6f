"""From the ``loss`` keys to weighted loss terms, constant or by phase."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from ...configuration.delta_budget import DeltaBudget
from ...trainers.loss_term import LossTerm, WeightedTerm
from ...trainers.losses.budget_penalty import BudgetPenalty
from ...trainers.losses.cross_scale_features import CrossScaleFeatureLoss
from ...trainers.losses.delta_residual import DeltaResidualLoss
from ...trainers.losses.dictionary_regularizers import AtomOrthogonality, CoefficientSparsity
from ...trainers.losses.distillation import DistillationLoss
from ...trainers.losses.masked_lm import MaskedLmLoss
from ...trainers.losses.monotone_upgrade import MonotoneUpgradeLoss
from ...trainers.losses.packing_regularizer import PackingRegularizer
from ...trainers.losses.preview_benefit import PreviewBenefitLoss
from ...trainers.schedules import Constant, Schedule
from ...trainers.training_phases import (
    CALIBRATION,
    PACKING,
    RESIDUALIZATION,
    WEIGHTS_WITHOUT_PHASES,
    TrainingPhases,
)
from ..recipe_schema import DeltaEncoderRecipe

# Share of the tokens that the original gives the delta.
DEFAULT_TOKEN_RATIO = 0.35
LONGEST_RAMP = 0.05
# Scores are nats of benefit and lie within tenths of each other: at a temperature of 1 each token
# would count as half a token, wherever the threshold is, and the penalty would only push down.
PENALTY_TEMPERATURE = 0.1

# Term -> the key of its weight.
WEIGHT_KEYS = {
    "masked_lm": "masked_lm_weight",
    "distillation": "kd_weight",
    "delta_residual": "delta_weight",
    "monotone_upgrade": "mug_weight",
    "cross_scale_features": "cscf_weight",
    "preview_benefit": "preview_weight",
    "budget_penalty": "budget_penalty_weight",
    "coefficient_sparsity": "sparsity_weight",
    "atom_orthogonality": "orthogonality_weight",
    "packing_regularizer": "packing_weight",
}


def loss_terms(recipe: DeltaEncoderRecipe, config: Any) -> list[WeightedTerm]:
    """Return the terms whose weight is not 0.

    Args:
        recipe: a validated recipe.
        config: configuration of the nested model.
    """
    loss = recipe.loss
    build: dict[str, Callable[[], LossTerm]] = {
        "masked_lm": MaskedLmLoss,
        "distillation": lambda: DistillationLoss(loss.kd_temperature),
        "delta_residual": DeltaResidualLoss,
        "monotone_upgrade": lambda: MonotoneUpgradeLoss(loss.mug_margin),
        "cross_scale_features": lambda: CrossScaleFeatureLoss(loss.cscf_cosine_weight),
        "preview_benefit": PreviewBenefitLoss,
        "budget_penalty": lambda: BudgetPenalty(token_ratio_of(recipe), PENALTY_TEMPERATURE),
        "coefficient_sparsity": CoefficientSparsity,
        "atom_orthogonality": AtomOrthogonality,
        "packing_regularizer": lambda: PackingRegularizer(delta_rows(config), seed=recipe.seed),
    }
    schedules = weight_schedules(recipe)
    return [WeightedTerm(build[name](), weight) for name, weight in schedules.items()]


def weight_schedules(recipe: DeltaEncoderRecipe) -> dict[str, Schedule]:
    """Return the weight of every term that the recipe asks for."""
    phases = phases_of(recipe)
    if phases is None:
        return {name: Constant(weight) for name, weight in given_weights(recipe).items()}
    return phases.weights()


def given_weights(recipe: DeltaEncoderRecipe) -> dict[str, float]:
    """Return the weights of the recipe that are not 0, by term."""
    values = {name: float(getattr(recipe.loss, key)) for name, key in WEIGHT_KEYS.items()}
    return {name: value for name, value in values.items() if value}


def phases_of(recipe: DeltaEncoderRecipe) -> TrainingPhases | None:
    """Return the three phases of the recipe, or None.

    A phase has the original's weights, each in the proportion in which the recipe's weight stands
    to the original's weight without phases; likewise alpha of the depth dropout.
    """
    training = recipe.training
    if not training.three_phase:
        return None
    alpha = training.survival_alpha
    deeper = 1.0 if alpha is None else alpha / PACKING.survival_alpha
    factors = {
        name: value / WEIGHTS_WITHOUT_PHASES[name] for name, value in given_weights(recipe).items()
    }
    originals = (PACKING, RESIDUALIZATION, CALIBRATION)
    return TrainingPhases(
        tuple(
            replace(
                phase,
                ratio=ratio,
                survival_alpha=phase.survival_alpha * deeper,
                weights={
                    name: phase.weights.get(name, 0.0) * factor for name, factor in factors.items()
                },
            )
            for phase, ratio in zip(originals, training.phase_ratios, strict=True)
        ),
        lr_ramp_ratio=min(LONGEST_RAMP, min(training.phase_ratios) / 2),
    )


def token_ratio_of(recipe: DeltaEncoderRecipe) -> float:
    """Return the share of the tokens that get the delta in a routed pass."""
    return recipe.model.delta_token_ratio or DEFAULT_TOKEN_RATIO


def delta_rows(config: Any) -> list[tuple[int, int]]:
    """Return the MLP channels of base slice and delta of every layer that has a delta."""
    whole = DeltaBudget.full(config)
    base = whole.base_shape(config).intermediate
    pairs = zip(base, whole.shape(config).intermediate, strict=True)
    return [(inner, full - inner) for inner, full in pairs if full > inner]
