"""Settings of deltas, conditioned norms and routing: every error, and what is filled in."""

import json
from pathlib import Path
from typing import Any

import pytest
from nestling.configuration import DeltaBudget, DeltaEncoderConfig
from nestling.configuration.delta_settings import (
    choose_tokens_by_share,
    choose_tokens_by_threshold,
)
from nestling.modeling.families import FAMILIES

TINY = FAMILIES["delta_encoder"].tiny
ROUTED = {"token_routing": True}
NEW_KEYS = (
    "base_intermediate_size",
    "base_attention_heads",
    "delta_kind",
    "delta_atoms",
    "delta_rank",
    "conditioned_norms",
    "conditioner_size",
    "exit_affine",
    "norm_table",
    "token_routing",
    "preview_size",
    "routing_layer",
    "delta_token_ratio",
    "delta_token_threshold",
    "drop_path",
)


def make(**settings: Any) -> DeltaEncoderConfig:
    return DeltaEncoderConfig(**{**TINY, **settings})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"delta_kind": "sparse"}, "delta_kind 'sparse' must be one of dense, dictionary, low_ra"),
        ({"delta_atoms": 0}, "delta_atoms 0 must be a whole number >= 1"),
        ({"delta_rank": 1.5}, r"delta_rank 1.5 must be a whole number >= 1"),
        ({"conditioner_size": True}, "conditioner_size True must be a whole number >= 1"),
        ({"preview_size": "8"}, "preview_size '8' must be a whole number >= 1"),
        ({"drop_path": 1.0}, r"drop_path 1.0 must be in \[0, 1\)"),
        ({"drop_path": -0.1}, r"drop_path -0.1 must be in \[0, 1\)"),
        ({"drop_path": "0.1"}, r"drop_path '0.1' must be in \[0, 1\)"),
        ({**ROUTED, "delta_token_ratio": 1.1}, r"delta_token_ratio 1.1 must be in \[0, 1\], or No"),
        ({**ROUTED, "delta_token_ratio": True}, "delta_token_ratio True must be in"),
        ({**ROUTED, "delta_token_ratio": "all"}, "delta_token_ratio 'all' must be in"),
        ({**ROUTED, "delta_token_threshold": "0"}, "delta_token_threshold '0' must be a number"),
        ({**ROUTED, "delta_token_ratio": float("nan")}, "delta_token_ratio nan must be in"),
        ({**ROUTED, "delta_token_threshold": float("nan")}, "delta_token_threshold nan must be a"),
        ({**ROUTED, "learned_token_threshold": float("nan")}, "learned_token_threshold nan must"),
        ({"delta_token_ratio": 0.5}, "need token_routing=True"),
        ({"delta_token_threshold": 0.0}, "need token_routing=True"),
        ({"norm_table": True}, "norm_table True needs token_routing=True and conditioned_norms=Fa"),
        ({**ROUTED, "norm_table": True, "conditioned_norms": True}, "not True and True"),
        ({**ROUTED, "routing_layer": 4}, r"routing_layer 4 must be in 0..3.* an earlier one"),
        ({**ROUTED, "routing_layer": -1}, r"routing_layer -1 must be in 0..3"),
        ({**ROUTED, "routing_layer": 1.0}, r"routing_layer 1.0 must be in 0..3"),
        ({**ROUTED, "attention_bias": True}, "must be False where there is a base .*_routing True"),
        ({"delta_kind": "low_rank", "mlp_bias": True}, "must be False .*delta_kind 'low_rank'"),
        ({"base_attention_heads": 2, "mlp_bias": True}, "must be False .*base_attention_heads 2"),
        ({"base_attention_heads": 5}, "base_attention_heads 5 must be in 1..4"),
        ({"base_attention_heads": 0}, "base_attention_heads 0 must be in 1..4"),
        ({"base_attention_heads": 2.0}, "base_attention_heads 2.0 must be in 1..4"),
        ({"base_intermediate_size": 49}, "base_intermediate_size 49 must be in 1..48"),
        ({"base_intermediate_size": 0.5}, "base_intermediate_size 0.5 must be in 1..48"),
        ({"base_intermediate_size": [24, 24, 24]}, "base_intermediate_size has 3 entries for 4"),
        ({"base_intermediate_size": [24, 0, 24, 24]}, "base_intermediate_size 0 must be in 1..48"),
        (
            {"intermediate_size": [40, 17, 33, 8], "base_intermediate_size": 9},
            "base_intermediate_size 9 must be in 1..8",
        ),
    ],
    ids=repr,
)
def test_errors_name_value_range_and_fix(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(**settings)


@pytest.mark.parametrize(
    "settings", [{"delta_kind": "dictionary"}, {"delta_kind": "low_rank"}, ROUTED], ids=str
)
def test_the_base_slice_is_half_unless_given(settings: dict[str, Any]) -> None:
    config = make(**settings)
    assert (config.base_attention_heads, config.base_intermediate_size) == (2, 24)
    config = make(**settings, base_attention_heads=1, base_intermediate_size=7)
    assert (config.base_attention_heads, config.base_intermediate_size) == (1, 7)
    config = make(**settings, num_attention_heads=1, head_dim=4, intermediate_size=1)
    assert (config.base_attention_heads, config.base_intermediate_size) == (1, 1)


def test_a_plain_model_has_no_base_slice() -> None:
    config = make()
    assert config.base_attention_heads is None
    assert config.base_intermediate_size is None


def test_one_given_half_brings_the_other() -> None:
    assert make(base_attention_heads=3).base_intermediate_size == 24
    assert make(base_intermediate_size=5).base_attention_heads == 2


def test_uneven_layers_have_a_list() -> None:
    config = make(delta_kind="dictionary", intermediate_size=[40, 17, 33, 8])
    assert config.base_intermediate_size == [20, 8, 16, 4]
    assert config.base_intermediate_sizes() == [20, 8, 16, 4]
    again = DeltaEncoderConfig(**config.to_dict())
    assert again.base_intermediate_sizes() == [20, 8, 16, 4]
    given = make(delta_kind="dictionary", base_intermediate_size=[1, 2, 3, 48])
    assert given.base_intermediate_sizes() == [1, 2, 3, 48]
    assert make(**ROUTED, intermediate_size=[40, 41, 40, 41]).base_intermediate_size == 20


def test_fewer_layers_take_the_first_entries() -> None:
    """As when a folder is loaded with ``num_hidden_layers=2``."""
    config = make(**ROUTED, base_intermediate_size=[1, 2, 3, 4])
    config.num_hidden_layers = 2
    config.validate()
    assert config.base_intermediate_sizes() == [1, 2]


def test_a_base_slice_may_be_everything() -> None:
    config = make(**ROUTED, base_attention_heads=4, base_intermediate_size=48)
    assert not DeltaBudget.full(config).has_routed_delta(config)


def test_a_config_of_the_previous_format_loads(tmp_path: Path) -> None:
    make().save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    stored = json.loads(path.read_text())
    assert set(NEW_KEYS) <= set(stored)
    path.write_text(json.dumps({k: v for k, v in stored.items() if k not in NEW_KEYS}))
    config = DeltaEncoderConfig.from_pretrained(tmp_path)
    plain = make()
    assert {key: getattr(config, key) for key in NEW_KEYS} == {
        key: getattr(plain, key) for key in NEW_KEYS
    }
    assert config.delta_kind == "dense"


def test_what_routing_needs_of_a_budget() -> None:
    """A delta in a layer from ``routing_layer`` on: more heads, or more channels there."""
    config = make(**ROUTED, routing_layer=2, base_intermediate_size=[1, 24, 24, 48])
    expected = {
        "1.0:4:4": True,
        "1.0:2:3": True,
        "1.0:2:2": False,  # layers 3 and 4 are gone
        "0.5:3:3": True,
        "0.5:2:4": False,  # more channels in the first layer only
        "0.5,0.5,0.5,1.0:2:4": False,
        "0.5,0.5,0.51,0.5:2:4": False,  # 24.48 channels are 24
        "0.5,0.5,0.6,0.5:2:4": True,
    }
    found = {text: DeltaBudget.parse(text).has_routed_delta(config) for text in expected}
    assert found == expected
    assert DeltaBudget.parse("0.25:3:2").base_shape(config) == (32, 2, 2, (1, 12))
    assert DeltaBudget.parse("1.0:4:4").base_shape(config).intermediate == (1, 24, 24, 48)


def test_the_base_slice_of_a_budget_is_a_budget() -> None:
    """Whatever its sizes, it has the shape; one of the lattice is told as the lattice tells it."""
    config = make(**ROUTED, intermediate_size=101, budgets=["0.5:2:4", "0.75:3:4", "1.0:4:4"])
    assert config.base_intermediate_size == 50
    assert str(DeltaBudget.parse("0.75:3:4").base_budget(config)) == "0.5:2:4"
    assert str(DeltaBudget.parse("1.0:4:3:20").base_budget(config)) == "0.49505:2:3:20"
    assert str(DeltaBudget.parse("0.25:2:4").base_budget(config)) == "0.25:2:4"
    config = make(**ROUTED, intermediate_size=2624, base_intermediate_size=[1, 577, 1152, 2624])
    for text in ("1.0:4:4", "0.3:4:3", "0.6:1:2:20", "0.2,1.0,0.5:3:3"):
        budget = DeltaBudget.parse(text)
        base = budget.base_budget(config)
        assert base.shape(config) == budget.base_shape(config), text
        assert base.base_budget(config) == base


def test_a_threshold_takes_the_place_of_a_share() -> None:
    config = make(**ROUTED, delta_token_ratio=0.5, learned_token_threshold=0.25)
    assert choose_tokens_by_threshold(config, -3) == -3.0
    assert (config.delta_token_ratio, config.delta_token_threshold) == (None, -3.0)
    assert choose_tokens_by_threshold(config, "learned") == 0.25
    assert config.delta_token_threshold == 0.25
    choose_tokens_by_share(config, 0.5)
    assert (config.delta_token_ratio, config.delta_token_threshold) == (0.5, None)


@pytest.mark.parametrize(
    ("settings", "threshold", "message"),
    [
        ({}, 0.5, "delta_token_threshold 0.5 needs a model with a preview network; train one"),
        (ROUTED, "learned", "threshold learned needs a learned_token_threshold, and the model ha"),
        (ROUTED, "0.5", "delta_token_threshold '0.5' must be a finite number, or 'learned'"),
        (ROUTED, float("inf"), "delta_token_threshold inf must be a finite number"),
        (ROUTED, float("nan"), "delta_token_threshold nan must be a finite number"),
    ],
)
def test_thresholds_that_cannot_be(
    settings: dict[str, Any], threshold: float | str, message: str
) -> None:
    config = make(**settings)
    with pytest.raises(ValueError, match=message):
        choose_tokens_by_threshold(config, threshold)
    assert config.delta_token_threshold is None
