"""Values the configuration derives, accepts and refuses."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from nestling.configuration import DeltaBudget, DeltaEncoderConfig
from nestling.modeling.families import FAMILIES

TINY = FAMILIES["delta_encoder"].tiny


def _config(**overrides: Any) -> DeltaEncoderConfig:
    return DeltaEncoderConfig(**{**TINY, **overrides})


def test_derived_values() -> None:
    config = _config()
    assert config.head_dim == 8
    assert config.layer_types == ["full_attention", *["sliding_attention"] * 2, "full_attention"]
    assert config.intermediate_sizes() == [48] * 4
    assert config.tie_word_embeddings is True
    assert _config(intermediate_size=[1, 2, 3, 4]).intermediate_sizes() == [1, 2, 3, 4]
    assert _config(hidden_size=30, head_dim=8).head_dim == 8
    assert _config(global_attn_every_n_layers=1).layer_types == ["full_attention"] * 4


def test_defaults_are_those_of_the_base_model() -> None:
    config = DeltaEncoderConfig()
    assert (config.hidden_size, config.num_hidden_layers, config.head_dim) == (768, 22, 64)
    assert config.vocab_size == 50368
    assert len(config.budget_list()) == 27


def test_default_budgets_are_a_lattice() -> None:
    budgets = _config().budget_list()
    assert len(budgets) == len(set(budgets)) == 27
    assert {b.width for b in budgets} == {0.5, 0.75, 1.0}
    assert {b.heads for b in budgets} == {b.depth for b in budgets} == {2, 3, 4}
    assert budgets[0] == DeltaBudget(0.5, 2, 2)
    assert budgets[-1] == DeltaBudget.full(_config())


def test_budgets_follow_a_shallower_load() -> None:
    config = _config(budgets=["0.5:2:2", "0.5:4:3", "1.0:4:4"])
    config.num_hidden_layers = 3
    config.validate()
    assert list(map(str, config.budget_list())) == ["0.5:2:2", "0.5:4:3"]
    assert len(config.layer_types) == 3
    config.num_hidden_layers = 1
    assert config.budget_list() == [DeltaBudget(1.0, 4, 1)]


def test_budgets_are_stored_as_text_in_one_form() -> None:
    config = _config(budgets=["0.50:2:2", " 1:4:4"])
    assert config.budgets == ["0.5:2:2", "1.0:4:4"]
    assert config.to_dict()["budgets"] == ["0.5:2:2", "1.0:4:4"]


WRONG: list[tuple[str, Any, str]] = [
    ("vocab_size", 0, "vocab_size 0 must be a whole number >= 1"),
    ("hidden_size", "32", "hidden_size '32' must be a whole number >= 1"),
    ("num_hidden_layers", 2.0, "num_hidden_layers 2.0 must be a whole number >= 1"),
    ("num_attention_heads", True, "num_attention_heads True must be a whole number >= 1"),
    ("max_position_embeddings", -1, "max_position_embeddings -1 must be a whole number >= 1"),
    ("local_attention", 0, "local_attention 0 must be a whole number >= 1"),
    ("global_attn_every_n_layers", 0, "global_attn_every_n_layers 0 must be a whole number >= 1"),
    ("intermediate_size", [48, 48, 0, 48], "intermediate_size 0 must be a whole number >= 1"),
    ("intermediate_size", [48, 48], "intermediate_size has 2 entries for 4 layers; give one per"),
    ("intermediate_size", 1.5, "intermediate_size 1.5 must be"),
    ("layer_types", ["full_attention"], "layer_types has 1 entries for 4 layers; give one per"),
    ("layer_types", ["linear"] * 4, r"layer_types \['linear'\] must be full_attention or sliding"),
    ("head_dim", 7, "head_dim 7 must be an even number >= 2"),
    ("head_dim", 0, "head_dim 0 must be an even number >= 2"),
    ("head_dim", "8", "head_dim '8' must be an even number >= 2"),
    ("num_attention_heads", 5, "num_attention_heads 5 does not divide hidden_size 32; use 2 or 4"),
    ("num_attention_heads", 32, "head_dim 1 must be an even number .* change num_attention_heads"),
    ("attention_dropout", 1.0, r"attention_dropout 1.0 must be in \[0, 1\)"),
    ("embedding_dropout", -0.1, r"embedding_dropout -0.1 must be in \[0, 1\)"),
    ("mlp_dropout", 2, r"mlp_dropout 2 must be in \[0, 1\)"),
    ("classifier_dropout", float("nan"), r"classifier_dropout nan must be in \[0, 1\)"),
    ("attention_dropout", "0.1", r"attention_dropout '0.1' must be in \[0, 1\)"),
    ("classifier_pooling", "max", "classifier_pooling 'max' must be mean or cls"),
    ("pad_token_id", 96, r"pad_token_id 96 must be in 0\.\.95; take both from the tokenizer"),
    ("pad_token_id", -1, r"pad_token_id -1 must be in 0\.\.95"),
    ("pad_token_id", "0", r"pad_token_id '0' must be in 0\.\.95"),
    ("hidden_activation", "nope", "hidden_activation 'nope' must be"),
    ("classifier_activation", "nope", "classifier_activation 'nope' must be"),
    ("norm_eps", -1.0, "norm_eps -1.0 must be"),
    ("initializer_range", -0.02, "initializer_range -0.02 must be"),
    ("initializer_cutoff_factor", 0.0, "initializer_cutoff_factor 0.0 must be"),
    ("global_rope_theta", 0.0, "global_rope_theta 0.0 must be"),
    ("local_rope_theta", -1.0, "local_rope_theta -1.0 must be"),
    ("budgets", [4332], "quote budgets in YAML"),
    ("budgets", ["0.5:6"], "budget '0.5:6' has 2 parts; write width:heads:depth"),
    ("budgets", "0.5:2:2", "budgets '0.5:2:2' must be a list"),
]


@pytest.mark.parametrize(("name", "value", "message"), WRONG, ids=lambda part: repr(part)[:40])
def test_bad_values_are_refused_with_value_range_and_fix(
    name: str, value: Any, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        _config(**{name: value})


def test_values_set_after_construction_are_checked_by_the_model() -> None:
    from nestling.modeling import DeltaEncoderModel

    config = _config()
    config.classifier_pooling = "max"
    with pytest.raises(ValueError, match="classifier_pooling 'max' must be mean or cls"):
        DeltaEncoderModel(config)


def test_validation_is_idempotent() -> None:
    config = _config(intermediate_size=[48, 40, 32, 24])
    before = config.to_dict()
    config.validate()
    assert config.to_dict() == before


@pytest.mark.parametrize(
    "module",
    [
        "nestling.configuration",
        "nestling.configuration.budget",
        "nestling.configuration.delta_budget",
    ],
)
def test_budgets_need_neither_torch_nor_transformers(module: str, tmp_path: Path) -> None:
    code = (
        f"import sys, {module}\n"
        "from nestling.configuration import DeltaBudget\n"
        "assert str(DeltaBudget.parse('0.5:6:6')) == '0.5:6:6'\n"
        "heavy = {'torch', 'transformers', 'numpy'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert done.returncode == 0, done.stderr
