"""A trained delta in another form: exact where it can be, the best fit where it cannot."""

from typing import Any

import pytest
import torch
from delta_models import BUILT, KINDS, fresh_model, lively_model, packed_rows, some_labels
from nestling.configuration import DeltaBudget
from nestling.modeling import DeltaEncoderForSequenceClassification, convert_delta
from nestling.modeling.delta_blocks import DictionaryBlock, LowRankBlock
from nestling.modeling.delta_conversion import fit_block
from torch import Tensor

SMALL_BUDGET = DeltaBudget.parse("0.5:2:2")
# Of the tiny encoder: as many as any of its tails has rows or columns.
FULL_RANK = 96


def _logits(model: Any, budget: DeltaBudget | None = None) -> Tensor:
    ids, documents = packed_rows()
    with torch.no_grad():
        logits: Tensor = model(input_ids=ids, attention_mask=documents, budget=budget).logits
    return logits


def _wanted(layers: int = 3, rows: int = 7, columns: int = 5) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    return torch.randn(layers, rows, columns, generator=generator, dtype=torch.float64)


def _dictionary(atoms: int, rank: int, layers: int = 3) -> DictionaryBlock:
    torch.manual_seed(1)
    block = DictionaryBlock(layers, 7, 5, atoms, rank, starts_at_zero=False).double()
    block.reset(0.02)
    return block.requires_grad_(False)


def _low_rank(rank: int) -> LowRankBlock:
    torch.manual_seed(1)
    block = LowRankBlock(3, 7, 5, rank, starts_at_zero=False).double()
    block.reset(0.02)
    return block.requires_grad_(False)


@pytest.mark.parametrize("source", BUILT)
def test_a_built_delta_is_stored_exactly(source: str) -> None:
    """At every budget, and with parts that are not plain weights."""
    model = lively_model(delta_kind=source, conditioned_norms=True, exit_affine=True)
    dense, lost = convert_delta(model, delta_kind="dense")
    assert dense.config.delta_kind == "dense" and dense.base_model.deltas is None
    assert lost == {}
    for budget in model.config.budget_list():
        torch.testing.assert_close(
            _logits(dense, budget), _logits(model, budget), rtol=1e-5, atol=1e-5
        )
    assert not dense.training


