"""Configuration of Deep Delta Learning decoders: variants, presets, one line for each mistake."""

import math
from typing import Any

import pytest
import transformers
from nestling.configuration.budget import BudgetError
from nestling.configuration.configuration_ddl import TRANSFORMERS_FLOOR, DdlConfig
from nestling.configuration.ddl_budget import DdlBudget
from nestling.configuration.ddl_settings import PAPER_NAMES, PRESETS, VARIANTS

pytestmark = pytest.mark.skipif(
    tuple(map(int, transformers.__version__.split(".")[:2])) < TRANSFORMERS_FLOOR,
    reason="Deep Delta Learning decoders need transformers >= 5.17",
)

TINY: dict[str, Any] = {
    "vocab_size": 97, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4,
}  # fmt: skip


@pytest.mark.parametrize(
    ("variant", "d_value", "compression", "embed_conv", "slots"),
    [
        ("baseline", 1, None, False, 0),
        ("ddl", 1, None, False, 0),
        ("ddl-tokenconv", 4, "token", False, 3),
        ("ddl-ec", 4, "token", True, 4),
        ("ddl-cc", 4, "channel", False, 0),
        ("ddl-cc-ec", 4, "channel", True, 1),
    ],
)
def test_what_a_slug_stands_for(
    variant: str, d_value: int, compression: str | None, embed_conv: bool, slots: int
) -> None:
    config = DdlConfig(**TINY, variant=variant)
    assert (config.d_value, config.compression, config.embed_conv) == (
        d_value, compression, embed_conv
    )  # fmt: skip
    assert config.conv_slots == slots
    assert config.layer_types == ["hybrid" if slots else "full_attention"] * 3
    assert DdlConfig(**config.to_dict()).to_dict() == config.to_dict()


def test_names_of_the_paper_are_aliases() -> None:
    assert set(PAPER_NAMES.values()) == set(VARIANTS)
    for name, slug in PAPER_NAMES.items():
        assert DdlConfig(**TINY, variant=name).variant == slug
    # The trap: the paper's bare name is not the slug "ddl".
    assert DdlConfig(**TINY, variant="DDL").variant == "ddl-cc-ec"


def test_presets_name_their_source() -> None:
    paper = DdlConfig.preset("paper", **TINY)
    reference = DdlConfig.preset("reference-code", **TINY)
    rust = DdlConfig.preset("ddl-rs", **TINY)
    assert (paper.v_source, paper.v_activation, paper.beta_init) == ("context", "none", 1.0)
    assert (reference.v_source, reference.v_activation, reference.v_scale) == (
        "input", "sigmoid", 4.0
    )  # fmt: skip
    assert reference.rope_before_qk_norm and not paper.rope_before_qk_norm
    assert (rust.beta_init, rust.k_eps) == (0.5, 1e-6)
    assert DdlConfig.preset("paper", **TINY, beta_init=0.25).beta_init == 0.25
    with pytest.raises(ValueError, match=", ".join(PRESETS)):
        DdlConfig.preset("original")


WIDTHS = {"paper": 85, "reference-code": 85, "ddl-rs": 86}


@pytest.mark.parametrize(("preset", "width"), WIDTHS.items())
def test_a_preset_rounds_the_mlp_as_its_source(preset: str, width: int) -> None:
    """8 d / 3 is 85.3 at d = 32; the paper's medium model has 2730 channels at d = 1024."""
    assert DdlConfig.preset(preset, **TINY).intermediate_size == width
    for given, expected in ((None, width), (96, 96)):
        config = DdlConfig.preset(preset, **TINY, intermediate_size=given)
        assert config.intermediate_size == expected
    medium = DdlConfig.preset(preset, hidden_size=1024, num_attention_heads=8)
    assert medium.intermediate_size == 2730 + (preset == "ddl-rs")
    assert DdlConfig.preset(preset).intermediate_size == 2048
    with pytest.raises(ValueError, match="hidden_size 'wide' must be a whole number"):
        DdlConfig.preset(preset, hidden_size="wide")


def test_a_configuration_knows_its_preset() -> None:
    for preset in PRESETS:
        config = DdlConfig.preset(preset, **TINY, variant="ddl-cc")
        assert config.preset_name == preset
        assert "preset_name" not in config.to_dict()
        assert DdlConfig(**config.to_dict()).preset_name == preset
    assert DdlConfig(**TINY).preset_name == "ddl-rs"
    assert DdlConfig(**TINY, beta_init=0.7).preset_name is None
    assert DdlConfig(**TINY, v_bias=True).preset_name is None


def test_a_preset_brings_its_source_to_every_control() -> None:
    for changes in ({"mapping": "v_map"}, {"residual_update": "random_k"}):
        for preset in PRESETS:
            config = DdlConfig.preset(preset, **TINY, **changes)
            assert config.preset_name == preset


def test_a_kernel_of_one_column_needs_no_history() -> None:
    for variant in VARIANTS:
        config = DdlConfig(**TINY, variant=variant, conv_kernel=1)
        assert config.conv_slots == 0 and config.layer_types == ["full_attention"] * 3


