"""The nested encoder against the slow reference, and a slice of a slice against a budget."""

from typing import Any

import pytest
import torch
from nestling.configuration import DeltaBudget, DeltaEncoderConfig
from nestling.modeling import DeltaEncoderForMaskedLM
from nestling.modeling.families import FAMILIES
from reference_delta_encoder import masked_lm_row

BUDGETS = (
    "1.0:4:4",
    "0.5:2:2",
    "0.75:1:3",
    "1.0:4:4:20",
    "0.5:3:4:9",
    "0.25,1.0,0.6:2:3",
    "0.01:4:1:32",
    "0.1,0.9:1:2:17",
)
BIASES = {"norm_bias": True, "attention_bias": True, "mlp_bias": True, "classifier_bias": True}


def _model(**overrides: Any) -> DeltaEncoderForMaskedLM:
    torch.manual_seed(1)
    config = DeltaEncoderConfig(**{**FAMILIES["delta_encoder"].tiny, **overrides})
    model = DeltaEncoderForMaskedLM(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.15)
    return model


@pytest.fixture(scope="module", params=["plain", "biases", "odd sizes"])
def model(request: pytest.FixtureRequest) -> DeltaEncoderForMaskedLM:
    overrides: dict[str, Any] = {
        "plain": {},
        "biases": {**BIASES, "decoder_bias": False},
        "odd sizes": {"head_dim": 6, "intermediate_size": [40, 17, 33, 8], "local_attention": 3},
    }[request.param]
    return _model(**overrides)


@pytest.fixture(scope="module")
def rows() -> tuple[torch.Tensor, torch.Tensor]:
    ids = torch.randint(8, 96, (2, 14), generator=torch.Generator().manual_seed(5))
    documents = torch.tensor([[1] * 6 + [2] * 5 + [3] * 3, [1] * 11 + [0] * 3])
    return ids, documents


@pytest.mark.parametrize("text", BUDGETS)
def test_forward_equals_the_reference(
    model: DeltaEncoderForMaskedLM, rows: tuple[torch.Tensor, torch.Tensor], text: str
) -> None:
    ids, documents = rows
    budget = DeltaBudget.parse(text)
    weights = dict(model.named_parameters())
    with torch.no_grad():
        actual = model(ids, documents, budget=budget).logits
        sliced = model.slice(budget)(ids, documents).logits
        expected = torch.stack(
            [
                masked_lm_row(weights, model.config, budget, row, numbers.tolist())
                for row, numbers in zip(ids, documents, strict=True)
            ]
        )
    torch.testing.assert_close(actual, expected, atol=2e-5, rtol=2e-5)
    torch.testing.assert_close(sliced, expected, atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("text", ["1.0:4:4", "0.5:2:3:20", "0.25,1.0:3:2"])
def test_gradients_equal_those_of_the_reference(
    model: DeltaEncoderForMaskedLM, rows: tuple[torch.Tensor, torch.Tensor], text: str
) -> None:
    ids, documents = rows[0][:1], rows[1][:1]
    budget = DeltaBudget.parse(text)
    weights = dict(model.named_parameters())
    labels = ids.masked_fill(torch.arange(ids.shape[1]) % 3 != 0, -100)
    loss = model(ids, documents, labels=labels, budget=budget).loss
    logits = masked_lm_row(weights, model.config, budget, ids[0], documents[0].tolist())
    expected_loss = torch.nn.functional.cross_entropy(logits, labels[0])
    torch.testing.assert_close(loss, expected_loss, atol=1e-5, rtol=1e-5)
    tensors = list(weights.values())
    actual = torch.autograd.grad(loss, tensors, allow_unused=True, materialize_grads=True)
    expected = torch.autograd.grad(
        expected_loss, tensors, allow_unused=True, materialize_grads=True
    )
    for name, ours, theirs in zip(weights, actual, expected, strict=True):
        torch.testing.assert_close(
            ours, theirs, atol=1e-5, rtol=1e-3, msg=lambda text, name=name: f"{name}: {text}"
        )


def test_a_slice_of_a_slice_is_the_smaller_budget(
    model: DeltaEncoderForMaskedLM, rows: tuple[torch.Tensor, torch.Tensor]
) -> None:
    ids, documents = rows
    with torch.no_grad():
        once = model.slice("1.0:3:4:24").slice("1.0:2:3:12")(ids, documents).logits
        expected = model(ids, documents, budget="1.0:2:3:12").logits
    torch.testing.assert_close(once, expected, atol=1e-5, rtol=1e-5)


def test_a_shallow_load_is_the_shallow_budget(
    model: DeltaEncoderForMaskedLM, rows: tuple[torch.Tensor, torch.Tensor], tmp_path: Any
) -> None:
    ids, documents = rows
    model.save_pretrained(tmp_path)
    shallow = DeltaEncoderForMaskedLM.from_pretrained(tmp_path, num_hidden_layers=3).eval()
    with torch.no_grad():
        expected = model(ids, documents, budget="1.0:4:3").logits
        assert torch.equal(shallow(ids, documents).logits, expected)


def test_inputs_embeds_equal_input_ids(model: DeltaEncoderForMaskedLM) -> None:
    ids = torch.randint(8, 96, (2, 10), generator=torch.Generator().manual_seed(2))
    embeds = model.get_input_embeddings().weight[ids]
    for budget in (None, "0.5:2:3:12"):
        expected = model(ids, budget=budget).logits
        assert torch.equal(model(inputs_embeds=embeds, budget=budget).logits, expected)


def test_optional_outputs(model: DeltaEncoderForMaskedLM) -> None:
    ids = torch.randint(8, 96, (2, 10), generator=torch.Generator().manual_seed(2))
    trunk = model.model
    model.set_attn_implementation("eager")
    outputs = trunk(ids, output_hidden_states=True, output_attentions=True, budget="1.0:3:2")
    model.set_attn_implementation("sdpa")
    assert len(outputs.hidden_states) == 3
    assert torch.equal(outputs.hidden_states[-1], outputs.last_hidden_state)
    assert [weights.shape for weights in outputs.attentions] == [(2, 3, 10, 10)] * 2
    for weights in outputs.attentions:
        torch.testing.assert_close(weights.sum(-1), torch.ones(2, 3, 10))
    plain = trunk(ids)
    assert plain.hidden_states is None
    assert plain.attentions is None
