"""Heads: several budgets in one call, work on labelled positions only, losses and errors."""

from typing import Any

import pytest
import torch
from nestling.configuration import DeltaBudget, DeltaEncoderConfig
from nestling.modeling import (
    DeltaEncoderForMaskedLM,
    DeltaEncoderForSequenceClassification,
    DeltaEncoderForTokenClassification,
)
from nestling.modeling.families import FAMILIES
from torch import Tensor
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

TINY = FAMILIES["delta_encoder"].tiny
NESTED = tuple(
    DeltaBudget.parse(text)
    for text in ("1.0:4:4", "0.5:2:2", "1.0:4:2", "0.5:2:4", "0.5:2:3:16", "0.5:2:2:16", "0.5:2:2")
)


@pytest.fixture
def batch() -> dict[str, Tensor]:
    ids = torch.randint(8, 96, (3, 16), generator=torch.Generator().manual_seed(3))
    documents = torch.tensor([[1] * 16, [1] * 6 + [2] * 10, [1] * 12 + [0] * 4])
    labels = ids.masked_fill((torch.arange(16) % 4 != 1) | (documents == 0), -100)
    return {"input_ids": ids, "attention_mask": documents, "labels": labels}


def _without_labels(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: value for key, value in batch.items() if key != "labels"}


def _head(model_class: Any, **overrides: Any) -> Any:
    torch.manual_seed(0)
    return model_class(DeltaEncoderConfig(**{**TINY, **overrides})).eval()


def test_budgets_in_one_call_equal_single_calls(
    tiny_delta_encoder: DeltaEncoderForMaskedLM, batch: dict[str, Tensor]
) -> None:
    outputs = tiny_delta_encoder(**batch, budgets=NESTED)
    labelled = batch["labels"][batch["labels"] != -100]
    assert torch.equal(outputs.labels, labelled)
    assert len(outputs.budget_logits) == len(NESTED)
    for budget, logits in zip(NESTED, outputs.budget_logits, strict=True):
        single = tiny_delta_encoder(**batch, budget=budget)
        assert logits.shape == (len(labelled), TINY["vocab_size"])
        torch.testing.assert_close(logits, single.logits, atol=1e-6, rtol=1e-6)
        expected = F.cross_entropy(single.logits, labelled)
        torch.testing.assert_close(single.loss, expected)


def test_budgets_in_one_call_give_the_summed_gradient(
    tiny_delta_encoder: DeltaEncoderForMaskedLM, batch: dict[str, Tensor]
) -> None:
    parameters = list(tiny_delta_encoder.parameters())
    outputs = tiny_delta_encoder(**batch, budgets=NESTED[:4])
    together = sum(F.cross_entropy(x, outputs.labels) for x in outputs.budget_logits)
    one_by_one = sum(tiny_delta_encoder(**batch, budget=b).loss for b in NESTED[:4])
    for a, b in zip(
        torch.autograd.grad(together, parameters),
        torch.autograd.grad(one_by_one, parameters),
        strict=True,
    ):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-4)


def test_budgets_that_differ_in_depth_share_a_trunk_pass(
    tiny_delta_encoder: DeltaEncoderForMaskedLM, batch: dict[str, Tensor]
) -> None:
    calls: list[int] = []
    for index, layer in enumerate(tiny_delta_encoder.model.layers):
        layer.register_forward_hook(lambda *_, index=index: calls.append(index))
    tiny_delta_encoder(**batch, budgets=NESTED)
    # (1.0, 4 heads) to depth 4, (0.5, 2 heads) to depth 4, (0.5, 2 heads, 16 hidden) to depth 3
    assert sorted(calls) == sorted([0, 1, 2, 3] * 2 + [0, 1, 2])


def test_budgets_may_be_text(
    tiny_delta_encoder: DeltaEncoderForMaskedLM, batch: dict[str, Tensor]
) -> None:
    """As everywhere else a budget is taken."""
    as_text = tiny_delta_encoder(**batch, budgets=tuple(map(str, NESTED[:2]))).budget_logits
    as_budgets = tiny_delta_encoder(**batch, budgets=NESTED[:2]).budget_logits
    assert all(torch.equal(a, b) for a, b in zip(as_text, as_budgets, strict=True))


def test_budgets_ignore_the_active_budget(
    tiny_delta_encoder: DeltaEncoderForMaskedLM, batch: dict[str, Tensor]
) -> None:
    expected = tiny_delta_encoder(**batch, budgets=NESTED).budget_logits
    tiny_delta_encoder.set_budget("0.5:1:1")
    actual = tiny_delta_encoder(**batch, budgets=NESTED).budget_logits
    assert all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True))
    assert str(tiny_delta_encoder.active_budget) == "0.5:1:1"


@pytest.mark.parametrize("text", ["1.0:4:4", "0.5:2:3", "0.75:3:2:20"])
def test_the_head_runs_on_labelled_positions_only(batch: dict[str, Tensor], text: str) -> None:
    """The work counted by torch equals the formula for that many predicted tokens."""
    model = _head(DeltaEncoderForMaskedLM)
    model.set_attn_implementation("eager")
    budget = DeltaBudget.parse(text)
    rows, tokens = batch["labels"].shape
    labelled = int((batch["labels"] != -100).sum())
    assert 0 < labelled < rows * tokens / 2
    for kwargs, predicted in ((batch, labelled), (_without_labels(batch), rows * tokens)):
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            model(**kwargs, budget=budget)
        expected = budget.flops(model.config, tokens, rows, predicted_tokens=predicted)
        assert counter.get_total_flops() == expected