def test_sizes_that_follow_from_others() -> None:
    config = DdlConfig(**TINY)
    assert config.head_dim == 8 and config.intermediate_size == math.ceil(8 * 32 / 3)
    assert config.budget_list() == [DdlBudget(1, 3)]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"variant": "ddl-x"}, ["'ddl-x'", "ddl-cc-ec", "DDL-TC"]),
        ({"beta_init": 0.0}, ["beta_init 0.0", "open interval (0, 2)"]),
        ({"beta_init": 2.0}, ["beta_init 2.0", "(0, 2)"]),
        ({"beta_init": float("nan")}, ["beta_init nan", "(0, 2)"]),
        ({"d_value": 4}, ["d_value 4 needs a matrix variant", "ddl-cc-ec"]),
        ({"variant": "ddl-cc", "d_value": 1}, ["ddl-cc has a matrix state", "variant='ddl'"]),
        ({"num_attention_heads": 5}, ["5 does not divide hidden_size 32", "head_dim"]),
        ({"head_dim": 7}, ["head_dim 7 must be even"]),
        ({"hidden_size": 0}, ["hidden_size 0", ">= 1"]),
        ({"conv_kernel": 0}, ["conv_kernel 0"]),
        ({"k_eps": 0.0}, ["k_eps 0.0", "above 0"]),
        ({"k_eps": float("inf")}, ["k_eps inf", "finite"]),
        ({"residual_update": "overwrite"}, ["'overwrite'", "write_only"]),
        ({"mapping": "kmap"}, ["'kmap'", "v_map"]),
        (
            {"residual_update": "erase_only", "mapping": "v_map"},
            ["for nothing else", "mapping='k_map'"],
        ),
        ({"rebuild_state": True, "variant": "baseline"}, ["rebuild_state", "'baseline'"]),
        ({"rebuild_state": True, "variant": "ddl-ec"}, ["rebuild_state", "'ddl-ec'"]),
        (
            {"rebuild_state": True, "variant": "ddl-cc", "residual_update": "write_only"},
            ["rebuild_state", "'write_only'"],
        ),
        ({"v_source": "x"}, ["v_source 'x'", "backbone"]),
        ({"variant": "baseline", "residual_update": "write_only"}, ["needs a delta residual"]),
        (
            {"residual_update": "additive"},
            ["'additive' needs a matrix state", "'ddl' has a vector", "variant='baseline'"],
        ),
        ({"residual_update": "mhc"}, ["'mhc' needs a matrix state", "variant='ddl-cc'"]),
        (
            {"variant": "ddl-cc", "residual_update": "mhc", "mapping": "v_map"},
            ["'mhc' has neither direction nor value", "mapping='k_map'"],
        ),
        (
            {"variant": "ddl-cc", "residual_update": "mhc", "rebuild_state": True},
            ["rebuild_state", "'mhc'"],
        ),
        (
            {"variant": "ddl-cc", "residual_update": "additive", "rebuild_state": True},
            ["rebuild_state", "'additive'"],
        ),
        ({"sinkhorn_iterations": 0}, ["sinkhorn_iterations 0", ">= 1"]),
        ({"value_residual": 1}, ["value_residual 1 must be True or False"]),
        ({"qk_norm": "yes"}, ["qk_norm 'yes' must be True or False"]),
        ({"rope_before_qk_norm": None}, ["rope_before_qk_norm None must be True or False"]),
        ({"v_bias": 1}, ["v_bias 1 must be True or False"]),
        ({"rebuild_state": "x"}, ["rebuild_state 'x' must be True or False"]),
        ({"beta_init": True}, ["beta_init True", "(0, 2)"]),
        ({"v_scale": True}, ["v_scale True must be a finite number above 0"]),
        ({"initializer_range": float("nan")}, ["initializer_range nan", ">= 0"]),
        ({"initializer_range": -1.0}, ["initializer_range -1.0", "finite number >= 0"]),
        ({"initializer_range": "0.02"}, ["initializer_range '0.02'"]),
        (
            {"mapping": "v_map", "v_source": "input"},
            ["v_source 'input' would do nothing", "'v_map'", "v_source='context'"],
        ),
        (
            {"residual_update": "random_k", "v_source": "input"},
            ["v_source 'input' would do nothing", "'random_k'", "v_source='context'"],
        ),
        (
            {"residual_update": "frozen_beta", "beta_hidden": 8},
            ["beta_hidden 8 would do nothing", "no gate", "beta_hidden=None"],
        ),
    ],
)
def test_mistakes_are_one_line(changes: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(ValueError) as caught:
        DdlConfig(**{**TINY, **changes})
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message


def test_budgets_parse_print_and_order() -> None:
    budget = DdlBudget.parse("4:12")
    assert str(budget) == "4:12" and budget.folder_name == "v04-d12" and budget.trunk == 4
    assert DdlBudget(2, 6) < budget and not DdlBudget(8, 6) <= budget
    for wrong in ("4", "4:5:6", "x:3", "0:3"):
        with pytest.raises(BudgetError):
            DdlBudget.parse(wrong)
    with pytest.raises(BudgetError, match="quote budgets"):
        DdlBudget.parse(252)
    config = DdlConfig(**TINY, variant="ddl-cc", budgets=["1:2", "4:3"])
    assert config.budget_list() == [DdlBudget(1, 2), DdlBudget(4, 3)]
    with pytest.raises(BudgetError, match=r"value_size 8 is not in 1\.\.4.*4:3"):
        DdlBudget.parse("8:3").check(config)
    # As after loading with fewer layers.
    assert DdlConfig(**TINY, variant="ddl-cc", budgets=["8:3"]).budget_list() == [DdlBudget(4, 3)]


def test_an_old_transformers_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    # Not the module by name: importing a model of transformers puts another one in its place.
    module = "nestling.configuration.configuration_ddl.transformers"
    monkeypatch.setattr(f"{module}.__version__", "4.57.6")
    with pytest.raises(ImportError, match=r"need transformers >= 5\.17, this is 4\.57\.6"):
        DdlConfig(**TINY)
