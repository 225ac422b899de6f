"""The cost formulas against counted parameters, bytes on disk and arithmetic by hand."""

from pathlib import Path
from typing import Any

import pytest
import torch
from nestling.configuration import BudgetError, DeltaBudget, DeltaEncoderConfig
from nestling.modeling.families import FAMILIES, resolve
from safetensors.torch import load_file

FAMILY = FAMILIES["delta_encoder"]
HEADS = {
    "AutoModel": "none",
    "AutoModelForMaskedLM": "masked_lm",
    "AutoModelForSequenceClassification": "classification",
    "AutoModelForTokenClassification": "classification",
}
BUDGETS = ("1.0:4:4", "0.5:2:2", "0.3:3:1", "0.75:2:3:12", "0.1,0.9,0.5:1:3:31")
SHAPES: dict[str, dict[str, Any]] = {
    "plain": {},
    "biases": {
        "norm_bias": True,
        "attention_bias": True,
        "mlp_bias": True,
        "classifier_bias": True,
        "decoder_bias": False,
    },
    "uneven": {"head_dim": 6, "intermediate_size": [40, 17, 33, 8], "num_labels": 5},
    "untied": {"tie_word_embeddings": False},
}


def _model(auto_class: str, shape: str) -> Any:
    config = DeltaEncoderConfig(**{**FAMILY.tiny, **SHAPES[shape]})
    return resolve(FAMILY.auto_classes[auto_class])(config)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("auto_class", FAMILY.auto_classes)
def test_parameters_of_every_head(auto_class: str, shape: str) -> None:
    model = _model(auto_class, shape)
    for text in BUDGETS:
        budget = DeltaBudget.parse(text)
        counted = sum(p.numel() for p in model.slice(budget).parameters())
        assert budget.parameters(model.config, HEADS[auto_class]) == counted, text


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("auto_class", ["AutoModel", "AutoModelForMaskedLM"])
def test_bytes_are_those_on_disk(auto_class: str, dtype: str, tmp_path: Path) -> None:
    model = _model(auto_class, "plain").to(getattr(torch, dtype))
    for text in BUDGETS:
        budget = DeltaBudget.parse(text)
        folder = tmp_path / budget.folder_name
        model.slice(budget).save_pretrained(folder)
        tensors = load_file(folder / "model.safetensors").values()
        stored = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        assert budget.weight_bytes(model.config, dtype, HEADS[auto_class]) == stored
        assert 0 < (folder / "model.safetensors").stat().st_size - stored < 16_000


def test_an_unknown_dtype_is_refused() -> None:
    config = DeltaEncoderConfig(**FAMILY.tiny)
    with pytest.raises(BudgetError, match="dtype 'int3' must be one of float32, bfloat16, float16"):
        DeltaBudget.full(config).weight_bytes(config, "int3")


def test_an_unknown_head_is_refused() -> None:
    """A typing error would otherwise be counted as some other head."""
    config = DeltaEncoderConfig(**FAMILY.tiny)
    with pytest.raises(BudgetError, match="head 'masked-lm' must be one of none, masked_lm"):
        DeltaBudget.full(config).parameters(config, "masked-lm")


def test_flops_by_hand() -> None:
    config = DeltaEncoderConfig(**FAMILY.tiny)
    budget = DeltaBudget(0.5, 2, 3, 12)
    tokens, attention, n, k = 10, 2 * 8, 12, 24
    layer = tokens * n * 3 * attention + tokens * attention * n  # projections
    layer += 2 * tokens * tokens * attention + 3 * tokens * n * k  # scores, mixing, MLP
    assert budget.flops(config, tokens) == 2 * 3 * layer
    assert budget.flops(config, tokens, batch_size=5) == 2 * 3 * layer * 5
    head = 2 * 7 * (n * n + n * config.vocab_size)
    assert budget.flops(config, tokens, predicted_tokens=7) == 2 * 3 * layer + head
