"""Every variant, control and preset computes what its formulas say, and gates stay in fp32."""

from functools import partial
from typing import Any

import pytest
import torch
import transformers
from ddl_models import SMALL, tokens
from nestling.configuration.configuration_ddl import TRANSFORMERS_FLOOR, DdlConfig
from nestling.configuration.ddl_settings import MATRIX_UPDATES, PRESETS, UPDATES, VARIANTS
from nestling.modeling.ddl_sublayers import RmsNorm
from nestling.modeling.delta_gates import BetaGate, WideLinear
from nestling.modeling.modeling_ddl import DdlForCausalLM
from reference_ddl import logits_of, normed

pytestmark = pytest.mark.skipif(
    tuple(map(int, transformers.__version__.split(".")[:2])) < TRANSFORMERS_FLOOR,
    reason="Deep Delta Learning decoders need transformers >= 5.17",
)
TOLERANCE = 2e-5

# What is written besides the variant; every control, every source of the value, the other settings.
SETTINGS: dict[str, dict[str, Any]] = {
    **{update: {"residual_update": update} for update in UPDATES},
    "v_map": {"mapping": "v_map"},
    "v_map, write_only": {"mapping": "v_map", "residual_update": "write_only"},
    "value from the input": {
        "v_source": "input", "v_activation": "sigmoid", "v_scale": 2.5, "v_bias": True,
    },
    "value from the output": {"v_source": "backbone", "v_bias": True},
    "two-layer gate": {"beta_hidden": 8},
    "value residual": {"value_residual": True},
    "rotated first, unnormed": {"rope_before_qk_norm": True, "qk_norm": False},
    "wide guard": {"k_eps": 0.3, "beta_init": 1.5},
    "three columns": {"conv_kernel": 3},
    "one column": {"conv_kernel": 1},
}  # fmt: skip
BASELINE = ("delta", "value residual", "rotated first, unnormed")


def fits(variant: str, name: str) -> bool:
    """Whether the configuration takes the settings with a variant."""
    if variant == "baseline":
        return name in BASELINE
    return VARIANTS[variant][0] or SETTINGS[name].get("residual_update") not in MATRIX_UPDATES


CASES = [(variant, name) for variant in VARIANTS for name in SETTINGS if fits(variant, name)]


@pytest.mark.parametrize("preset", [None, *PRESETS])
@pytest.mark.parametrize(("variant", "name"), CASES)
@torch.no_grad()
def test_it_computes_its_formulas(variant: str, name: str, preset: str | None) -> None:
    sizes = {**SMALL, "hidden_size": 24, "num_hidden_layers": 2, "variant": variant}
    settings = {**sizes, "d_value": 3 if VARIANTS[variant][0] else 1, **SETTINGS[name]}
    make = DdlConfig if preset is None else partial(DdlConfig.preset, preset)
    torch.manual_seed(0)
    model = DdlForCausalLM(make(**settings)).eval()
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
    ids = tokens(2, 9)
    expected = logits_of(model.config, model.state_dict(), ids)
    assert expected.abs().max() > 0.5
    found = model(ids, use_cache=False).logits
    assert float((found.double() - expected).abs().max()) <= TOLERANCE


@pytest.mark.parametrize("hidden", [None, 8])
@torch.no_grad()
def test_gates_are_in_fp32_under_autocast(hidden: int | None) -> None:
    """A logit in bfloat16 has 8 bits: beta near 0 or 2 would move in steps."""
    generator = torch.Generator().manual_seed(0)
    gate = BetaGate(16, hidden, 0.5)
    for parameter in gate.parameters():
        parameter.add_(torch.randn(parameter.shape, generator=generator))
    context = torch.randn(2, 5, 16, generator=generator)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = gate(context)
    assert found.dtype == torch.float32
    assert torch.equal(found, gate(context))
    # Rounded inputs and weights are computed with as they are, not rounded once more.
    rounded = gate.bfloat16()(context.bfloat16())
    assert rounded.dtype == torch.float32
    assert torch.equal(rounded, gate.float()(context.bfloat16().float()))


@torch.no_grad()
def test_a_wide_map_keeps_what_is_wider() -> None:
    layer = WideLinear(4, 3)
    assert layer(torch.ones(2, 4, dtype=torch.float64)).dtype == torch.float64
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer(torch.ones(2, 4, dtype=torch.bfloat16)).dtype == torch.float32


@torch.no_grad()
def test_a_norm_is_in_fp32_and_keeps_fp64() -> None:
    norm = RmsNorm(16, 1e-5)
    generator = torch.Generator().manual_seed(0)
    norm.weight.add_(torch.randn(16, generator=generator))
    states = torch.randn(2, 5, 16, generator=generator)
    expected = normed(states.double(), norm.weight.double(), 1e-5)
    torch.testing.assert_close(norm(states), expected.float())
    rounded = states.bfloat16()
    torch.testing.assert_close(norm(rounded), norm(rounded.float()).bfloat16(), atol=0, rtol=0)
    wide = norm.double()(states.double())
    assert wide.dtype == torch.float64
    torch.testing.assert_close(wide, expected, atol=1e-14, rtol=0)
