"""Packed documents and 4-D masks: convolutions over time would mix what attention keeps apart."""

import pytest
import torch
import transformers
from ddl_models import lively, tokens
from nestling.configuration.configuration_ddl import TRANSFORMERS_FLOOR
from nestling.configuration.ddl_settings import VARIANTS
from torch import Tensor
from transformers import DynamicCache

pytestmark = pytest.mark.skipif(
    tuple(map(int, transformers.__version__.split(".")[:2])) < TRANSFORMERS_FLOOR,
    reason="Deep Delta Learning decoders need transformers >= 5.17",
)
CONVOLVING = ["ddl-tokenconv", "ddl-ec", "ddl-cc-ec"]
OTHERS = [variant for variant in VARIANTS if variant not in CONVOLVING]
# Two documents of 8 and 6 tokens in a row.
RESTARTING = torch.cat([torch.arange(8), torch.arange(6)])[None]


def separating_mask() -> Tensor:
    """(1, 1, 14, 14): causal, and nothing of the first document is seen by the second."""
    allowed = torch.ones(14, 14, dtype=torch.bool).tril()
    allowed[8:, :8] = False
    return torch.zeros(1, 1, 14, 14).masked_fill(~allowed, torch.finfo(torch.float32).min)


@pytest.mark.parametrize("variant", CONVOLVING)
@torch.no_grad()
def test_a_convolution_refuses_both(variant: str) -> None:
    model, ids = lively(variant), tokens(1)
    for rows in (RESTARTING, RESTARTING.expand(2, -1)):
        with pytest.raises(ValueError, match=r"start again within a row.*row of its own") as caught:
            model(ids.expand(len(rows), -1), position_ids=rows, use_cache=False)
        assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match=r"shape \(1, 1, 14, 14\).*mask of \(batch, tokens\)"):
        model(ids, attention_mask=separating_mask(), use_cache=False)
    with pytest.raises(ValueError, match="start again within a row"):
        model(ids, position_ids=RESTARTING, budgets=["1:1"])


@pytest.mark.parametrize("variant", OTHERS)
@torch.no_grad()
def test_other_variants_keep_documents_apart(variant: str) -> None:
    model, ids = lively(variant), tokens(1)
    alone = model(ids[:, 8:], use_cache=False).logits
    packed = model(ids, position_ids=RESTARTING, use_cache=False).logits[:, 8:]
    torch.testing.assert_close(packed, alone, atol=1e-5, rtol=0)
    masked = model(
        ids, position_ids=RESTARTING, attention_mask=separating_mask(), use_cache=False
    ).logits[:, 8:]
    torch.testing.assert_close(masked, alone, atol=1e-5, rtol=0)


@torch.no_grad()
def test_a_kernel_of_one_has_nothing_to_refuse() -> None:
    model, ids = lively("ddl-ec", conv_kernel=1), tokens(1)
    packed = model(ids, position_ids=RESTARTING, use_cache=False).logits[:, 8:]
    alone = model(ids[:, 8:], use_cache=False).logits
    torch.testing.assert_close(packed, alone, atol=1e-5, rtol=0)


@pytest.mark.parametrize("variant", CONVOLVING)
@torch.no_grad()
def test_positions_that_count_on_are_taken(variant: str) -> None:
    """From any start, beside a mask of padding, and with a cache, whose positions are its own."""
    model, ids = lively(variant), tokens(1)
    plain = model(ids, use_cache=False).logits
    later = model(ids, position_ids=torch.arange(5, 19)[None], use_cache=False).logits
    torch.testing.assert_close(later, plain, atol=1e-4, rtol=0)  # rotary positions are relative
    padded = torch.cat([torch.zeros(1, 3, dtype=torch.long), ids], dim=1)
    mask = (torch.arange(17) >= 3).long()[None]
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    found = model(padded, attention_mask=mask, position_ids=positions, use_cache=False).logits
    torch.testing.assert_close(found[:, 3:], plain, atol=1e-5, rtol=0)
    cache = DynamicCache(config=model.config)
    model(ids, position_ids=RESTARTING, past_key_values=cache)  # looked at with no cache only


def test_compiled_code_does_not_look_at_positions() -> None:
    """One graph without a break, hence without waiting for values."""
    model, ids = lively("ddl-cc-ec"), tokens(1)
    torch._dynamo.reset()  # type: ignore[no-untyped-call]

    def run(ids: Tensor, positions: Tensor) -> Tensor:
        logits: Tensor = model(ids, position_ids=positions, use_cache=False).logits
        return logits

    compiled = torch.compile(run, fullgraph=True, backend="eager")
    positions = torch.arange(14)[None]
    with torch.no_grad():
        expected = run(ids, positions)
        torch.testing.assert_close(compiled(ids, positions), expected, atol=1e-5, rtol=0)
        compiled(ids, RESTARTING)
    torch._dynamo.reset()  # type: ignore[no-untyped-call]
