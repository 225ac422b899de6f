"""Norms that know their budget: nothing at first, exact in a slice, shared between depths."""

from typing import Any

import pytest
import torch
from delta_models import BUILT, fresh_model, lively_model, packed_rows, some_labels
from nestling.configuration import DeltaBudget
from nestling.modeling import DeltaEncoderForMaskedLM
from nestling.modeling.nested_layers import NestedLayerNorm, NormPass
from torch import nn

CONDITIONED: dict[str, Any] = {"conditioned_norms": True, "exit_affine": True}
BUDGETS = ("1.0:4:4", "0.5:2:2", "0.75:1:3", "1.0:4:4:20", "0.5:3:4:9", "0.25,1.0,0.6:2:3")


@pytest.mark.parametrize("norm_bias", [False, True])
def test_a_fresh_model_starts_as_if_there_were_none(norm_bias: bool) -> None:
    plain = fresh_model(norm_bias=norm_bias).eval()
    model = fresh_model(norm_bias=norm_bias, **CONDITIONED).eval()
    lost = model.load_state_dict(plain.state_dict(), strict=False)
    assert {name.split(".")[1] for name in lost.missing_keys} == {"conditioner", "exit_affine"}
    ids, documents = packed_rows()
    with torch.no_grad():
        for budget in BUDGETS:
            expected = plain(ids, documents, budget=budget).logits
            assert torch.equal(model(ids, documents, budget=budget).logits, expected), budget


@pytest.mark.parametrize("norm_bias", [False, True])
@pytest.mark.parametrize("kind", ["dense", *BUILT])
def test_a_slice_has_plain_norms_and_the_same_function(kind: str, norm_bias: bool) -> None:
    model = lively_model(delta_kind=kind, norm_bias=norm_bias, **CONDITIONED)
    ids, documents = packed_rows()
    for budget in BUDGETS:
        sliced = model.slice(budget)
        trunk = sliced.model
        assert (trunk.conditioner, trunk.exit_affine, trunk.deltas) == (None, None, None)
        with torch.no_grad():
            expected = model(ids, documents, budget=budget).logits
            assert torch.equal(sliced(ids, documents).logits, expected), budget


def test_every_norm_is_changed_by_its_own_part() -> None:
    """The order of the changes, one norm after the other, against norms changed by hand."""
    model = lively_model(conditioned_norms=True, norm_bias=True)
    trunk, budget = model.model, DeltaBudget.parse("0.5:3:4")
    changes = trunk.conditioner(budget, torch.device("cpu")).detach()
    names = [
        "embeddings.norm",
        *(f"layers.{index}.attention_norm" for index in (1, 2, 3)),
        *(f"layers.{index}.mlp_norm" for index in range(4)),
        "final_norm",
    ]
    assert changes.shape == (len(names), 2, 32)
    sliced = model.slice(budget).model
    for name, (gain, bias) in zip(names, changes, strict=True):
        stored, cut = trunk.get_submodule(name), sliced.get_submodule(name)
        torch.testing.assert_close(cut.weight, stored.weight * (1 + gain))
        torch.testing.assert_close(cut.bias, stored.bias + bias)


@pytest.mark.parametrize("bias", [False, True])
def test_a_changed_norm_is_a_plain_norm(bias: bool) -> None:
    norm = NestedLayerNorm(10, 1e-5, bias)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in norm.parameters():
            parameter.copy_(torch.randn(10, generator=generator))
    change = torch.randn(2 if bias else 1, 10, generator=generator)
    x = torch.randn(4, 6, generator=generator)
    expected = nn.functional.layer_norm(
        x,
        (6,),
        (norm.weight * (1 + change[0]))[:6],
        (norm.bias + change[1])[:6] if bias else None,
        1e-5,
    )
    torch.testing.assert_close(norm(x, NormPass(change)), expected)
    assert torch.equal(norm(x, NormPass(torch.zeros_like(change))), norm(x))
    chosen = torch.tensor([True, False, False, True])
    mixed = norm(x, NormPass(change, chosen, torch.zeros_like(change)))
    assert torch.equal(mixed, torch.where(chosen[:, None], norm(x, NormPass(change)), norm(x)))


def test_the_change_depends_on_width_heads_and_hidden_but_not_on_depth() -> None:
    conditioner = lively_model(conditioned_norms=True).model.conditioner

    def change(text: str) -> torch.Tensor:
        with torch.no_grad():
            return conditioner(DeltaBudget.parse(text), torch.device("cpu"))

    base = change("0.5:2:2")
    assert torch.equal(change("0.5:2:4"), base)
    for other in ("0.75:2:2", "0.5:3:2", "0.5:2:2:16", "0.5,0.7:2:2"):
        assert (change(other) - base).abs().max() > 1e-3, other
    assert torch.equal(change("1.0:4:4:32"), change("1.0:4:4"))


@pytest.mark.parametrize(
    "sizes", [48, [40, 17, 33, 8]], ids=["even layers", "uneven layers, where channels round"]
)
def test_exits_of_one_pass_are_the_budgets_themselves(sizes: Any) -> None:
    """Budgets that differ in depth share a pass; each must still be what runs on its own."""
    model = lively_model(
        intermediate_size=sizes, base_intermediate_size=None, delta_kind="dictionary", **CONDITIONED
    )
    ids, documents = packed_rows()
    texts = ("0.5:3:4", "0.5:3:1", "1.0:4:3", "0.5:3:2", "1.0:4:4", "0.5:3:2:20")
    budgets = tuple(map(DeltaBudget.parse, texts))
    labels = some_labels(ids, documents)
    passes = _count_first_layer(model)
    with torch.no_grad():
        found = model(ids, documents, labels=labels, budgets=budgets).budget_logits
        assert len(passes) == 3
        for budget, logits in zip(budgets, found, strict=True):
            alone = model(ids, documents, labels=labels, budget=budget).logits
            assert torch.equal(logits, alone), budget
            cut = model.slice(budget)(ids, documents, labels=labels).logits
            assert torch.equal(logits, cut), budget


def _count_first_layer(model: DeltaEncoderForMaskedLM) -> list[int]:
    calls: list[int] = []
    model.model.layers[0].register_forward_pre_hook(lambda *_: calls.append(1))
    return calls


def test_each_depth_trains_its_own_exit() -> None:
    model = lively_model(exit_affine=True)
    ids, documents = packed_rows()
    model(ids, documents, labels=some_labels(ids, documents), budget="0.5:2:3").loss.backward()
    touched = model.model.exit_affine.change.grad.abs().amax(dim=(1, 2)) > 0
    assert touched.tolist() == [False, False, True, False]


def test_hidden_budgets_train_only_their_channels() -> None:
    model = lively_model(norm_bias=True, **CONDITIONED)
    ids, documents = packed_rows()
    labels = some_labels(ids, documents)
    model(ids, documents, labels=labels, budget="1.0:4:4:20").loss.backward()
    trunk = model.model
    reached = trunk.conditioner.changes.bias.grad.view(trunk.conditioner.shape).abs() > 0
    assert reached[..., :20].all() and not reached[..., 20:].any()
    assert not trunk.exit_affine.change.grad[..., 20:].any()
