"""Initial scales and nested layers: a corner of a layer is a layer."""

import pytest
import torch
from nestling.configuration import DeltaEncoderConfig
from nestling.modeling import DeltaEncoderForSequenceClassification
from nestling.modeling.nested_layers import NestedLayerNorm, NestedLinear, leading_corner
from torch import nn


def test_a_corner_of_a_linear_layer_is_a_linear_layer() -> None:
    full = NestedLinear(10, 8, bias=True)
    small = nn.Linear(6, 3)
    small.load_state_dict(
        {
            key: leading_corner(full.state_dict()[key], value.shape)
            for key, value in small.state_dict().items()
        }
    )
    x = torch.randn(2, 4, 6)
    torch.testing.assert_close(full(x, 3), small(x))
    assert full(x).shape == (2, 4, 8)


@pytest.mark.parametrize("bias", [True, False])
def test_a_corner_of_a_norm_has_its_own_statistics(bias: bool) -> None:
    full = NestedLayerNorm(10, 1e-5, bias)
    with torch.no_grad():
        for parameter in full.parameters():
            parameter.normal_()
    x = torch.randn(4, 6)
    expected = nn.functional.layer_norm(
        x, (6,), full.weight[:6], full.bias[:6] if bias else None, 1e-5
    )
    assert torch.equal(full(x), expected)


def test_a_corner_is_a_copy() -> None:
    source = torch.arange(12.0).view(3, 4)
    corner = leading_corner(source, torch.Size([2, 3]))
    assert corner.is_contiguous()
    corner.zero_()
    assert source[0, 1] == 1.0
    whole = leading_corner(source, source.shape)
    assert whole.data_ptr() != source.data_ptr()


def test_initial_scales_follow_the_role_of_a_weight() -> None:
    torch.manual_seed(0)
    layers, hidden, std = 8, 128, 0.02
    config = DeltaEncoderConfig(
        vocab_size=400,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=4,
        intermediate_size=256,
        pad_token_id=0,
        initializer_range=std,
        mlp_bias=True,
        num_labels=64,
    )
    model = DeltaEncoderForSequenceClassification(config)
    residual = std / (2 * layers) ** 0.5
    wanted = {
        "model.embeddings.token.weight": std,
        "model.layers.3.attention.query_key_value.weight": std,
        "model.layers.3.mlp.up.weight": std,
        "model.layers.3.mlp.gate.weight": std,
        "model.layers.3.attention.output.weight": residual,
        "model.layers.3.mlp.down.weight": residual,
        "head.dense.weight": residual,
        "classifier.weight": hidden**-0.5,
    }
    parameters = dict(model.named_parameters())
    truncated = 0.8796  # standard deviation of a unit normal cut at two standard deviations
    for name, scale in wanted.items():
        assert parameters[name].std().item() == pytest.approx(scale * truncated, rel=0.05), name
        assert parameters[name].abs().max() <= 2 * scale + 1e-6, name
    assert (parameters["model.layers.3.mlp_norm.weight"] == 1).all()
    assert (parameters["model.layers.3.mlp.up.bias"] == 0).all()
