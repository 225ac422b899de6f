"""Routed passes against a slow reference that computes everything for all tokens, then selects."""

from typing import Any

import pytest
import torch
from delta_models import BUILT, fresh_model, lively_model, packed_rows, some_labels
from nestling.configuration import DeltaBudget
from nestling.modeling import DeltaEncoderForMaskedLM
from nestling.modeling.token_routing import choose_by_threshold
from reference_token_routing import reference_gates, reference_row, some_tokens

ROUTED: dict[str, Any] = {"token_routing": True}
BASE = "0.5:2:4"


@pytest.mark.parametrize("ratio", [0.0, 0.35, 0.8])
@pytest.mark.parametrize("is_training", [False, True])
def test_a_routed_pass_equals_the_reference_with_its_gradients(
    ratio: float, is_training: bool
) -> None:
    """Scores, choice, gates and the gradient of every parameter, the preview network included."""
    model = lively_model(**ROUTED, delta_token_ratio=ratio).model.train(is_training)
    ids, documents = packed_rows()
    budget = DeltaBudget.full(model.config)
    weight = torch.randn(3, 12, 32, generator=torch.Generator().manual_seed(9))
    weight = weight * (documents > 0)[..., None]
    states = model(ids, documents).last_hidden_state
    rows = [
        reference_row(
            model,
            budget,
            ids[row],
            documents[row].tolist(),
            reference_gates(model, documents[row].tolist(), ratio, is_training),
        )
        for row in range(3)
    ]
    expected = torch.stack(rows)
    real = documents > 0
    torch.testing.assert_close(states[real], expected[real], atol=2e-5, rtol=2e-5)
    tensors = dict(model.named_parameters())
    options = {"allow_unused": True, "materialize_grads": True}
    ours, theirs = (
        torch.autograd.grad((weight * output).sum(), list(tensors.values()), **options)
        for output in (states, expected)
    )
    for name, actual, wanted in zip(tensors, ours, theirs, strict=True):
        torch.testing.assert_close(
            actual, wanted, atol=1e-4, rtol=1e-3, msg=lambda text, name=name: f"{name}: {text}"
        )
        if name.startswith("preview."):
            assert bool(actual.any()) == (is_training and ratio > 0), name


def test_the_choice_of_a_budget_without_a_delta_is_ignored() -> None:
    """Nothing is left to choose, and the preview network does not run."""
    model = lively_model(**ROUTED, delta_token_ratio=0.5)
    ids, documents = packed_rows()
    asked: list[int] = []
    model.model.preview.register_forward_pre_hook(lambda *_: asked.append(1))
    with torch.no_grad():
        # The second has a delta before the layer at which the preview network would choose.
        for text, first in (("0.5:2:4", 0), ("1.0:4:1", 1)):
            routed = model(
                ids, documents, budget=text, delta_tokens=some_tokens(), delta_first_layer=first
            ).logits
            asked_for = model(ids, documents, budget=text).logits
            model.config.delta_token_ratio = None
            assert torch.equal(routed, model(ids, documents, budget=text).logits)
            assert torch.equal(routed, asked_for)
            model.config.delta_token_ratio = 0.5
    assert asked == []


def test_a_threshold_between_the_scores_equals_the_share() -> None:
    model = lively_model(**ROUTED, delta_token_ratio=0.5)
    ids, documents = packed_rows()
    row, numbers = ids[:1], documents[:1]
    with torch.no_grad():
        found = model.model.exits(
            (DeltaBudget.full(model.config),), row, numbers, routed=(_full(model), 0.5)
        )[-2]
        ranked = found.scores[0].sort(descending=True).values
        expected = model(row, numbers).logits
        model.config.delta_token_ratio = None
        whole = model(row, numbers).logits
        model.config.delta_token_threshold = float(ranked[5] + ranked[6]) / 2
        torch.testing.assert_close(model(row, numbers).logits, expected, atol=1e-5, rtol=1e-5)
        assert (expected - whole).abs().max() > 1e-2
        model.config.delta_token_threshold = float(ranked[-1]) - 1.0
        torch.testing.assert_close(model(row, numbers).logits, whole, atol=1e-5, rtol=1e-5)
        # A token is chosen by its own score: other rows, and pads, do not matter.
        model.config.delta_token_threshold = float(ranked[3])
        assert choose_by_threshold(found.scores, numbers > 0, float(ranked[3])).sum() == 3
        together = model(ids, documents).logits[:1]
        torch.testing.assert_close(together, model(row, numbers).logits, atol=1e-5, rtol=1e-5)


