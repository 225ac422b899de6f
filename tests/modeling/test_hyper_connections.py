"""Hyper-connections: equal to loops over one token, doubly stochastic, at first the baseline."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from ddl_models import build, lively, tokens
from nestling.configuration.configuration_ddl import TRANSFORMERS_FLOOR
from nestling.modeling.hyper_connections import (
    FLOOR,
    HyperConnection,
    read_streams,
    sinkhorn,
    write_streams,
)
from nestling.modeling.modeling_ddl import DdlForCausalLM
from safetensors.torch import load_file, save_file
from torch import Tensor

pytestmark = pytest.mark.skipif(
    tuple(map(int, transformers.__version__.split(".")[:2])) < TRANSFORMERS_FLOOR,
    reason="Deep Delta Learning decoders need transformers >= 5.17",
)

STREAMS, SIZE, EPS = 4, 6, 1e-5


def lively_connection(iterations: int = 20) -> HyperConnection:
    torch.manual_seed(0)
    connection = HyperConnection(STREAMS, SIZE, iterations, EPS, std=0.3, index=0)
    with torch.no_grad():
        for parameter in connection.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.3)
    return connection


def numbers(tensor: Tensor) -> Any:
    """Nested lists of Python floats, which are fp64."""
    return tensor.detach().double().tolist()


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def reference(module: HyperConnection, state: Tensor, output: Tensor) -> tuple[list, list]:
    """One token by the formulas: what its sublayer reads, and its state afterwards.

    Args:
        module: gives the weights.
        state: (v, d).
        output: (d,).
    """
    x, h, v = numbers(state), numbers(output), len(state)
    square = sum(x[j][c] ** 2 for j in range(v) for c in range(SIZE)) / (v * SIZE)
    rms = math.sqrt(square + EPS)

    def mapped(weight: Any) -> float:
        return sum(weight[j][c] * x[j][c] / rms for j in range(v) for c in range(SIZE))

    read_map, write_map, mix_map = map(numbers, (module.read_map, module.write_map, module.mix_map))
    read_bias, write_bias = numbers(module.read_bias), numbers(module.write_bias)
    mix_bias = numbers(module.mix_bias)
    scales = numbers(module.scales)
    read = [
        sigmoid(scales[0] * mapped(read_map[j]) + read_bias[j]) + FLOOR for j in range(v)
    ]
    write = [2 * sigmoid(scales[1] * mapped(write_map[j]) + write_bias[j]) for j in range(v)]
    mix = [
        [
            math.exp(scales[2] * mapped(mix_map[i][j]) + mix_bias[i][j])
            for j in range(v)
        ]
        for i in range(v)
    ]
    mix = [[mix[i][j] / sum(mix[i]) + FLOOR for j in range(v)] for i in range(v)]
    for _ in range(module.iterations):
        sums = [sum(mix[i][j] for i in range(v)) for j in range(v)]
        mix = [[mix[i][j] / sums[j] for j in range(v)] for i in range(v)]
        mix = [[mix[i][j] / sum(mix[i]) for j in range(v)] for i in range(v)]
    given = [sum(read[j] * x[j][c] for j in range(v)) for c in range(SIZE)]
    after = [
        [sum(mix[i][j] * x[j][c] for j in range(v)) + write[i] * h[c] for c in range(SIZE)]
        for i in range(v)
    ]
    return given, after


@pytest.mark.parametrize("streams", [1, 2, 3, 4])
@pytest.mark.parametrize("iterations", [1, 20])
@torch.no_grad()
def test_equals_loops_over_one_token(streams: int, iterations: int) -> None:
    module = lively_connection(iterations)
    generator = torch.Generator().manual_seed(1)
    state = torch.randn(2, 3, streams, SIZE, generator=generator)
    output = torch.randn(2, 3, SIZE, generator=generator)
    connection = module(state)
    given = read_streams(state, connection)
    after = write_streams(state, output, connection)
    for row in range(2):
        for token in range(3):
            expected = reference(module, state[row, token], output[row, token])
            torch.testing.assert_close(given[row, token], torch.tensor(expected[0]))
            torch.testing.assert_close(after[row, token], torch.tensor(expected[1]))


@torch.no_grad()
def test_fp64_stays_fp64() -> None:
    module = lively_connection().double()
    generator = torch.Generator().manual_seed(1)
    state = torch.randn(1, 1, STREAMS, SIZE, generator=generator).double()
    output = torch.randn(1, 1, SIZE, generator=generator).double()
    connection = module(state)
    expected = reference(module, state[0, 0], output[0, 0])
    found = read_streams(state, connection), write_streams(state, output, connection)
    for mine, theirs in zip(found, expected, strict=True):
        wanted = torch.tensor(theirs, dtype=torch.float64)
        torch.testing.assert_close(mine[0, 0], wanted, atol=1e-13, rtol=0)


def test_the_mixing_is_doubly_stochastic() -> None:
    """So no eigenvalue is beyond 1, however large the logits are."""
    generator = torch.Generator().manual_seed(2)
    for size in (1.0, 3.0):
        logits = size * torch.randn(50, STREAMS, STREAMS, generator=generator)
        errors = []
        for iterations in (1, 5, 20):
            mix = sinkhorn(logits, iterations)
            torch.testing.assert_close(mix.sum(-1), torch.ones(50, STREAMS))
            errors.append(float((mix.sum(-2) - 1).abs().mean()))
            assert (mix >= 0).all()
        assert errors[0] > 10 * errors[2], errors
        assert float(torch.linalg.eigvals(mix).abs().max()) <= 1 + 1e-5


def test_extreme_logits_stay_finite() -> None:
    """A column that underflows in every row has no sum to divide by."""
    logits = torch.zeros(STREAMS, STREAMS)
    logits[:, 0] = -300.0
    logits.requires_grad_(True)
    mix = sinkhorn(logits, 20)
    mix.square().sum().backward()
    assert mix.isfinite().all() and logits.grad is not None and logits.grad.isfinite().all()


@torch.no_grad()
def test_a_fresh_model_is_the_baseline() -> None:
    """Every stream is what the baseline's vector is, and the first sublayer reads the embedding."""
    baseline, model = build("baseline"), build("mhc", d_value=3)
    shared = baseline.state_dict()
    missing = model.load_state_dict(shared, strict=False)
    assert not missing.unexpected_keys
    seen: list[Tensor] = []
    first = model.model.layers[0].attention_norm
    first.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    found = model(tokens(), use_cache=False, output_hidden_states=True)
    expected = baseline(tokens(), use_cache=False, output_hidden_states=True)
    torch.testing.assert_close(seen[0], model.model.embeddings(tokens()))
    for streams, vector in zip(found.hidden_states[:-1], expected.hidden_states[:-1], strict=True):
        torch.testing.assert_close(streams, vector.expand_as(streams), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found.logits, expected.logits, atol=1e-5, rtol=1e-5)


