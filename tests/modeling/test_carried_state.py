"""Rebuilt states of compiled code: the gradients of kept states, without keeping them."""

from typing import Any

import pytest
import torch
import transformers
from ddl_models import lively, tokens
from nestling.configuration.configuration_ddl import TRANSFORMERS_FLOOR
from nestling.modeling.carried_state import CarriedState
from nestling.modeling.modeling_ddl import DdlForCausalLM
from torch import Tensor

pytestmark = pytest.mark.skipif(
    tuple(map(int, transformers.__version__.split(".")[:2])) < TRANSFORMERS_FLOOR,
    reason="Deep Delta Learning decoders need transformers >= 5.17",
)


def chain(carried: bool) -> list[Tensor]:
    """Two blocks of reads, products and rewrites: the result, and the gradients of all inputs."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64, requires_grad=True)

    start, weights = normal(2, 3, 2, 5), normal(2, 5)
    raws, steps = [normal(2, 3, 5) for _ in range(4)], [normal(2, 3, 2) for _ in range(4)]
    state, seen = start, torch.zeros((), dtype=torch.float64)
    channels = state.unbind(-2)
    carrier = CarriedState(channels, blocks=2) if carried else None
    for block in range(2):
        changes = [(raws[i], steps[i]) for i in (2 * block, 2 * block + 1)]
        if carrier is not None:
            seen = seen + carrier.read(channels, weights.unbind(0)).sin().sum()
            seen = seen + sum(a.sin().sum() for a in carrier.along(channels, changes[0][0]))
            apart = [(raw, step.split(1, dim=-1)) for raw, step in changes]
            channels = carrier.rewritten(channels, *apart)
            state = torch.stack(channels, dim=-2)
        else:
            seen = seen + (state * weights).sum(-2).sin().sum()
            seen = seen + (state * changes[0][0].unsqueeze(-2)).sum(-1).sin().sum()
            for raw, step in changes:
                state = state + step.unsqueeze(-1) * raw.unsqueeze(-2)
    total = seen + state.cos().sum()
    inputs = [start, weights, *raws, *steps]
    return [total.detach(), *torch.autograd.grad(total, inputs)]


def test_gradients_are_those_of_plain_tensors() -> None:
    for found, expected in zip(chain(carried=True), chain(carried=False), strict=True):
        torch.testing.assert_close(found, expected, atol=1e-12, rtol=1e-12)


def compiled_step(model: DdlForCausalLM) -> tuple[list[Tensor], list[Tensor]]:
    """Return loss and gradients of a compiled step, and what it kept of the size of a channel."""
    ids = tokens()
    kept: list[Tensor] = []
    channel = torch.Size((*ids.shape, model.config.hidden_size))

    def keep(tensor: Tensor) -> Tensor:
        if tensor.shape == channel:
            kept.append(tensor.detach().clone())
        return tensor

    def loss_of(ids: Tensor) -> Any:
        return model(input_ids=ids, labels=ids, use_cache=False).loss

    torch.compiler.reset()
    try:
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            loss = torch.compile(loss_of, fullgraph=True, backend="aot_eager_decomp_partition")(ids)
        wanted = [parameter for parameter in model.parameters() if parameter.requires_grad]
        return [loss.detach(), *torch.autograd.grad(loss, wanted)], kept
    finally:
        torch.compiler.reset()


@torch.no_grad()
def kept_channels(model: DdlForCausalLM, kept: list[Tensor]) -> list[int]:
    """Count the channels of the state after each block that are among what was kept."""
    states: list[Tensor] = []
    for layer in model.model.layers:
        layer.register_forward_hook(lambda _, __, output: states.append(output[0]))
    model(tokens(), use_cache=False)
    return [
        sum(any(torch.allclose(channel, tensor) for tensor in kept) for channel in state.unbind(-2))
        for state in states
    ]


@pytest.mark.parametrize("name", ["ddl-cc", "ddl-cc-ec"])
def test_a_compiled_step_keeps_one_state(name: str) -> None:
    """Found among what was kept by their numbers: of all states, the last one and no other."""
    models = [lively(name, rebuild_state=rebuilds).double().train() for rebuilds in (True, False)]
    (found, kept), (expected, stored) = map(compiled_step, models)
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-10, rtol=1e-8)
    values = models[0].config.d_value
    assert kept_channels(models[0], kept) == [0, 0, values]  # three blocks
    # Without it, states between blocks are kept, but for channels that a compiler computes again.
    assert all(kept_channels(models[1], stored))


@pytest.mark.parametrize("frozen", ["embeddings", "read", "layers.0", "layers.2"])
def test_parts_may_be_frozen(frozen: str) -> None:
    """Adapters train on frozen weights: the state then begins, or is read, without a gradient."""
    found, expected = [], []
    for rebuilds, results in ((True, found), (False, expected)):
        model = lively("ddl-cc", rebuild_state=rebuilds).double().train()
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(frozen not in name)
        results += compiled_step(model)[0]
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-10, rtol=1e-8)


def test_checkpointing_is_refused_beside_it() -> None:
    model = lively("ddl-cc", rebuild_state=True).train()
    model.gradient_checkpointing_enable()
    with pytest.raises(ValueError, match="exclude each other"):
        model(tokens(), use_cache=False)