def _full(model: DeltaEncoderForMaskedLM) -> DeltaBudget:
    return DeltaBudget.full(model.config)


def test_documents_of_a_row_stay_apart() -> None:
    """With a threshold, a packed row computes what its documents compute alone."""
    model = lively_model(**ROUTED, delta_token_threshold=0.0)
    ids, documents = packed_rows()
    with torch.no_grad():
        packed = model(ids, documents).logits[2]
        for start, stop in ((0, 5), (5, 9)):
            alone = model(ids[2:3, start:stop]).logits[0]
            torch.testing.assert_close(packed[start:stop], alone, atol=1e-5, rtol=1e-5)


def test_pads_change_nothing() -> None:
    model = lively_model(**ROUTED, delta_token_ratio=0.4)
    ids, documents = packed_rows()
    with torch.no_grad():
        expected = model(ids[1:2, :8]).logits[0]
        padded = model(ids, documents).logits[1, :8]
        torch.testing.assert_close(padded, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("is_conditioned", [False, True])
@pytest.mark.parametrize("kind", ["dense", *BUILT])
def test_a_slice_routes_as_its_budget_does(kind: str, is_conditioned: bool) -> None:
    settings = {"conditioned_norms": is_conditioned, "exit_affine": is_conditioned}
    model = lively_model(**ROUTED, delta_kind=kind, **settings)
    ids, documents = packed_rows()
    real = documents > 0
    for change in ({"delta_token_ratio": 0.35}, {"delta_token_threshold": 0.1}, {}):
        for name in ("delta_token_ratio", "delta_token_threshold"):
            setattr(model.config, name, change.get(name))
        for text in ("1.0:4:4", "0.75:2:3", "0.5:3:3:20", "0.5:2:4", "0.25:1:2", "1.0:4:1"):
            sliced = model.slice(text)
            budget = DeltaBudget.parse(text)
            assert sliced.config.token_routing == budget.has_routed_delta(model.config)
            with torch.no_grad():
                expected = model(ids, documents, budget=text).logits[real]
                assert torch.equal(sliced(ids, documents).logits[real], expected), text


def test_a_routed_pass_for_training() -> None:
    """Says what it chose; the same without a delta follows; budgets run on all tokens."""
    model = lively_model(**ROUTED, delta_token_ratio=0.2).train()
    ids, documents = packed_rows()
    labels = some_labels(ids, documents)
    budgets = (_full(model), DeltaBudget.parse("0.5:2:3"))
    output = model(ids, documents, labels=labels, budgets=budgets, routed=(_full(model), 0.35))
    assert len(output.budget_logits) == 4
    assert output.chosen.sum(dim=1).tolist() == [5, 3, 4]  # of 12, 8 and 9 real tokens
    assert output.scores.shape == ids.shape
    plain = lively_model(**ROUTED).train()
    torch.testing.assert_close(output.budget_logits[0], plain(ids, documents, labels=labels).logits)
    plain.config.delta_token_ratio = 0.35
    torch.testing.assert_close(output.budget_logits[2], plain(ids, documents, labels=labels).logits)
    nowhere = torch.zeros_like(ids, dtype=torch.bool)
    none = plain(ids, documents, labels=labels, delta_tokens=nowhere, delta_first_layer=1).logits
    torch.testing.assert_close(output.budget_logits[3], none)
    only = model(ids, documents, labels=labels, budgets=budgets)
    assert (only.scores, only.chosen) == (None, None)


def test_the_preview_does_not_bend_what_it_reads() -> None:
    model = lively_model(**ROUTED).train()
    ids, documents = packed_rows()
    labels = some_labels(ids, documents)
    output = model(
        ids, documents, labels=labels, budgets=(_full(model),), routed=(_full(model), 0.35)
    )
    output.scores.sum().backward()
    moved = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    assert moved == {name for name, _ in model.named_parameters() if ".preview." in name}


def test_routing_that_cannot_be_is_refused() -> None:
    model = lively_model(**ROUTED)
    ids, documents = packed_rows()
    with pytest.raises(ValueError, match=r"delta_tokens have shape \(3, 11\), the input \(3, 12\)"):
        model(ids, documents, delta_tokens=torch.ones(3, 11, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"delta_first_layer 4 must be in 0\.\.3"):
        model(ids, documents, delta_tokens=some_tokens(), delta_first_layer=4)
    labels = some_labels(ids, documents)
    for text in ("0.5:2:4", "1.0:4:1"):
        small = DeltaBudget.parse(text)
        with pytest.raises(ValueError, match=f"budget {text} has no delta to route"):
            model(ids, documents, labels=labels, budgets=(_full(model),), routed=(small, 0.5))
    plain = lively_model()
    with pytest.raises(ValueError, match="delta_tokens needs a base slice; set token_routing=True"):
        plain(ids, documents, delta_tokens=some_tokens())
    with pytest.raises(ValueError, match="has no delta to route"):
        plain(ids, documents, labels=labels, budgets=(_full(plain),), routed=(_full(plain), 0.5))


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("delta_token_ratio", -0.5, r"delta_token_ratio -0.5 must be in \[0, 1\], or None"),
        ("delta_token_ratio", 1.5, r"delta_token_ratio 1.5 must be in \[0, 1\], or None"),
        ("delta_token_ratio", float("nan"), r"delta_token_ratio nan must be in \[0, 1\]"),
        ("delta_token_ratio", "0.5", r"delta_token_ratio '0.5' must be in \[0, 1\]"),
        ("delta_token_threshold", float("nan"), "delta_token_threshold nan must be a number"),
        ("delta_token_threshold", "0.5", "delta_token_threshold '0.5' must be a number"),
        ("routing_layer", 4, r"routing_layer 4 must be in 0..3"),
    ],
)
def test_settings_changed_later_are_checked_in_the_next_pass(
    name: str, value: object, message: str
) -> None:
    model = lively_model(**ROUTED)
    ids, documents = packed_rows()
    setattr(model.config, name, value)
    for budget in (None, "0.5:2:4"):
        with pytest.raises(ValueError, match=message):
            model(ids, documents, budget=budget)
    setattr(model.config, name, 1 if name == "routing_layer" else None)
    model(ids, documents)
    plain = lively_model()
    plain.config.delta_token_ratio = 0.5
    with pytest.raises(ValueError, match="need token_routing=True"):
        plain(ids, documents)


@pytest.mark.parametrize("implementation", ["flash_attention_2", "flex_attention"])
def test_attention_that_cannot_gather_queries_is_refused(implementation: str) -> None:
    model = lively_model(**ROUTED)
    ids, documents = packed_rows()
    model.config._attn_implementation = implementation
    with pytest.raises(ValueError, match=f"needs attention eager or sdpa, not {implementation}"):
        model(ids, documents, delta_tokens=some_tokens())


def test_checkpointed_layers_route_alike() -> None:
    """The recomputation gets the choice; it does not choose again."""
    ids, documents = packed_rows()
    gradients = []
    for is_checkpointed in (False, True):
        model = fresh_model(**ROUTED, delta_token_ratio=0.5).train()
        if is_checkpointed:
            model.gradient_checkpointing_enable()
        model(ids, documents, labels=some_labels(ids, documents)).loss.backward()
        gradients.append({n: p.grad for n, p in model.named_parameters()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, msg=name)
