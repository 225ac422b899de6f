"""Controls of the delta residual: additions to value channels, and values of the first layer."""

from itertools import combinations
from pathlib import Path

import pytest
import torch
import transformers
from ddl_models import build, lively, tokens
from nestling.configuration.configuration_ddl import TRANSFORMERS_FLOOR
from nestling.modeling.ddl_layer import WeightedAddition
from nestling.modeling.modeling_ddl import DdlForCausalLM
from torch import Tensor
from transformers import DynamicCache

pytestmark = pytest.mark.skipif(
    tuple(map(int, transformers.__version__.split(".")[:2])) < TRANSFORMERS_FLOOR,
    reason="Deep Delta Learning decoders need transformers >= 5.17",
)


@pytest.mark.parametrize("values", [1, 2, 4])
@torch.no_grad()
def test_an_addition_equals_loops(values: int) -> None:
    """X'_j = X_j + b_j h, number by number in fp64."""
    update = WeightedAddition(4)
    generator = torch.Generator().manual_seed(0)
    update.channel_gain.add_(torch.randn(4, generator=generator))
    state = torch.randn(2, 3, values, 5, generator=generator)
    output = torch.randn(2, 3, 5, generator=generator)
    found = update(state, output, context=output, read=output)
    gains, x, h = (t.double().tolist() for t in (update.channel_gain, state, output))
    for row in range(2):
        for token in range(3):
            for value in range(values):
                for channel in range(5):
                    expected = x[row][token][value][channel]
                    expected += gains[value] * h[row][token][channel]
                    assert abs(float(found[row, token, value, channel]) - expected) < 1e-6


@pytest.mark.parametrize("variant", ["ddl-tokenconv", "ddl-cc-ec"])
@torch.no_grad()
def test_a_fresh_addition_is_the_baseline(variant: str) -> None:
    """Reads of equal channels whose weights sum to 1 see the vector of the baseline."""
    baseline, model = build("baseline"), build(variant, residual_update="additive")
    missing = model.load_state_dict(baseline.state_dict(), strict=False)
    assert not missing.unexpected_keys
    found, expected = (m(tokens(), use_cache=False).logits for m in (model, baseline))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def trained_state(variant: str, update: str) -> Tensor:
    """The state before the last block, (batch, tokens, v, d), after three steps from the start."""
    model = build(variant, residual_update=update).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(3):
        optimizer.zero_grad()
        model(tokens(), labels=tokens()).loss.backward()
        optimizer.step()
    with torch.no_grad():
        seen = model.model(tokens(), use_cache=False, output_hidden_states=True).hidden_states
    state: Tensor = seen[-2]
    return state


@pytest.mark.parametrize(
    ("variant", "update"),
    [
        ("ddl-cc", "additive"),
        ("ddl-tokenconv", "additive"),
        ("ddl-cc-ec", "erase_only"),
        ("ddl-ec", "erase_only"),
    ],
)
def test_value_channels_come_apart(variant: str, update: str) -> None:
    """Channels that are read and written alike would stay one channel."""
    state = trained_state(variant, update)
    size = state.square().mean().sqrt()
    for one, other in combinations(state.unbind(-2), 2):
        assert (one - other).square().mean().sqrt() > 1e-3 * size


def test_erasing_alone_keeps_equal_channels_equal() -> None:
    """Whatever reads them: only a spread of the embedding gives an erasure different channels."""
    first, *others = trained_state("ddl-cc", "erase_only").unbind(-2)
    assert all(torch.equal(first, other) for other in others)


@pytest.mark.parametrize("update", ["additive", "erase_only"])
@pytest.mark.parametrize("variant", ["ddl-tokenconv", "ddl-cc"])
@torch.no_grad()
def test_every_block_favours_another_channel(variant: str, update: str) -> None:
    model = build(variant, residual_update=update).model
    shares = [layer.read.weight[:, 0] for layer in model.layers]
    assert [int(share.argmax()) for share in shares] == [0, 1, 2]
    assert all(float(share.sum()) == 1 for share in shares)
    assert model.last_read.weight[:, 0].tolist() == [0.25] * 4


def test_loaded_reads_are_not_started_again() -> None:
    """A part of a read that a checkpoint lacks is started, the part that it has is kept."""
    model = lively("ddl-tokenconv", residual_update="additive")
    weights = model.state_dict()
    lacking = "model.layers.1.read.kernel_change"
    # Copies: loading may take the tensors themselves.
    kept = {name: tensor.clone() for name, tensor in weights.items() if name != lacking}
    loaded = DdlForCausalLM.from_pretrained(None, config=model.config, state_dict=kept)
    for name, tensor in loaded.state_dict().items():
        expected = torch.zeros_like(tensor) if name == lacking else weights[name]
        assert torch.equal(tensor, expected), name


@pytest.mark.parametrize("way", ["fresh", "loaded", "sliced", "made trainable"])
def test_a_random_direction_stays_as_it_is(way: str, tmp_path: Path) -> None:
    """Loading makes every parameter trainable, which would turn the control into a value map."""
    model = lively("ddl-cc", residual_update="random_k")
    if way == "loaded":
        model.save_pretrained(tmp_path)
        model = DdlForCausalLM.from_pretrained(tmp_path)
    if way == "sliced":
        model = model.slice("2:2")
    if way == "made trainable":
        model.requires_grad_(True)
    fixed = {n: p for n, p in model.named_parameters() if n.endswith("update.key.weight")}
    assert len(fixed) == 2 * model.config.num_hidden_layers
    if way != "made trainable":
        assert not any(parameter.requires_grad for parameter in fixed.values())
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer = torch.optim.AdamW(model.train().parameters(), lr=1e-2, weight_decay=0.1)
    model(tokens(), labels=tokens()).loss.backward()
    optimizer.step()
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]) == (name in fixed), name


@pytest.mark.parametrize("name", ["value residual", "baseline, value residual"])
@torch.no_grad()
def test_values_are_mixed_with_those_of_the_first_layer(name: str) -> None:
    """What the cache holds is what is attended to: l1 v_l + l2 v_0."""
    model = lively(name)
    own: list[Tensor] = []
    for layer in model.model.layers:
        layer.attention.value.register_forward_hook(lambda *call: own.append(call[2]))
    cache = DynamicCache(config=model.config)
    model(tokens(), past_key_values=cache, use_cache=True)
    heads = [value.unflatten(-1, (4, 8)).transpose(1, 2) for value in own]
    torch.testing.assert_close(cache.layers[0].values, heads[0])
    for index in (1, 2):
        shares = model.model.layers[index].attention.value_residual.shares
        expected = shares[0] * heads[index] + shares[1] * heads[0]
        assert shares[0] != shares[1]
        torch.testing.assert_close(cache.layers[index].values, expected)


@torch.no_grad()
def test_a_share_of_nothing_changes_nothing() -> None:
    plain, model = lively("ddl-cc"), build("value residual")
    missing = model.load_state_dict(plain.state_dict(), strict=False)
    assert len(missing.missing_keys) == 2
    for layer in model.model.layers[1:]:
        assert layer.attention.value_residual.shares.tolist() == [0.5, 0.5]
        layer.attention.value_residual.shares.copy_(torch.tensor([1.0, 0.0]))
    found, expected = (m(tokens(), use_cache=False).logits for m in (model, plain))
    torch.testing.assert_close(found, expected)