def test_shared_exits_cost_one_trunk_pass(batch: dict[str, Tensor]) -> None:
    model = _head(DeltaEncoderForMaskedLM)
    model.set_attn_implementation("eager")
    exits = tuple(DeltaBudget(0.5, 2, depth) for depth in (2, 3, 4))
    rows, tokens = batch["labels"].shape
    labelled = int((batch["labels"] != -100).sum())
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(**batch, budgets=exits)
    trunk = exits[-1].flops(model.config, tokens, rows)
    head = exits[-1].flops(model.config, tokens, rows, predicted_tokens=labelled) - trunk
    assert counter.get_total_flops() == trunk + len(exits) * head


def test_dense_prediction_equals_sparse(batch: dict[str, Tensor]) -> None:
    sparse = _head(DeltaEncoderForMaskedLM)
    dense = _head(DeltaEncoderForMaskedLM, sparse_prediction=False)
    dense.load_state_dict(sparse.state_dict())
    few, all_ = sparse(**batch), dense(**batch)
    assert all_.logits.shape == (3, 16, TINY["vocab_size"])
    torch.testing.assert_close(few.loss, all_.loss)
    torch.testing.assert_close(few.logits, all_.logits[batch["labels"] != -100])
    torch.testing.assert_close(sparse(**_without_labels(batch)).logits, all_.logits)


def test_loss_divides_by_the_items_of_the_whole_step(
    tiny_delta_encoder: DeltaEncoderForMaskedLM, batch: dict[str, Tensor]
) -> None:
    labelled = int((batch["labels"] != -100).sum())
    mean = tiny_delta_encoder(**batch).loss
    for items in (4 * labelled, torch.tensor(4 * labelled)):
        shared = tiny_delta_encoder(**batch, num_items_in_batch=items).loss
        torch.testing.assert_close(shared, mean / 4)


def test_sequence_classifier_pools_real_tokens(batch: dict[str, Tensor]) -> None:
    for pooling in ("mean", "cls"):
        model = _head(
            DeltaEncoderForSequenceClassification, classifier_pooling=pooling, num_labels=5
        )
        inputs = _without_labels(batch)
        states = model.model(**inputs).last_hidden_state
        rows = [
            row[real].mean(0) if pooling == "mean" else row[0]
            for row, real in zip(states, inputs["attention_mask"] > 0, strict=True)
        ]
        expected = model.classifier(model.head(torch.stack(rows)))
        torch.testing.assert_close(model(**inputs).logits, expected)
        sliced = model.slice("0.5:2:2:12")
        assert sliced.config.num_labels == 5
        expected = model(**inputs, budget="0.5:2:2:12").logits
        torch.testing.assert_close(sliced(**inputs).logits, expected, atol=1e-5, rtol=1e-5)


def test_classification_losses(batch: dict[str, Tensor]) -> None:
    inputs = _without_labels(batch)
    targets = {
        "single": (3, torch.tensor([0, 2, 1]), F.cross_entropy),
        "several": (3, torch.rand(3, 3).round(), F.binary_cross_entropy_with_logits),
        "regression": (1, torch.tensor([0.5, -1.0, 2.0]), F.mse_loss),
    }
    for name, (labels, target, loss) in targets.items():
        model = _head(DeltaEncoderForSequenceClassification, num_labels=labels)
        outputs = model(**inputs, labels=target)
        logits = outputs.logits.squeeze(-1) if name == "regression" else outputs.logits
        torch.testing.assert_close(outputs.loss, loss(logits, target), msg=name)


def test_token_classifier_ignores_unlabelled_tokens(batch: dict[str, Tensor]) -> None:
    model = _head(DeltaEncoderForTokenClassification, num_labels=3)
    labels = batch["labels"]
    classes = torch.where(labels == -100, -100, labels % 3)
    outputs = model(**_without_labels(batch), labels=classes)
    kept = labels != -100
    torch.testing.assert_close(outputs.loss, F.cross_entropy(outputs.logits[kept], classes[kept]))


def test_a_token_outside_the_vocabulary_is_named(
    tiny_delta_encoder: DeltaEncoderForMaskedLM,
) -> None:
    ids = torch.tensor([[2, 95, 96, 3]])
    with pytest.raises(ValueError, match=r"token id 96 .*0\.\.95; use the tokenizer"):
        tiny_delta_encoder(ids)
    assert tiny_delta_encoder(ids.clamp(max=95)).logits.shape == (1, 4, 96)


def test_nothing_to_predict_is_an_error(batch: dict[str, Tensor]) -> None:
    nothing = torch.full_like(batch["labels"], -100)
    for sparse in (True, False):
        model = _head(DeltaEncoderForMaskedLM, sparse_prediction=sparse)
        with pytest.raises(ValueError, match=r"every label is -100.*check the masking"):
            model(**{**batch, "labels": nothing})
    with pytest.raises(ValueError, match="needs labels"):
        model(**_without_labels(batch), budgets=NESTED)


def test_a_mask_of_another_shape_is_an_error(
    tiny_delta_encoder: DeltaEncoderForMaskedLM, batch: dict[str, Tensor]
) -> None:
    with pytest.raises(ValueError, match=r"attention_mask has shape \(3, 15\).*\(3, 16\)"):
        tiny_delta_encoder(batch["input_ids"], batch["attention_mask"][:, 1:])


def test_both_or_neither_input_is_an_error(
    tiny_delta_encoder: DeltaEncoderForMaskedLM, batch: dict[str, Tensor]
) -> None:
    embeds = torch.zeros(3, 16, TINY["hidden_size"])
    for wrong in ({}, {"input_ids": batch["input_ids"], "inputs_embeds": embeds}):
        with pytest.raises(ValueError, match="exactly one of input_ids and inputs_embeds"):
            tiny_delta_encoder(**wrong)
