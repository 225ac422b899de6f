"""Checkpoints of the published code compute the same in ours, and go back."""

from typing import Any

import pytest
import torch
import transformers
from nestling.configuration.configuration_ddl import TRANSFORMERS_FLOOR, DdlConfig
from nestling.modeling.modeling_ddl import DdlForCausalLM
from nestling.modeling.official_ddl_weights import folded_read, from_official, to_official
from reference_official_ddl import State, logits_of, random_state

pytestmark = pytest.mark.skipif(
    tuple(map(int, transformers.__version__.split(".")[:2])) < TRANSFORMERS_FLOOR,
    reason="Deep Delta Learning decoders need transformers >= 5.17",
)
IDS = torch.randint(0, 30, (2, 11), generator=torch.Generator().manual_seed(5))
FILES: dict[str, dict[str, Any]] = {
    "baseline": {"kind": None, "is_baseline": True},
    "ddl": {"kind": None},
    "ddl-tokenconv": {"kind": "token"},
    "ddl-ec": {"kind": "token", "spread": True},
    "ddl-cc": {"kind": "channel"},
    "ddl-cc-ec": {"kind": "channel", "spread": True},
}
SETTINGS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "two-layer gate": ({"kind": None, "gate": 5}, {"ddl_beta_single_linear": False}),
    "linear value": ({"kind": "channel"}, {"ddl_v_sigmoid": False}),
    "scale, guard and base": (
        {"kind": "token"},
        {"ddl_v_sigmoid_scale": 2.5, "ddl_k_eps": 0.5, "rope_base": 50.0},
    ),
    "constant scalar": (
        {"kind": None},
        {"ddl_v_dim1_constant": True, "ddl_v_dim1_constant_value": 1.5},
    ),
    "constant vector": (
        {"kind": "channel", "spread": True},
        {"ddl_v_constant": True, "ddl_v_constant_value": 2.0},
    ),
    "kernels that differ": (
        {"kind": "token", "spread": True, "read_kernel": 2, "embed_kernel": 5, "values": 3},
        {},
    ),
    "odd kernel of channels": ({"kind": "channel", "read_kernel": 3, "values": 3}, {}),
}


@torch.no_grad()
def distance(model: DdlForCausalLM, expected: torch.Tensor) -> float:
    return float((model(IDS).logits.double() - expected).abs().max())


@pytest.mark.parametrize("variant", list(FILES))
def test_each_published_file_computes_the_same(variant: str) -> None:
    state = random_state(**FILES[variant])
    model = from_official(state, {})
    assert model.config.variant == variant
    assert distance(model, logits_of(state, {}, IDS)) < 1e-5


@pytest.mark.parametrize("name", list(SETTINGS))
def test_each_setting_is_honoured(name: str) -> None:
    shape, config = SETTINGS[name]
    state = random_state(**shape)
    expected = logits_of(state, config, IDS)
    assert distance(from_official(state, config), expected) < 1e-5
    if config and "gate" not in shape:
        # Else the setting would not matter here, and nothing would have been tested.
        assert (logits_of(state, {}, IDS) - expected).abs().max() > 1e-2


def test_both_paddings_of_a_channel_read() -> None:
    state = random_state("channel", spread=True)
    flag = {"ddl_state_dv_shortconv_causal": True}
    same, causal = (logits_of(state, {}, IDS, is_causal) for is_causal in (False, True))
    assert (same - causal).abs().max() > 1e-2
    assert distance(from_official(state, flag, causal_read=True), causal) < 1e-5
    assert distance(from_official(state, flag, causal_read=False), same) < 1e-5
    with pytest.raises(ValueError, match="only the accelerated model file obeys"):
        from_official(state, flag)
    # The flag of a file without a read by channels says nothing.
    from_official(random_state("token"), flag)


@pytest.mark.parametrize("left", [0, 1, 2])
def test_a_folded_read_is_the_convolution_and_the_read(left: int) -> None:
    generator = torch.Generator().manual_seed(0)
    weight, read, state = (
        torch.randn(shape, generator=generator).double() for shape in ((5, 3), (4,), (7, 5, 4))
    )
    padded = torch.nn.functional.pad(state, (left, 2 - left))
    convolved = torch.nn.functional.conv1d(padded, weight.unsqueeze(1), groups=5)
    expected = (convolved * read).sum(-1)
    assert torch.allclose((state * folded_read(weight, read, left).T).sum(-1), expected, atol=1e-12)


@pytest.mark.parametrize("variant", list(FILES))
def test_there_and_back(variant: str) -> None:
    state = random_state(**FILES[variant])
    config, back = to_official(from_official(state, {}))
    assert {name: tensor.shape for name, tensor in back.items()} == {
        name: tensor.shape for name, tensor in state.items()
    }
    expected = logits_of(state, {}, IDS)
    assert (logits_of(back, config, IDS) - expected).abs().max() < 1e-5
    for name, tensor in back.items():
        # Another kernel and read vector may give the same read by channels.
        if not name.endswith((".read", "compress.weight", "readout.weight")) or "token" in str(
            FILES[variant]["kind"]
        ):
            assert torch.allclose(tensor, state[name], atol=1e-6), name