def test_the_streams_part_with_the_first_step() -> None:
    """Equal streams with equal gradients would stay one stream for ever."""
    model = build("mhc").train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    apart = []
    for _ in range(20):
        output = model(tokens(), labels=tokens(), output_hidden_states=True)
        state = output.hidden_states[-2]
        apart.append(float((state[..., 0, :] - state[..., 1, :]).detach().abs().max()))
        output.loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert apart[0] < 1e-6 < 1e-4 < apart[1] and apart[-1] > 0.1, apart


@torch.no_grad()
def test_under_autocast_the_state_is_mixed_in_full_precision() -> None:
    module = lively_connection()
    state = torch.randn(2, 3, STREAMS, SIZE, generator=torch.Generator().manual_seed(3))
    output = torch.zeros(2, 3, SIZE)
    expected = write_streams(state, output, module(state))
    with torch.autocast("cpu", torch.bfloat16):
        connection = module(state)
        found = write_streams(state, output.bfloat16(), connection)
    assert all(part.dtype == torch.float32 for part in connection)
    torch.testing.assert_close(found, expected)


@torch.no_grad()
def test_a_start_does_not_replace_what_was_loaded(tmp_path: Path) -> None:
    """As where a file lacks one tensor of a module, and the whole module is asked to start."""
    model = lively("mhc")
    model.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    lost = "model.layers.1.mlp_update.write_map"
    del weights[lost]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    again = DdlForCausalLM.from_pretrained(tmp_path)
    changed = [n for n, p in again.named_parameters() if not torch.equal(p, model.get_parameter(n))]
    assert changed == [lost]
