"""Which weights the weight terms look at, layer by layer and dictionary by dictionary."""

from typing import Any

import pytest
import torch
from nestling.configuration import DeltaEncoderConfig
from nestling.modeling import DeltaEncoderForMaskedLM
from nestling.modeling.families import FAMILIES
from nestling.trainers.delta_weights import WEIGHT_TERMS, base_and_delta, weight_losses
from nestling.trainers.loss_term import LossSum, WeightedTerm
from nestling.trainers.losses.dictionary_regularizers import AtomOrthogonality, CoefficientSparsity
from nestling.trainers.losses.packing_regularizer import PackingRegularizer
from nestling.trainers.schedules import Constant
from torch import Tensor

# The base slice fills the second layer; base and delta differ in size in all others.
CHANNELS, BASE = [48, 40, 30, 48], [20, 40, 10, 1]
BUILT = {"delta_kind": "dictionary", "delta_atoms": 3, "delta_rank": 4}


def divided(**settings: Any) -> DeltaEncoderForMaskedLM:
    """A tiny model with a base slice, every number moved away from its start."""
    sizes = {
        **FAMILIES["delta_encoder"].tiny,
        "intermediate_size": CHANNELS,
        "base_intermediate_size": BASE,
        "base_attention_heads": 2,
    }
    torch.manual_seed(0)
    model = DeltaEncoderForMaskedLM(DeltaEncoderConfig(**{**sizes, **settings}))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return model


def tail(block: Any, layer: int) -> Tensor:
    """The block of a layer, one atom after the other."""
    atoms = zip(block.coefficients[layer], block.atoms_out, block.atoms_in, strict=True)
    return torch.stack([number * (out @ inner) for number, out, inner in atoms]).sum(0)


@pytest.mark.parametrize("settings", [{}, BUILT], ids=["dense", "dictionary"])
def test_pairs_are_the_base_and_then_the_delta_of_each_layer_that_has_one(
    settings: dict[str, Any],
) -> None:
    model = divided(**settings)
    pairs = base_and_delta(model.model)
    assert [(len(base), len(delta)) for base, delta in pairs] == [(20, 28), (10, 20), (1, 47)]
    for layer, (base, delta) in zip((0, 2, 3), pairs, strict=True):
        weight = model.model.layers[layer].mlp.up.weight
        torch.testing.assert_close(base, weight[: BASE[layer]])
        if settings:
            block = model.model.deltas.blocks["up"]
            torch.testing.assert_close(delta, tail(block, layer)[: len(delta)])
        else:
            torch.testing.assert_close(delta, weight[BASE[layer] :])


def test_a_model_without_a_base_slice_has_no_pairs(
    tiny_delta_encoder: DeltaEncoderForMaskedLM,
) -> None:
    with pytest.raises(ValueError, match="set base_intermediate_size and base_attention_heads"):
        base_and_delta(tiny_delta_encoder.model)


def losses_of(model: DeltaEncoderForMaskedLM, weights: dict[str, float]) -> dict[str, LossSum]:
    """All three terms, weighted so."""
    packing = PackingRegularizer([(20, 28), (10, 20), (1, 47)])
    terms = (CoefficientSparsity(), AtomOrthogonality(), packing)
    named = {term.name: WeightedTerm(term, Constant(1.0)) for term in terms}
    return weight_losses(named, weights, model)


def test_sparsity_is_a_sum_over_the_dictionaries_and_orthogonality_a_mean() -> None:
    model = divided(**BUILT)
    losses = losses_of(model, dict.fromkeys(WEIGHT_TERMS, 1.0))
    blocks = list(model.model.deltas.blocks.values())
    assert len(blocks) == 5 and set(losses) == set(WEIGHT_TERMS)
    assert all(loss.count == 1 for loss in losses.values())
    pulled = sum(block.coefficients.abs().sum() for block in blocks)
    torch.testing.assert_close(losses["coefficient_sparsity"].total, pulled)
    each = [AtomOrthogonality()(block.atoms_in, block.atoms_out).total for block in blocks]
    torch.testing.assert_close(losses["atom_orthogonality"].total, sum(each) / 5)


def test_terms_of_weight_zero_are_left_out_and_dictionary_terms_need_a_dictionary() -> None:
    assert losses_of(divided(), {"coefficient_sparsity": 0.0}) == {}
    assert set(losses_of(divided(), {"packing_regularizer": 1.0})) == {"packing_regularizer"}
    with pytest.raises(ValueError, match="needs delta_kind dictionary, the model has dense"):
        losses_of(divided(), {"atom_orthogonality": 1.0})