@pytest.mark.parametrize("variant", ["ddl", "ddl-cc-ec"])
def test_a_model_of_ours_has_an_official_form(variant: str) -> None:
    config = DdlConfig.preset(
        "reference-code",
        variant=variant,
        vocab_size=30,
        hidden_size=18,
        num_hidden_layers=2,
        num_attention_heads=3,
        head_dim=8,
        intermediate_size=48,
        beta_hidden=5,
    )
    torch.manual_seed(0)
    model = DdlForCausalLM(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not name.endswith("inner.bias"):
                parameter.add_(torch.randn_like(parameter), alpha=0.3)
    official, state = to_official(model)
    assert distance(model, logits_of(state, official, IDS)) < 1e-5
    with torch.no_grad():
        model.model.layers[1].mlp_update.beta.inner.bias[0] = 0.5
    with pytest.raises(ValueError, match=r"layers.1.mlp_update.beta.inner.bias is not zero"):
        to_official(model)


@pytest.mark.parametrize("variant", ["baseline", "ddl", "ddl-cc-ec"])
def test_the_preset_goes_there_and_back_where_8_d_is_no_multiple_of_3(variant: str) -> None:
    config = DdlConfig.preset(
        "reference-code", variant=variant, vocab_size=30, hidden_size=64, num_hidden_layers=1,
        num_attention_heads=2,
    )  # fmt: skip
    assert config.intermediate_size == 170
    torch.manual_seed(0)
    model = DdlForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    official, state = to_official(model)
    again = from_official(state, official)
    with torch.no_grad():
        assert distance(again, model(IDS).logits.double()) < 1e-5
        assert model(IDS).logits.abs().max() > 0.1


def without(state: State, name: str) -> State:
    return {key: tensor for key, tensor in state.items() if key != name}


def test_a_checkpoint_may_name_the_tied_tensor_either_way() -> None:
    state = random_state(None)
    expected = logits_of(state, {}, IDS)
    for name in ("lm_head.weight", "transformer.wte.weight"):
        compiled = {f"_orig_mod.{key}": tensor for key, tensor in without(state, name).items()}
        assert distance(from_official(compiled, {}), expected) < 1e-5


@pytest.mark.parametrize(
    "change, config, named",
    [
        ({}, {"use_k_shift": True}, "use_k_shift True"),
        ({}, {"rope_ratio": 0.5}, "rope_ratio 0.5"),
        ({}, {"hidden_size": 768}, "hidden_size 768 .* tensors, which have 18"),
        ({"transformer.wte.weight": None, "lm_head.weight": None}, {}, "no checkpoint of the"),
        ({"ln_f.weight": None}, {}, "lacks what becomes model.final_norm.weight"),
        ({"transformer.h.0.attn.subln.weight": torch.ones(8)}, {}, "subln.weight is no tensor of"),
        ({"lm_head.weight": torch.zeros(30, 18)}, {}, "lm_head.weight differs"),
    ],
)
def test_what_cannot_be_read_is_one_line(
    change: dict[str, Any], config: dict[str, Any], named: str
) -> None:
    state = {**random_state("channel"), **change}
    state = {name: tensor for name, tensor in state.items() if tensor is not None}
    with pytest.raises(ValueError, match=named) as caught:
        from_official(state, config)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "changes, named",
    [
        ({"v_source": "context"}, "v_source 'context' is not its 'input'"),
        ({"rope_before_qk_norm": False}, "rotated before their norm"),
        ({"mapping": "v_map"}, "with 'v_map'"),
        ({"residual_update": "write_only"}, "no residual_update 'write_only'"),
        ({"intermediate_size": 50}, r"50 is not its floor\(8 d / 3\) = 48"),
        ({"rms_norm_eps": 1e-6}, "1e-06 is not its 1e-05"),
        ({"tie_word_embeddings": False}, "head is tied"),
        ({"value_residual": True}, "value_residual"),
        ({"d_value": 1, "sliced_from": "1:2"}, "at least two value channels"),
    ],
)
def test_what_has_no_official_form_is_one_line(changes: dict[str, Any], named: str) -> None:
    sizes = {"vocab_size": 30, "hidden_size": 18, "num_hidden_layers": 2, "intermediate_size": 48}
    values = {"num_attention_heads": 3, "head_dim": 8, "variant": "ddl-cc", **sizes, **changes}
    model = DdlForCausalLM(DdlConfig.preset("reference-code", **values))
    with pytest.raises(ValueError, match=named) as caught:
        to_official(model)
    assert "\n" not in str(caught.value) and "nestling export" in str(caught.value)


def test_imported_models_train_and_slice() -> None:
    """Budgets are those asked for, and weights are leaves of their own."""
    model = from_official(random_state("channel"), {}, budgets=["1:1", "4:2"]).train()
    model(IDS, labels=IDS).loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    model.eval()
    with torch.no_grad():
        expected = model(IDS, budget="1:1").logits
        assert (model.slice("1:1")(IDS).logits - expected).abs().max() < 1e-5
