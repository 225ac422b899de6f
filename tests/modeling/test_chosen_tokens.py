"""Tokens of the delta chosen by hand: none is the base slice, all the whole budget."""

from typing import Any

import pytest
import torch
from delta_models import BUILT, lively_model, packed_rows
from nestling.configuration import DeltaBudget
from reference_token_routing import UNEVEN, reference_norms, reference_row, some_tokens
from torch import Tensor

ROUTED: dict[str, Any] = {"token_routing": True}


def reference_rows(model: Any, budget: DeltaBudget, first: int) -> Tensor:
    """States (3, 12, n) of the packed rows with the delta on `some_tokens` from a layer on."""
    ids, documents = packed_rows()
    rows = []
    for row, gates in enumerate((some_tokens() & (documents > 0)).float()):
        numbers = documents[row].tolist()
        rows.append(
            reference_row(model, budget, ids[row], numbers, lambda _, gates=gates: gates, first)
        )
    return torch.stack(rows)


@pytest.mark.parametrize("attention_name", ["eager", "sdpa"])
@pytest.mark.parametrize("first", [0, 1, 3])
@pytest.mark.parametrize("text", ["1.0:4:4", "0.75:3:4:20", "1.0:2:4", "0.5:4:4", "0.3,1.0:3:2"])
def test_a_fixed_choice_equals_the_reference(text: str, first: int, attention_name: str) -> None:
    """From its first layer on, whatever layer the preview network would choose at."""
    model = lively_model(**ROUTED, **UNEVEN, routing_layer=2).model
    model.set_attn_implementation(attention_name)
    ids, documents = packed_rows()
    chosen, budget = some_tokens(), DeltaBudget.parse(text)
    real = documents > 0
    with torch.no_grad():
        options = {"budget": budget, "delta_first_layer": first}
        found = model(ids, documents, delta_tokens=chosen, **options).last_hidden_state
        without_pads = model(ids, documents, delta_tokens=chosen & real, **options)
        assert torch.equal(found, without_pads.last_hidden_state), "a pad was chosen"
        expected = reference_rows(model, budget, first)
    torch.testing.assert_close(found[real], expected[real], atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("routing_layer", [0, 1, 3])
@pytest.mark.parametrize("is_conditioned", [False, True])
@pytest.mark.parametrize("kind", ["dense", *BUILT])
def test_no_token_is_the_base_slice_and_every_token_is_the_whole_budget(
    kind: str, is_conditioned: bool, routing_layer: int
) -> None:
    settings = {"conditioned_norms": is_conditioned, "exit_affine": is_conditioned}
    model = lively_model(delta_kind=kind, routing_layer=routing_layer, **ROUTED, **settings)
    ids, documents = packed_rows()
    every = torch.ones_like(ids, dtype=torch.bool)
    real = documents > 0
    with torch.no_grad():
        pairs = [("1.0:4:4", "0.5:2:4"), ("0.75:3:2:20", "0.5:2:2:20"), ("1.0:1:1", "0.5:1:1")]
        for text, base in pairs:
            none = model(ids, documents, budget=text, delta_tokens=~every).logits
            assert torch.equal(none, model(ids, documents, budget=base).logits)
            whole = model(ids, documents, budget=text).logits
            every_one = model(ids, documents, budget=text, delta_tokens=every).logits
            torch.testing.assert_close(every_one[real], whole[real], atol=1e-5, rtol=1e-5)
            assert (none - whole)[real].abs().max() > 1e-2


@pytest.mark.parametrize("first", [0, 2])
@pytest.mark.parametrize("has_exit_affine", [False, True])
def test_each_token_is_normalised_as_the_budget_it_computes(
    has_exit_affine: bool, first: int
) -> None:
    settings = {"conditioned_norms": True, "exit_affine": has_exit_affine}
    model = lively_model(**ROUTED, **settings).model
    ids, documents = packed_rows()
    real = documents > 0
    tensors = dict(model.named_parameters())
    options = {"allow_unused": True, "materialize_grads": True}
    for text in ("1.0:4:4", "0.75:3:3:20"):
        budget = DeltaBudget.parse(text)
        found = model(
            ids, documents, budget=budget, delta_tokens=some_tokens(), delta_first_layer=first
        ).last_hidden_state
        expected = reference_rows(model, budget, first)
        torch.testing.assert_close(found[real], expected[real], atol=2e-5, rtol=2e-5)
        weight = torch.randn(found[real].shape, generator=torch.Generator().manual_seed(9))
        ours, theirs = (
            torch.autograd.grad((weight * states[real]).sum(), list(tensors.values()), **options)
            for states in (found, expected)
        )
        for name, actual, wanted in zip(tensors, ours, theirs, strict=True):
            torch.testing.assert_close(
                actual, wanted, atol=1e-4, rtol=1e-3, msg=lambda m, name=name: f"{name}: {m}"
            )
            assert actual.any() or not name.startswith("conditioner."), name
        whole, base = reference_norms(model, budget)["layers.1.mlp_norm"]
        assert (whole - base).abs().max() > 1e-3


def test_a_slice_keeps_both_norms_of_each_place_and_is_cut_again() -> None:
    """The base slice of a routed slice is that of the model, and so is a slice of the slice."""
    model = lively_model(**ROUTED, conditioned_norms=True, exit_affine=True, norm_bias=True)
    ids, documents = packed_rows()
    chosen = some_tokens()
    sliced = model.slice("1.0:3:3")
    assert not sliced.config.conditioned_norms and sliced.config.norm_table
    assert sliced.model.conditioner.table.shape == (2, 7, 2, 32)
    with torch.no_grad():
        for options in ({"delta_tokens": chosen}, {"delta_tokens": chosen & False}, {}):
            expected = model(ids, documents, budget="1.0:3:3", **options).logits
            assert torch.equal(sliced(ids, documents, **options).logits, expected)
        base = model(ids, documents, budget="0.5:2:3").logits
        assert torch.equal(sliced(ids, documents, budget="0.5:2:3").logits, base)
        assert torch.equal(sliced.slice("0.5:2:3")(ids, documents).logits, base)
        again = sliced.slice("1.0:3:3")
        assert again.config.norm_table
        expected = model(ids, documents, budget="1.0:3:3", delta_tokens=chosen).logits
        assert torch.equal(again(ids, documents, delta_tokens=chosen).logits, expected)
    plain = sliced.slice("0.5:2:3")
    assert plain.model.conditioner is None and not plain.config.norm_table
