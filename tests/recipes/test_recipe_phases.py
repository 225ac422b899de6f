"""What ``training`` and ``loss`` keys make of the phases of the original."""

from pathlib import Path

import pytest
import torch
from nestling.recipes.delta_encoder.budget_plan import planner_of
from nestling.recipes.delta_encoder.build import scratch_config
from nestling.recipes.delta_encoder.loss_terms import loss_terms, phases_of
from nestling.recipes.recipe_schema import DeltaEncoderRecipe
from nestling.trainers.phased_sampling import DepthDropoutSampler, PhasedSampler
from nestling.trainers.training_phases import TrainingPhases
from tiny_plus import TOTAL, tiny_plus


def phases(recipe: DeltaEncoderRecipe) -> TrainingPhases:
    found = phases_of(recipe)
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("given", "alphas"),
    [
        ("null", (0.5, 0.3, 0.2)),
        ("0.5", (0.5, 0.3, 0.2)),
        ("0.25", (0.25, 0.15, 0.1)),
        ("1.0", (1.0, 0.6, 0.4)),
        ("0", (0.0, 0.0, 0.0)),
    ],
)
def test_depth_dropout_keeps_its_proportions(
    given: str, alphas: tuple[float, ...], tmp_path: Path
) -> None:
    """The key is alpha of the first phase; without it the original's values stand."""
    found = phases(tiny_plus(tmp_path, f"training.survival_alpha={given}"))
    assert [phase.survival_alpha for phase in found.phases] == pytest.approx(alphas)


def test_weights_keep_their_proportions(tmp_path: Path) -> None:
    """Each key scales the values of all three phases; a weight of 0 leaves the term out."""
    changes = ["loss.delta_weight=0.35", "loss.cscf_weight=0.3", "loss.mug_weight=0"]
    found = phases(tiny_plus(tmp_path, *changes))
    by_term = {
        name: [phase.weights.get(name) for phase in found.phases]
        for name in ("delta_residual", "cross_scale_features", "distillation", "monotone_upgrade")
    }
    assert by_term["delta_residual"] == pytest.approx([0.15, 0.35, 0.25])
    assert by_term["cross_scale_features"] == pytest.approx([0.0, 0.3, 0.6])
    assert by_term["distillation"] == pytest.approx([1.0, 1.0, 1.0])
    assert by_term["monotone_upgrade"] == [None, None, None]


def test_token_cosines_join_the_feature_alignment(tmp_path: Path, tiny_tokenizer: object) -> None:
    """By the weight of the key, which is 0 unless given; opposite tokens are 2 apart."""
    generator = torch.Generator().manual_seed(0)
    states, mask = torch.randn(2, 5, 8, generator=generator), torch.ones(2, 5)
    distances = {}
    for weight in ("0", "0.25"):
        recipe = tiny_plus(tmp_path, f"loss.cscf_cosine_weight={weight}", "model.vocab_size=96")
        config = scratch_config(recipe, tiny_tokenizer)  # type: ignore[arg-type]
        terms = {each.term.name: each.term for each in loss_terms(recipe, config)}
        found = terms["cross_scale_features"]([-states], [states], mask)
        distances[weight] = (found.total / found.count).item()
    assert tiny_plus(tmp_path).loss.cscf_cosine_weight == 0.0
    assert distances["0.25"] - distances["0"] == pytest.approx(0.25 * 2, abs=1e-5)


def test_the_samplers_draw_with_this_alpha(tmp_path: Path, tiny_tokenizer: object) -> None:
    """At the first step of each of the first two phases; none at 0."""
    recipe = tiny_plus(tmp_path, "training.survival_alpha=0.25", "model.vocab_size=96")
    config = scratch_config(recipe, tiny_tokenizer)  # type: ignore[arg-type]
    sampler = planner_of(recipe, config).sampler
    assert isinstance(sampler, PhasedSampler)
    for mode, step, alpha in (("oversample_smallest", 0, 0.25), ("sandwich", 4, 0.15)):
        drawn = sampler.samplers[mode]  # type: ignore[index]
        assert isinstance(drawn, DepthDropoutSampler) and drawn.floor == 2
        assert drawn.alpha(step, TOTAL) == pytest.approx(alpha)
