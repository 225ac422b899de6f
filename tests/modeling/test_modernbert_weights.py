"""From and to the stock ModernBERT layout, against the stock class."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from nestling.configuration import DeltaEncoderConfig
from nestling.modeling import DeltaEncoderForMaskedLM, load_modernbert
from nestling.modeling.families import FAMILIES
from nestling.modeling.modernbert_weights import (
    from_modernbert_state,
    is_modernbert_shape,
    to_modernbert_config,
    to_modernbert_state,
)
from safetensors.torch import save_file
from torch import Tensor
from transformers import (
    AutoModelForMaskedLM,
    BertConfig,
    ModernBertConfig,
    ModernBertForMaskedLM,
)

SMALL = {
    "vocab_size": 96,
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
    "local_attention": 8,
    "pad_token_id": 0,
    "cls_token_id": 2,
    "sep_token_id": 3,
    "bos_token_id": 2,
    "eos_token_id": 3,
}
VARIANTS: dict[str, dict[str, Any]] = {
    "released": {},
    "all biases": {
        "norm_bias": True,
        "attention_bias": True,
        "mlp_bias": True,
        "classifier_bias": True,
    },
    "no decoder bias": {"decoder_bias": False, "norm_bias": True},
    "one layer": {"num_hidden_layers": 1},
    "seven layers": {"num_hidden_layers": 7, "global_attn_every_n_layers": 2},
    "all global": {"global_attn_every_n_layers": 1},
    "other rope": {"global_rope_theta": 5000.0, "local_rope_theta": 300.0, "norm_eps": 1e-3},
    "other activation": {"hidden_activation": "silu", "classifier_activation": "relu"},
    "long window": {"local_attention": 64},
    "untied": {"tie_word_embeddings": False},
}


def _stock(**overrides: Any) -> ModernBertForMaskedLM:
    torch.manual_seed(0)
    model = ModernBertForMaskedLM(ModernBertConfig(**{**SMALL, **overrides})).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return model


def _batch() -> dict[str, Tensor]:
    ids = torch.randint(8, 96, (3, 24), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[1, 15:] = 0
    return {"input_ids": ids, "attention_mask": mask}


def _logits(model: Any) -> Tensor:
    batch = _batch()
    with torch.no_grad():
        return model(**batch).logits[batch["attention_mask"] > 0]


def _write_stock_folder(model: DeltaEncoderForMaskedLM, folder: Path) -> None:
    """What a native export holds: a stock config.json and translated tensors."""
    state = to_modernbert_state(model.state_dict(), model.config)
    if model.config.tie_word_embeddings:
        state.pop("decoder.weight")
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(to_modernbert_config(model.config)))


@pytest.mark.parametrize("variant", VARIANTS)
def test_full_budget_equals_the_stock_model(variant: str, tmp_path: Path) -> None:
    stock = _stock(**VARIANTS[variant])
    stock.save_pretrained(tmp_path)
    model = load_modernbert(str(tmp_path))
    assert not model.training
    torch.testing.assert_close(_logits(model), _logits(stock), atol=1e-5, rtol=1e-5)
    tied = VARIANTS[variant].get("tie_word_embeddings", True)
    assert (model.decoder.weight is model.get_input_embeddings().weight) is tied


@pytest.mark.parametrize("variant", VARIANTS)
def test_native_folder_is_read_by_the_stock_class(variant: str, tmp_path: Path) -> None:
    (tmp_path / "stock").mkdir()
    (tmp_path / "native").mkdir()
    _stock(**VARIANTS[variant]).save_pretrained(tmp_path / "stock")
    model = load_modernbert(str(tmp_path / "stock"))
    _write_stock_folder(model, tmp_path / "native")
    again, report = AutoModelForMaskedLM.from_pretrained(
        tmp_path / "native", output_loading_info=True
    )
    assert type(again) is ModernBertForMaskedLM
    assert not report["unexpected_keys"]
    assert not report["missing_keys"]
    torch.testing.assert_close(_logits(again.eval()), _logits(model), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("budget", ["0.5:4:3", "1.0:2:4:16", "0.25:1:1:8"])
def test_native_slice_is_read_by_the_stock_class(budget: str, tmp_path: Path) -> None:
    (tmp_path / "native").mkdir()
    _stock().save_pretrained(tmp_path)
    model = load_modernbert(str(tmp_path))
    smaller = model.slice(budget)
    assert is_modernbert_shape(smaller.config)
    _write_stock_folder(smaller, tmp_path / "native")
    again = AutoModelForMaskedLM.from_pretrained(tmp_path / "native").eval()
    model.set_budget(budget)
    torch.testing.assert_close(_logits(again), _logits(model), atol=1e-5, rtol=1e-5)


def test_state_round_trip_is_exact(tmp_path: Path) -> None:
    stock = _stock(attention_bias=True, mlp_bias=True)
    stock.save_pretrained(tmp_path)
    config = load_modernbert(str(tmp_path)).config
    for state in (stock.state_dict(), stock.model.state_dict()):
        again = to_modernbert_state(from_modernbert_state(state, config), config)
        assert again.keys() == state.keys()
        assert all(torch.equal(again[key], state[key]) for key in state)


def test_a_loaded_checkpoint_saves_trains_and_slices(tmp_path: Path) -> None:
    (tmp_path / "ours").mkdir()
    _stock().save_pretrained(tmp_path)
    model = load_modernbert(str(tmp_path), budgets=["0.5:2:2", "1.0:4:4"])
    assert list(map(str, model.config.budget_list())) == ["0.5:2:2", "1.0:4:4"]
    model.save_pretrained(tmp_path / "ours")
    again = DeltaEncoderForMaskedLM.from_pretrained(tmp_path / "ours").eval()
    assert torch.equal(_logits(again), _logits(model))
    batch = _batch()
    model(**batch, labels=batch["input_ids"]).loss.backward()
    assert all(p.requires_grad and p.grad is not None for p in model.parameters())
    assert not any(p.is_meta for p in model.parameters())


def test_checkpoint_values_are_independent_tensors(tmp_path: Path) -> None:
    """Two parameters in one storage would both be kept alive, moved and saved as one."""
    _stock().save_pretrained(tmp_path)
    model = load_modernbert(str(tmp_path))
    storages = [p.untyped_storage().data_ptr() for p in model.parameters()]
    assert len(set(storages)) == len(storages)


@pytest.mark.parametrize("model_type", ["bert", "modernbert-decoder"])
def test_other_architectures_are_refused_by_name(model_type: str, tmp_path: Path) -> None:
    values = BertConfig().to_dict() if model_type == "bert" else ModernBertConfig().to_dict()
    (tmp_path / "config.json").write_text(json.dumps({**values, "model_type": model_type}))
    with pytest.raises(
        ValueError, match=f"cannot start from a '{model_type}'.*supported: modernbert"
    ):
        load_modernbert(str(tmp_path))


def test_scaled_rotary_positions_are_refused(tmp_path: Path) -> None:
    values = ModernBertConfig(**SMALL).to_dict()
    values["rope_parameters"] = {
        "full_attention": {"rope_type": "linear", "factor": 2.0, "rope_theta": 160000.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
    }
    (tmp_path / "config.json").write_text(json.dumps(values))
    with pytest.raises(ValueError, match="rope_type 'linear' of full_attention"):
        load_modernbert(str(tmp_path))


@pytest.mark.parametrize(
    "overrides",
    [
        {"num_attention_heads": 2, "head_dim": 8},
        {"intermediate_size": [48, 48, 24, 48]},
        {"layer_types": ["sliding_attention"] * 4},
    ],
    ids=["heads", "widths", "layers"],
)
def test_other_shapes_have_no_stock_class(overrides: dict[str, Any]) -> None:
    config = DeltaEncoderConfig(**{**FAMILIES["delta_encoder"].tiny, **overrides})
    assert not is_modernbert_shape(config)
    with pytest.raises(ValueError, match="not a ModernBERT shape"):
        to_modernbert_config(config)
    assert is_modernbert_shape(DeltaEncoderConfig(**FAMILIES["delta_encoder"].tiny))


def test_the_refusal_names_what_is_wrong() -> None:
    """A model whose heads fit but whose layers do not must not be told about its heads."""
    config = DeltaEncoderConfig(
        **{**FAMILIES["delta_encoder"].tiny, "intermediate_size": [48, 48, 24, 48]}
    )
    with pytest.raises(ValueError, match="intermediate_size"):
        to_modernbert_config(config)
