"""Contract, part 2: one function, however it is batched, attended to, stored or compiled."""

import copy
from typing import Any

import pytest
import torch
from family_cases import (
    CASES,
    LANGUAGE_CASES,
    TRUNKS,
    VARIANTS,
    Case,
    compute,
    main_output,
    padded_batch,
    token_ids,
    training_loss,
)
from torch import Tensor

by_case = pytest.mark.parametrize("case", [*CASES, *VARIANTS], ids=str)
by_trunk = pytest.mark.parametrize("case", TRUNKS, ids=str)
by_language_model = pytest.mark.parametrize("case", LANGUAGE_CASES, ids=str)
ENCODERS = [case for case in [*CASES, *VARIANTS] if case.family.is_encoder]
by_encoder = pytest.mark.parametrize("case", ENCODERS, ids=str)


def _same_weights(case: Case, model: Any, implementation: str) -> Any:
    config = case.config()
    other = case.model_class._from_config(config, attn_implementation=implementation)
    assert other.config._attn_implementation == implementation
    other.load_state_dict(model.state_dict())
    return other.eval()


def _gradients(model: Any) -> dict[str, Tensor]:
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def _assert_close(actual: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    assert actual.keys() == expected.keys()
    for name, tensor in expected.items():
        scale = max(tensor.abs().max().item(), 1e-6)
        worst = (actual[name] - tensor).abs().max().item()
        assert worst <= tolerance * scale, f"{name}: {worst} of {scale}"


@by_case
def test_a_row_does_not_depend_on_its_batch(case: Case) -> None:
    model = case.model()
    ids = token_ids(model.config)
    with torch.no_grad():
        together = main_output(model(input_ids=ids))
        alone = torch.cat([main_output(model(input_ids=row[None])) for row in ids])
        shuffled = main_output(model(input_ids=ids.flip(0))).flip(0)
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(together, shuffled, atol=1e-5, rtol=1e-5)


@by_case
def test_padding_changes_nothing(case: Case) -> None:
    model = case.model()
    batch = padded_batch(model.config)
    real = batch["attention_mask"][1].sum()
    longer = {k: torch.nn.functional.pad(v, (0, 5)) for k, v in batch.items()}
    other_pads = dict(batch)
    other_pads["input_ids"] = torch.where(batch["attention_mask"] == 0, 9, batch["input_ids"])
    expected = compute(model, batch)
    torch.testing.assert_close(compute(model, longer), expected, atol=1e-5, rtol=1e-5)
    assert torch.equal(compute(model, other_pads), expected)
    row = {k: v[1:2, :real] for k, v in batch.items()}
    one = {k: v[1:2] for k, v in batch.items()}
    torch.testing.assert_close(compute(model, one), compute(model, row), atol=1e-5, rtol=1e-5)


@by_encoder
def test_padding_may_stand_on_the_left(case: Case) -> None:
    model = case.model()
    ids = token_ids(model.config, rows=1)
    right = {
        "input_ids": torch.nn.functional.pad(ids, (0, 6)),
        "attention_mask": torch.nn.functional.pad(torch.ones_like(ids), (0, 6)),
    }
    left = {key: value.roll(6, dims=1) for key, value in right.items()}
    assert left["attention_mask"][0, 0] == 0
    torch.testing.assert_close(compute(model, left), compute(model, right), atol=1e-5, rtol=1e-5)


@by_case
def test_sdpa_equals_eager(case: Case) -> None:
    model = case.model()
    batch = padded_batch(model.config)
    outputs, gradients = {}, {}
    for implementation in ("eager", "sdpa"):
        twin = _same_weights(case, model, implementation)
        outputs[implementation] = compute(twin, batch)
        training_loss(case, twin, batch).backward()
        gradients[implementation] = _gradients(twin)
    torch.testing.assert_close(outputs["sdpa"], outputs["eager"], atol=1e-5, rtol=1e-4)
    _assert_close(gradients["sdpa"], gradients["eager"], 1e-4)


@by_trunk
def test_flex_equals_sdpa(case: Case, cpp_compiler: str) -> None:
    if not case.model_class._supports_flex_attn:
        pytest.skip(f"{case} declares no flex attention")
    model = case.model()
    batch = padded_batch(model.config)
    flex, sdpa = (_same_weights(case, model, name) for name in ("flex_attention", "sdpa"))
    torch.testing.assert_close(compute(flex, batch), compute(sdpa, batch), atol=1e-5, rtol=1e-4)


@by_case
def test_gradient_checkpointing_equals_none(case: Case) -> None:
    plain = case.model().train()
    checkpointed = copy.deepcopy(plain)
    checkpointed.gradient_checkpointing_enable()
    batch = padded_batch(plain.config)
    losses, calls = [], []
    for model in (plain, checkpointed):
        count = _count_blocks(model)
        torch.manual_seed(0)
        loss = training_loss(case, model, batch)
        loss.backward()
        losses.append(loss.detach())
        calls.append(len(count))
    assert torch.equal(*losses)
    _assert_close(_gradients(checkpointed), _gradients(plain), 1e-6)
    assert calls[1] == 2 * calls[0] > 0, "each block must run a second time in the backward pass"


def _count_blocks(model: Any) -> list[str]:
    calls: list[str] = []
    for name, module in model.named_modules():
        if type(module).__name__ in model._no_split_modules:
            children = [
                child for child in module.children() if not isinstance(child, torch.nn.Identity)
            ]
            children[0].register_forward_pre_hook(lambda *_, name=name: calls.append(name))
    return calls


def _relative_error(actual: Tensor, expected: Tensor) -> float:
    return ((actual.float() - expected).norm() / expected.norm()).item()


@by_case
def test_bfloat16_is_finite_and_close(case: Case) -> None:
    model = case.model()
    batch = padded_batch(model.config)
    actual = compute(copy.deepcopy(model).bfloat16(), batch)
    assert actual.dtype == torch.bfloat16
    assert torch.isfinite(actual).all()
    assert _relative_error(actual, compute(model, batch)) < 0.03


@by_case
def test_autocast_is_finite_and_close(case: Case) -> None:
    model = case.model()
    batch = padded_batch(model.config)
    with torch.autocast("cpu", torch.bfloat16):
        actual = compute(model, batch)
        loss = training_loss(case, model, batch)
    loss.backward()
    assert _relative_error(actual, compute(model, batch)) < 0.03
    assert all(torch.isfinite(g).all() for g in _gradients(model).values())


@by_language_model
def test_compiled_equals_eager(case: Case, cpp_compiler: str) -> None:
    model = case.model()
    batch = padded_batch(model.config, rows=2, tokens=12)
    budget = model.config.budget_list()[0]
    torch.compiler.reset()
    try:
        compiled = torch.compile(model, fullgraph=True)
        actual = compute(compiled, batch, budget=budget)
    finally:
        torch.compiler.reset()
    expected = compute(model, batch, budget=budget)
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-4)


@by_case
def test_exported_program_has_only_static_shapes(case: Case) -> None:
    """Trainium compiles static shapes; one symbolic size would be a recompilation a batch."""
    model = case.model()
    model.set_budget(model.config.budget_list()[0])
    batch = padded_batch(model.config)
    program = torch.export.export(model, (), kwargs=batch)
    assert program.range_constraints == {}
    values = [node.meta.get("val") for node in program.graph.nodes]
    sizes = [size for value in values if isinstance(value, Tensor) for size in value.shape]
    assert sizes
    assert all(type(size) is int for size in sizes)
    actual = main_output(program.module()(**batch))
    with torch.no_grad():
        expected = main_output(model(**batch))
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-4)


@by_case
def test_outputs_as_a_tuple(case: Case) -> None:
    model = case.model()
    batch = padded_batch(model.config)
    outputs = model(**batch, return_dict=False)
    assert isinstance(outputs, tuple)
    assert torch.equal(outputs[0], main_output(model(**batch)))
