"""Deep Delta Learning decoders generate: cached = uncached, and padding changes nothing."""

from typing import Any

import pytest
import torch
import transformers
from ddl_models import MODELS, lively, tokens
from nestling.configuration.configuration_ddl import TRANSFORMERS_FLOOR

pytestmark = pytest.mark.skipif(
    tuple(map(int, transformers.__version__.split(".")[:2])) < TRANSFORMERS_FLOOR,
    reason="Deep Delta Learning decoders need transformers >= 5.17",
)

TOLERANCE = 1e-5
GREEDY: dict[str, Any] = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(
    "parts", [[1] * 14, [2, 12], [3, *[1] * 11], [5, 7, 2], [14]],
    ids=["one by one", "2 then the rest", "3 then one by one", "chunks", "at once"],
)  # fmt: skip
@torch.no_grad()
def test_cached_equals_uncached(name: str, parts: list[int]) -> None:
    model, ids = lively(name), tokens()
    expected = model(ids, use_cache=False).logits
    cache, found, first = None, [], 0
    for length in parts:
        output = model(ids[:, first : first + length], past_key_values=cache, use_cache=True)
        cache = output.past_key_values
        found.append(output.logits)
        first += length
    assert float((torch.cat(found, dim=1) - expected).abs().max()) <= TOLERANCE


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("pads", [1, 5])
@torch.no_grad()
def test_left_padding_changes_nothing(name: str, pads: int) -> None:
    model, ids = lively(name), tokens()
    padded = torch.cat([torch.zeros(2, pads, dtype=torch.long), ids], dim=1)
    mask = (torch.arange(padded.shape[1]) >= pads).long().expand(2, -1)
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    found = model(padded, attention_mask=mask, position_ids=positions, use_cache=False).logits
    expected = model(ids, use_cache=False).logits
    assert float((found[:, pads:] - expected).abs().max()) <= TOLERANCE
    generated = model.generate(padded, attention_mask=mask, **GREEDY)[:, pads:]
    assert torch.equal(generated, model.generate(ids, **GREEDY))


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(
    "options",
    [{}, {"num_beams": 3}, {"cache_implementation": "static"}, {"prompt_lookup_num_tokens": 3}],
    ids=["greedy", "beams", "static cache", "prompt lookup"],
)
@pytest.mark.parametrize("length", [1, 2, 3, 14])
def test_generation_equals_generation_without_a_cache(
    name: str, options: dict[str, Any], length: int
) -> None:
    model, ids = lively(name), tokens(1, length)
    plain = {name: value for name, value in options.items() if name == "num_beams"}
    expected = model.generate(ids, use_cache=False, **GREEDY, **plain)
    assert torch.equal(model.generate(ids, **GREEDY, **options), expected)


@pytest.mark.parametrize("variant", ["ddl-tokenconv", "ddl-ec", "ddl-cc-ec"])
@pytest.mark.parametrize("kernel", [1, 2])
@torch.no_grad()
def test_short_kernels_generate(variant: str, kernel: int) -> None:
    """One column looks at nothing before, so a cache has no history that could be taken back."""
    model, ids = lively(variant, conv_kernel=kernel), tokens(1, 5)
    repeated = torch.cat([ids, ids], dim=1)
    expected = model.generate(repeated, use_cache=False, **GREEDY)
    for options in ({}, {"cache_implementation": "static"}, {"prompt_lookup_num_tokens": 3}):
        assert torch.equal(model.generate(repeated, **GREEDY, **options), expected), options