@pytest.mark.parametrize("source", KINDS)
@pytest.mark.parametrize("target", BUILT)
def test_enough_numbers_hold_every_delta(source: str, target: str) -> None:
    model = lively_model(delta_kind=source)
    atoms = model.config.num_hidden_layers
    converted, lost = convert_delta(
        model, delta_kind=target, delta_rank=FULL_RANK, delta_atoms=atoms
    )
    assert converted.config.delta_kind == target and max(lost.values()) < 1e-9
    torch.testing.assert_close(_logits(converted), _logits(model), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("target", BUILT)
def test_the_base_slice_stays_bit_for_bit(target: str) -> None:
    """And so does the model that was converted."""
    model = lively_model(exit_affine=True)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    converted, lost = convert_delta(model, delta_kind=target, delta_rank=2, delta_atoms=2)
    assert all(0.01 < share < 1 for share in lost.values())
    assert torch.equal(_logits(converted, SMALL_BUDGET), _logits(model, SMALL_BUDGET))
    assert not torch.equal(_logits(converted), _logits(model))
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_the_base_slice_may_be_given() -> None:
    """To a dense model that has none, and another one to a built delta."""
    plain = lively_model(base_attention_heads=None, base_intermediate_size=None)
    sizes = {"base_attention_heads": 1, "base_intermediate_size": 16}
    converted, _ = convert_delta(
        plain, delta_kind="low_rank", delta_rank=FULL_RANK, **sizes
    )
    torch.testing.assert_close(_logits(converted), _logits(plain), rtol=1e-4, atol=1e-4)
    again, _ = convert_delta(converted, base_attention_heads=3, base_intermediate_size=40)
    assert again.base_model.layers[0].mlp.up.weight.shape[0] == 40
    torch.testing.assert_close(_logits(again), _logits(plain), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", BUILT)
def test_layers_may_have_different_channels(kind: str) -> None:
    """What is lost counts the channels that a layer has, not those of the widest one."""
    sizes = {"intermediate_size": [48, 32, 40, 48], "base_intermediate_size": [24, 16, 24, 20]}
    model = lively_model(**sizes)
    converted, lost = convert_delta(model, delta_kind=kind, delta_rank=FULL_RANK, delta_atoms=4)
    assert max(lost.values()) < 1e-9
    torch.testing.assert_close(_logits(converted), _logits(model), rtol=1e-4, atol=1e-4)
    rough, lost = convert_delta(model, delta_kind=kind, delta_rank=3, delta_atoms=3)
    tails = rough.base_model.deltas(DeltaBudget.full(rough.config).shape(rough.config))
    error = norm = 0.0
    for layer, base in enumerate(sizes["base_intermediate_size"]):
        wanted = model.base_model.layers[layer].mlp.up.weight[base:]
        error += (tails[layer]["up"] - wanted).square().sum().item()
        norm += wanted.square().sum().item()
    assert lost["up"] == pytest.approx(error / norm, rel=1e-4)


def test_without_a_change_it_is_a_copy() -> None:
    model = lively_model(delta_kind="dictionary").train()
    copy, lost = convert_delta(model, base_intermediate_size=[24, 24, 24, 24])
    assert lost == {} and copy.training and copy is not model
    for name, value in model.state_dict().items():
        assert torch.equal(copy.state_dict()[name], value), name


def test_a_dictionary_finds_its_place_in_a_larger_one() -> None:
    """Exactly, where a fit from nothing would end in a local minimum; added parts can learn."""
    model = lively_model(delta_kind="dictionary")
    larger, lost = convert_delta(model, delta_rank=5, delta_atoms=4)
    assert max(lost.values()) < 1e-10
    torch.testing.assert_close(_logits(larger), _logits(model), rtol=1e-5, atol=1e-5)
    ids, documents = packed_rows()
    labels = some_labels(ids, documents)
    larger(input_ids=ids, attention_mask=documents, labels=labels).loss.backward()
    for block in larger.base_model.deltas.blocks.values():
        assert (block.coefficients.grad.abs().sum(0) > 0).all()
        assert (block.atoms_out.grad[:3].abs().sum(1) > 0).all()


def test_mode_budget_and_attention_stay() -> None:
    model = lively_model()
    model.set_attn_implementation("eager")
    model.set_budget(SMALL_BUDGET)
    converted, _ = convert_delta(model, delta_kind="low_rank", delta_rank=2)
    assert converted.active_budget == SMALL_BUDGET
    assert converted.config._attn_implementation == "eager"
    assert torch.equal(_logits(converted), _logits(model))


def test_a_fresh_delta_has_no_effect() -> None:
    """Of a form that is built already, too."""
    model = lively_model(delta_kind="low_rank", delta_rank=2)
    fresh, lost = convert_delta(model, fits=False)
    assert lost == {}
    whole_base = DeltaBudget.parse("0.5:2:4")
    torch.testing.assert_close(_logits(fresh), _logits(model, whole_base), rtol=1e-5, atol=1e-5)


def test_heads_on_top_and_dtype_stay() -> None:
    torch.manual_seed(0)
    config = fresh_model().config
    model = DeltaEncoderForSequenceClassification(config).to(torch.bfloat16).eval()
    converted, _ = convert_delta(model, delta_kind="low_rank", delta_rank=4)
    assert type(converted) is DeltaEncoderForSequenceClassification
    assert converted.dtype == torch.bfloat16
    ids, documents = packed_rows()
    asked = {"input_ids": ids, "attention_mask": documents, "budget": SMALL_BUDGET}
    assert torch.equal(converted(**asked).logits, model(**asked).logits)


def test_low_rank_is_the_nearest_of_its_rank() -> None:
    """The error is what the left-out singular values hold (Eckart and Young)."""
    wanted = _wanted()
    error = fit_block(_low_rank(2), wanted)
    values = torch.linalg.svdvals(wanted)
    torch.testing.assert_close(error.square().sum((1, 2)), values[:, 2:].square().sum(1))


def test_a_dictionary_is_found_again() -> None:
    """Matrices that two atoms of rank 1 built are held by two fitted atoms."""
    generator = torch.Generator().manual_seed(3)
    source = _dictionary(atoms=2, rank=1, layers=6)
    for parameter in source.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    wanted = source(6, 7, 5)
    error = fit_block(_dictionary(atoms=2, rank=1, layers=6), wanted)
    assert error.square().sum() < 1e-3 * wanted.square().sum()


def test_more_atoms_never_fit_worse() -> None:
    """And no atom is worse than none: each holds part of what was left."""
    wanted = _wanted(layers=4)
    shares = [
        float(fit_block(_dictionary(atoms, 2, layers=4), wanted).square().sum())
        for atoms in (1, 2, 3, 4, 6)
    ]
    assert shares == sorted(shares, reverse=True) and shares[0] < wanted.square().sum()


def test_what_holds_nothing_can_still_be_trained() -> None:
    """More ranks and atoms than there is to hold: one side stays random, and has a gradient."""
    wanted = torch.zeros(3, 7, 5, dtype=torch.float64)
    wanted[:, 0, 0] = torch.tensor([1.0, 2.0, 3.0])
    for block in (_low_rank(3), _dictionary(2, 2)):
        assert fit_block(block, wanted).abs().max() < 1e-9
        block.requires_grad_(True)
        (block(3, 7, 5) - _wanted()).square().sum().backward()
        if isinstance(block, LowRankBlock):
            assert (block.factor_out.grad.abs().sum((0, 1)) > 0).all()
        else:
            assert (block.coefficients.grad.abs().sum(0) > 0).all()
            # Of the one atom that holds something; the other one wakes up with its coefficients.
            [held] = block.coefficients.any(0).nonzero()
            assert (block.atoms_out.grad[held].abs().sum(1) > 0).all()


@pytest.mark.parametrize("target", BUILT)
def test_a_converted_model_learns(target: str) -> None:
    model = lively_model().train()
    converted, _ = convert_delta(model, delta_kind=target, delta_rank=2, delta_atoms=2)
    ids, documents = packed_rows()
    labels = some_labels(ids, documents)
    converted(input_ids=ids, attention_mask=documents, labels=labels).loss.backward()
    for name, parameter in converted.base_model.deltas.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


def test_the_result_does_not_depend_on_the_random_state() -> None:
    model = lively_model()
    found = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        found.append(convert_delta(model, delta_kind="dictionary", delta_rank=2, delta_atoms=9))
        assert torch.equal(torch.get_rng_state(), before)
    assert found[0].lost == found[1].lost
    first, second = (each.model.state_dict() for each in found)
    for name, value in first.items():
        assert torch.equal(second[name], value), name


def test_impossible_settings_are_refused() -> None:
    model = lively_model()
    with pytest.raises(ValueError, match="hidden_size is no setting of a delta; give delta_kind"):
        convert_delta(model, hidden_size=3)
    with pytest.raises(ValueError, match="delta_rank 0"):
        convert_delta(model, delta_kind="low_rank", delta_rank=0)
    model.base_model.layers[1].mlp.up.weight.data[0, 0] = torch.nan
    with pytest.raises(ValueError, match=r"mlp\.up of layer 1 has a value that is not finite"):
        convert_delta(model, delta_kind="low_rank", delta_rank=2)
