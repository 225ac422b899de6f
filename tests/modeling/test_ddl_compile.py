"""Decoders compile into one graph, for any length, and compute and learn what eager ones do."""

from typing import Any

import pytest
import torch
import transformers
from nestling.configuration.configuration_ddl import TRANSFORMERS_FLOOR, DdlConfig
from nestling.configuration.ddl_settings import UPDATES, VARIANTS
from nestling.modeling.modeling_ddl import DdlForCausalLM
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers.cache_utils import DynamicCache

pytestmark = pytest.mark.skipif(
    tuple(map(int, transformers.__version__.split(".")[:2])) < TRANSFORMERS_FLOOR,
    reason="Deep Delta Learning decoders need transformers >= 5.17",
)

CASES: dict[str, dict[str, Any]] = {
    **{variant: {"variant": variant} for variant in VARIANTS},
    **{
        update: {"variant": "ddl-cc", "residual_update": update}
        for update in UPDATES
        if update != "delta"
    },
    "v_map": {"variant": "ddl", "mapping": "v_map"},
    "value_residual": {"variant": "ddl", "value_residual": True},
    "reference code": {
        "variant": "ddl-cc",
        "v_source": "input",
        "v_activation": "sigmoid",
        "v_scale": 4.0,
        "beta_hidden": 8,
    },
    "rebuild_state": {"variant": "ddl-cc", "rebuild_state": True},
}


def build(**values: Any) -> DdlForCausalLM:
    torch.manual_seed(0)
    sizes = {"num_hidden_layers": 1, "max_position_embeddings": 64, **values}
    model = DdlForCausalLM(
        DdlConfig(vocab_size=29, hidden_size=16, num_attention_heads=2, **sizes)
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.05)
    return model


def tokens(length: int) -> Tensor:
    return torch.randint(0, 29, (2, length), generator=torch.Generator().manual_seed(length))


def run(model: DdlForCausalLM, ids: Tensor) -> tuple[Tensor, Tensor]:
    output = model(input_ids=ids, labels=ids, use_cache=False)
    return output.logits, output.loss


@pytest.fixture(autouse=True)
def forget_graphs() -> Any:
    torch._dynamo.reset()  # type: ignore[no-untyped-call]
    yield
    torch._dynamo.reset()  # type: ignore[no-untyped-call]


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("values", CASES.values(), ids=CASES.keys())
def test_a_decoder_is_one_graph(values: dict[str, Any], training: bool) -> None:
    """`fullgraph` raises at the first break."""
    model = build(**values).train(training)
    compiled = torch.compile(run, fullgraph=True, backend="eager")
    ids = tokens(8)
    for found, expected in zip(compiled(model, ids), run(model, ids), strict=True):
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["ddl-ec", "ddl-cc", "additive", "write_only"])
def test_gradients_equal_eager_ones_at_every_length(name: str) -> None:
    """Lengths with and without whole groups of neighbours; no graph of its own for each."""
    model = build(**CASES[name]).train()
    parameters = list(model.parameters())
    graphs = 0

    def counting(graph: Any, inputs: Any) -> Any:
        nonlocal graphs
        graphs += 1
        return graph.forward

    compiled = torch.compile(run, fullgraph=True, backend=counting, dynamic=True)
    for length in (8, 16, 24, 9, 13):
        ids = tokens(length)
        (logits, loss), (expected, eager_loss) = compiled(model, ids), run(model, ids)
        torch.testing.assert_close(logits, expected, atol=1e-5, rtol=0)
        found = torch.autograd.grad(loss, parameters)
        wanted = torch.autograd.grad(eager_loss, parameters)
        for mine, theirs in zip(found, wanted, strict=True):
            torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=0)
    assert graphs <= 2  # divisible or not


def smaller_budget(model: DdlForCausalLM) -> str:
    return f"{(model.config.d_value + 1) // 2}:1"


@pytest.mark.parametrize("variant", ["ddl", "ddl-ec", "ddl-cc-ec"])
def test_gradients_of_budgets_on_padded_rows_equal_eager_ones(variant: str) -> None:
    model = build(variant=variant, num_hidden_layers=2).train()
    ids = tokens(16)
    mask = torch.ones_like(ids)
    mask[0, :3] = 0
    budgets = [smaller_budget(model), f"{model.config.d_value}:2"]

    def loss_of(ids: Tensor, mask: Tensor) -> Tensor:
        output = model(ids, attention_mask=mask, budgets=budgets, use_cache=False)
        return sum(logits[mask.bool()].square().mean() for logits in output.budget_logits)

    compiled = torch.compile(loss_of, fullgraph=True, backend="aot_eager")
    parameters = list(model.parameters())
    found, expected = (
        torch.autograd.grad(function(ids, mask), parameters) for function in (compiled, loss_of)
    )
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-4)


def test_adapters_around_every_map_are_used() -> None:
    model = build(variant="ddl-cc")
    adapted = get_peft_model(model, LoraConfig(target_modules="all-linear", r=2, lora_alpha=8))
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_(generator=torch.Generator().manual_seed(0))
    assert any("value" in name and "lora_B" in name for name, _ in adapted.named_parameters())
    ids = tokens(8)
    found = torch.compile(run, backend="eager")(adapted, ids)
    torch.testing.assert_close(found, run(adapted, ids), atol=1e-4, rtol=0)


@pytest.mark.parametrize("variant", [name for name in VARIANTS if name != "baseline"])
def test_all_that_a_pass_takes_and_gives_is_as_in_eager_code(variant: str) -> None:
    """Padding, states between blocks, a smaller budget, and a cache that a prompt has filled."""
    model = build(variant=variant, num_hidden_layers=2).eval()
    ids = tokens(8)
    padded = torch.ones_like(ids)
    padded[0, :3] = 0
    budget = smaller_budget(model)

    def everything(ids: Tensor, mask: Tensor) -> list[Tensor]:
        output = model(ids, attention_mask=mask, use_cache=False, output_hidden_states=True)
        smaller = model(ids, attention_mask=mask, use_cache=False, budget=budget)
        cache = DynamicCache(config=model.config)
        model(ids[:, :5], attention_mask=mask[:, :5], past_key_values=cache)
        rest = model(ids[:, 5:], attention_mask=mask, past_key_values=cache)
        return [output.logits, *output.hidden_states, smaller.logits, rest.logits]

    compiled = torch.compile(everything, fullgraph=True, backend="eager")
    real = padded.bool()
    for found, expected in zip(compiled(ids, padded), everything(ids, padded), strict=True):
        assert found.shape == expected.shape
        kept = real[:, -found.shape[1] :]
        torch.testing.assert_close(found[kept], expected[kept], atol=1e-5, rtol=0)


@pytest.mark.parametrize("variant", ["ddl-cc", "ddl-tokenconv"])
def test_recomputed_blocks_give_the_same_gradients(variant: str) -> None:
    """A state of several tensors passes through gradient checkpointing, too."""
    gradients = []
    for recomputes in (False, True):
        torch._dynamo.reset()  # type: ignore[no-untyped-call]
        model = build(variant=variant).train()
        if recomputes:
            model.gradient_checkpointing_enable()
        loss = torch.compile(run, backend="aot_eager")(model, tokens(8))[1]
        gradients.append(torch.autograd.grad(loss, list(model.parameters())))
    for found, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)
