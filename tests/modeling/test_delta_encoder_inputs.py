"""Inputs that do not fit are refused instead of computing something else."""

import re
from typing import Any

import pytest
import torch
from nestling.configuration.configuration_delta_encoder import DeltaEncoderConfig
from nestling.configuration.delta_budget import DeltaBudget
from nestling.modeling.delta_encoder_heads import (
    DeltaEncoderForMaskedLM,
    DeltaEncoderForSequenceClassification,
    DeltaEncoderForTokenClassification,
)
from nestling.modeling.families import FAMILIES

CONFIG = FAMILIES["delta_encoder"].tiny
IDS = torch.arange(4, 24).view(2, 10)


@pytest.mark.parametrize("shape", [(2, 5), (1, 10), (20,)])
def test_labels_must_lie_on_the_tokens(shape: tuple[int, ...]) -> None:
    labels = torch.zeros(shape, dtype=torch.long)
    config = DeltaEncoderConfig(**CONFIG)
    masked_lm = DeltaEncoderForMaskedLM(config)
    for call in (
        lambda: masked_lm(IDS, labels=labels),
        lambda: masked_lm(IDS, labels=labels, budgets=(DeltaBudget.full(config),)),
        lambda: DeltaEncoderForTokenClassification(config)(IDS, labels=labels),
    ):
        with pytest.raises(ValueError, match=r"labels have shape .*, the tokens \(2, 10\)"):
            call()


def _heads() -> dict[str, Any]:
    config = DeltaEncoderConfig(**CONFIG, num_labels=3)
    classes = {
        "masked_lm": DeltaEncoderForMaskedLM,
        "tokens": DeltaEncoderForTokenClassification,
        "rows": DeltaEncoderForSequenceClassification,
    }
    return {name: each(config).eval() for name, each in classes.items()}


@pytest.mark.parametrize("label", [96, 3, -1, -101])
@pytest.mark.parametrize("head", ["masked_lm", "tokens", "rows"])
def test_labels_out_of_range_are_named(head: str, label: int) -> None:
    model = _heads()[head]
    classes = CONFIG["vocab_size"] if head == "masked_lm" else 3
    labels = torch.tensor([0, -100]) if head == "rows" else torch.full_like(IDS, -100)
    labels.view(-1)[:2] = torch.tensor([0, label])
    if 0 <= label < classes:
        assert torch.isfinite(model(IDS, labels=labels).loss)
        return
    with pytest.raises(ValueError, match=rf"^label {label} is not in 0\.\.{classes - 1}; use -100"):
        model(IDS, labels=labels)


@pytest.mark.parametrize("sparse", [True, False])
def test_labels_out_of_range_are_named_on_every_path_of_the_masked_lm(sparse: bool) -> None:
    config = DeltaEncoderConfig(**CONFIG, sparse_prediction=sparse)
    model = DeltaEncoderForMaskedLM(config)
    labels = torch.full_like(IDS, -100)
    labels[1, 3] = config.vocab_size
    for arguments in ({}, {"budgets": (DeltaBudget.full(config),)}, {"num_items_in_batch": 4}):
        with pytest.raises(ValueError, match=r"^label 96 is not in 0\.\.95"):
            model(IDS, labels=labels, **arguments)


ROW_LABELS = [
    (torch.zeros(3, dtype=torch.long), r"shape \(3,\) .*single_label\w* .* needs \(2,\)"),
    (torch.zeros(2, 1, dtype=torch.long), r"shape \(2, 1\) .*single_label\w* .* needs \(2,\)"),
    (torch.zeros(2), r"shape \(2,\) .*multi_label\w* .* needs \(2, 3\)"),
    (torch.zeros(2, 4), r"shape \(2, 4\) .*multi_label\w* .* needs \(2, 3\)"),
    (torch.full((2,), -100), "every label is -100"),
]


@pytest.mark.parametrize(("labels", "message"), ROW_LABELS)
def test_labels_must_fit_the_rows(labels: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        _heads()["rows"](IDS, labels=labels)
    assert "\n" not in str(caught.value)


def test_targets_of_a_regression_must_fit_the_rows() -> None:
    model = DeltaEncoderForSequenceClassification(DeltaEncoderConfig(**CONFIG, num_labels=1)).eval()
    losses = [model(IDS, labels=torch.ones(shape)).loss for shape in ((2,), (2, 1))]
    assert torch.equal(*losses)
    with pytest.raises(ValueError, match=r"shape \(3,\) .*regression .* needs \(2,\)"):
        model(IDS, labels=torch.ones(3))


@pytest.mark.parametrize("head", ["masked_lm", "tokens", "rows"])
def test_positions_of_another_shape_are_refused(head: str) -> None:
    model = _heads()[head]
    for shape in ((2, 9), (3, 10), (10,), (2, 1)):
        message = rf"position_ids has shape {re.escape(str(shape))}, the input \(2, 10\)"
        with pytest.raises(ValueError, match=message):
            model(IDS, position_ids=torch.zeros(shape, dtype=torch.long))
    counted = torch.arange(10)
    expected = model(IDS).logits
    for positions in (counted[None], counted.expand(2, 10)):
        assert torch.equal(model(IDS, position_ids=positions).logits, expected)


@pytest.mark.parametrize("head", ["masked_lm", "tokens", "rows"])
@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"input_ids": IDS[:, :0]}, r"input_ids has shape \(2, 0\).* 1 row of 1 token or more"),
        ({"input_ids": IDS[:0]}, r"input_ids has shape \(0, 10\), which is empty"),
        ({"inputs_embeds": torch.zeros(2, 0, 32)}, r"shape \(2, 0, 32\), which is empty"),
        ({"input_ids": IDS[0]}, r"input_ids has shape \(10,\), not \(batch, tokens\)"),
        ({"inputs_embeds": torch.zeros(10, 32)}, r"\(10, 32\), not \(batch, tokens, 32\)"),
        ({}, "exactly one of input_ids and inputs_embeds"),
    ],
)
def test_inputs_without_tokens_or_rows_are_refused(
    head: str, inputs: dict[str, torch.Tensor], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        _heads()[head](**inputs)


def test_a_budget_of_all_hidden_channels_compiles_and_is_the_full_one() -> None:
    model = _heads()["masked_lm"]
    model.set_budget("1.0:4:4:32")
    assert model.active_budget == DeltaBudget(1.0, 4, 4)
    assert model.slice("1.0:4:4:32").config.sliced_from == "1.0:4:4"
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    positions = torch.arange(10)[None]
    got = compiled(IDS, position_ids=positions, budget=DeltaBudget(1.0, 4, 4, 32)).logits
    torch.testing.assert_close(got, model(IDS, position_ids=positions).logits)


def test_embeddings_of_another_width_are_refused() -> None:
    model = DeltaEncoderForMaskedLM(DeltaEncoderConfig(**CONFIG))
    with pytest.raises(ValueError, match="inputs_embeds have 16 channels; give all 32"):
        model(inputs_embeds=torch.zeros(2, 10, 16))


@pytest.mark.parametrize("auto_class", list(FAMILIES["delta_encoder"].auto_classes))
def test_tuples_on_request_by_the_configuration(auto_class: str) -> None:
    from nestling.modeling.families import resolve

    model = resolve(FAMILIES["delta_encoder"].auto_classes[auto_class])(
        DeltaEncoderConfig(**CONFIG, return_dict=False)
    )
    assert isinstance(model(IDS), tuple)


def test_a_checkpoint_without_head_is_refused(tmp_path: object) -> None:
    from nestling.modeling.modernbert_weights import load_modernbert
    from transformers import ModernBertConfig, ModernBertModel

    config = ModernBertConfig(
        vocab_size=96, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=48, pad_token_id=0, cls_token_id=1, sep_token_id=2, bos_token_id=1,
        eos_token_id=2,
    )  # fmt: skip
    ModernBertModel(config).save_pretrained(str(tmp_path))
    with pytest.raises(ValueError, match="masked-LM head"):
        load_modernbert(str(tmp_path))
