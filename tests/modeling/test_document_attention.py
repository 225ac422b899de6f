"""Packing, padding, the local window and the arguments of flash attention."""

from itertools import pairwise
from typing import Any

import pytest
import torch
from nestling.configuration import DeltaEncoderConfig
from nestling.modeling import (
    DeltaEncoderForMaskedLM,
    DeltaEncoderModel,
    encoder_inputs,
)
from nestling.modeling.document_attention import plan_attention, reset_positions
from nestling.modeling.families import FAMILIES
from nestling.modeling.rotary_embedding import rotary_tables
from torch import Tensor
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

CPU = torch.device("cpu")


def _ids(rows: int, tokens: int, seed: int = 0) -> Tensor:
    return torch.randint(8, 96, (rows, tokens), generator=torch.Generator().manual_seed(seed))


def _trunk(**overrides: Any) -> DeltaEncoderModel:
    torch.manual_seed(2)
    config = DeltaEncoderConfig(**{**FAMILIES["delta_encoder"].tiny, **overrides})
    model = DeltaEncoderModel(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.2)
    return model


def test_positions_restart_in_every_document() -> None:
    documents = torch.tensor([[1, 1, 2, 2, 2, 3], [0, 0, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0], [0] * 6])
    expected = [[0, 1, 0, 1, 2, 0], [0, 1, 0, 1, 2, 3], [0, 1, 2, 0, 1, 2], [0, 1, 2, 3, 4, 5]]
    assert reset_positions(documents).tolist() == expected


def test_the_model_restarts_positions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Read where angles are made: rotary attention is relative, so outputs alone do not show it."""
    used: list[Tensor] = []

    def keep(position_ids: Tensor, *args: Any) -> Any:
        used.append(position_ids)
        return rotary_tables(position_ids, *args)

    monkeypatch.setattr(encoder_inputs, "rotary_tables", keep)
    documents = torch.tensor([[1, 1, 1, 2, 2, 0], [1, 2, 2, 2, 3, 3]])
    _trunk()(_ids(2, 6), documents)
    _trunk()(_ids(2, 6))
    assert [t.tolist() for t in used[:2]] == [[[0, 1, 2, 0, 1, 0], [0, 0, 1, 2, 0, 1]]] * 2
    assert [t.tolist() for t in used[2:]] == [[[0, 1, 2, 3, 4, 5]]] * 2


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("budget", [None, "0.5:2:3:20"])
def test_packed_rows_equal_separate_documents(
    tiny_delta_encoder: DeltaEncoderForMaskedLM, implementation: str, budget: str | None
) -> None:
    model = tiny_delta_encoder
    model.set_attn_implementation(implementation)
    lengths = [[9, 11, 4], [13, 1, 7]]
    ids = _ids(2, 24)
    documents = torch.zeros_like(ids)
    for row, sizes in enumerate(lengths):
        numbers = [n for n, size in enumerate(sizes, start=1) for _ in range(size)]
        documents[row, : len(numbers)] = torch.tensor(numbers)
    with torch.no_grad():
        packed = model(ids, documents, budget=budget).logits
        for row, sizes in enumerate(lengths):
            start = 0
            for size in sizes:
                alone = model(ids[row : row + 1, start : start + size], budget=budget).logits[0]
                torch.testing.assert_close(
                    packed[row, start : start + size], alone, atol=1e-5, rtol=1e-5
                )
                start += size


def test_one_document_is_an_ordinary_row(tiny_delta_encoder: DeltaEncoderForMaskedLM) -> None:
    ids = _ids(2, 24)
    with torch.no_grad():
        plain = tiny_delta_encoder(ids).logits
        for mask in (torch.ones_like(ids), torch.full_like(ids, 2), torch.ones_like(ids).bool()):
            actual = tiny_delta_encoder(ids, mask).logits
            torch.testing.assert_close(actual, plain, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_padding_never_leaks_and_is_never_nan(implementation: str) -> None:
    """Also in a row that is nothing but padding, and in the gradient."""
    model = _trunk()
    model.set_attn_implementation(implementation)
    ids, mask = _ids(3, 20), torch.ones(3, 20, dtype=torch.long)
    mask[1, 13:], mask[2] = 0, 0
    embeds = model.get_input_embeddings().weight[ids].detach().requires_grad_()
    states = model(attention_mask=mask, inputs_embeds=embeds).last_hidden_state
    assert torch.isfinite(states).all()
    states[mask > 0].pow(3).sum().backward()
    assert embeds.grad is not None
    assert torch.isfinite(embeds.grad).all()
    assert (embeds.grad[mask == 0] == 0).all()
    assert (embeds.grad[mask > 0].abs().sum(-1) > 0).all()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize("window", [1, 2, 5, 8])
@pytest.mark.parametrize("masked", [False, True], ids=["no mask", "packed"])
def test_a_local_layer_sees_exactly_its_window(window: int, masked: bool) -> None:
    """|i - j| <= window // 2 in its own document, measured by which inputs get a gradient."""
    model = _trunk(num_hidden_layers=1, layer_types=["sliding_attention"], local_attention=window)
    tokens, half = 16, window // 2
    mask = torch.tensor([[1] * 7 + [2] * 9]) if masked else None
    embeds = model.get_input_embeddings().weight[_ids(1, tokens)].detach().requires_grad_()
    states = model(attention_mask=mask, inputs_embeds=embeds).last_hidden_state
    for i in range(tokens):
        (gradient,) = torch.autograd.grad(states[0, i].pow(3).sum(), embeds, retain_graph=True)
        seen = {j for j in range(tokens) if gradient[0, j].abs().sum() > 0}
        same = [j for j in range(tokens) if mask is None or mask[0, j] == mask[0, i]]
        assert seen == {j for j in same if abs(i - j) <= half}, i


def test_a_global_layer_sees_everything() -> None:
    model = _trunk(num_hidden_layers=1, local_attention=2)
    embeds = model.get_input_embeddings().weight[_ids(1, 16)].detach().requires_grad_()
    model(inputs_embeds=embeds).last_hidden_state[0, 0].pow(3).sum().backward()
    assert embeds.grad is not None
    assert (embeds.grad.abs().sum(-1) > 0).all()


def test_positions_are_used_and_relative() -> None:
    """Order matters; shifting all positions does not, because rotary attention is relative."""
    model = _trunk()
    ids = _ids(1, 12)
    positions = torch.arange(12)[None]
    with torch.no_grad():
        plain = model(ids).last_hidden_state
        given = model(ids, position_ids=positions).last_hidden_state
        shifted = model(ids, position_ids=positions + 17).last_hidden_state
        reversed_ = model(ids, position_ids=positions.flip(1)).last_hidden_state
    assert torch.equal(given, plain)
    torch.testing.assert_close(shifted, plain, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(reversed_, plain, atol=1e-2)


def test_global_and_local_layers_have_their_own_rotary_base() -> None:
    ids = _ids(1, 12)
    for name in ("global_rope_theta", "local_rope_theta"):
        with torch.no_grad():
            plain = _trunk()(ids).last_hidden_state
            other = _trunk(**{name: 50.0})(ids).last_hidden_state
        assert not torch.allclose(plain, other, atol=1e-3), name


@pytest.mark.parametrize(
    "documents", [None, torch.tensor([[1, 1, 2, 2, 2, 0], [1, 2, 2, 2, 3, 3]])]
)
def test_flash_gets_segment_lengths_and_no_mask(documents: Tensor | None) -> None:
    plan = plan_attention("flash_attention_2", documents, (2, 6), 8, CPU)
    assert set(plan.masks.values()) == {None}
    if documents is None:
        assert plan.kwargs == {}
        return
    edges = plan.kwargs["cu_seq_lens_q"]
    assert edges.dtype == torch.int32
    assert edges.tolist() == [0, 2, 5, 6, 7, 10, 12]
    assert torch.equal(plan.kwargs["cu_seq_lens_k"], edges)
    assert plan.kwargs["max_length_q"] == plan.kwargs["max_length_k"] == 3


def _varlen_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    sliding_window: int | None = None,
    cu_seq_lens_q: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """What flash attention computes, in plain torch, one segment after the other.

    Transformers hands the kernel ``window_size = (sliding_window - 1, sliding_window - 1)``: the
    argument counts the token itself, so ``sliding_window - 1`` neighbours lie on each side.
    """
    assert attention_mask is None
    rows, heads, tokens, size = query.shape
    flat = [t.transpose(1, 2).reshape(rows * tokens, heads, size) for t in (query, key, value)]
    edges = range(0, rows * tokens + 1, tokens)
    limits = list(edges) if cu_seq_lens_q is None else cu_seq_lens_q.tolist()
    mixed = torch.empty_like(flat[0])
    for start, end in pairwise(limits):
        q, k, v = (t[start:end] for t in flat)
        scores = torch.einsum("ihp,jhp->hij", q, k) * scaling
        if sliding_window is not None:
            index = torch.arange(end - start)
            far = (index[:, None] - index[None, :]).abs() > sliding_window - 1
            scores = scores.masked_fill(far, float("-inf"))
        mixed[start:end] = torch.einsum("hij,jhp->ihp", scores.softmax(-1), v)
    return mixed.view(rows, tokens, heads, size), None


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "packed and padded"])
@pytest.mark.parametrize("budget", [None, "0.5:2:3:20"])
def test_flash_path_equals_sdpa(
    monkeypatch: pytest.MonkeyPatch, packed: bool, budget: str | None
) -> None:
    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS, "flash_attention_2", _varlen_attention)
    model = _trunk(local_attention=7)
    ids = _ids(2, 24)
    documents = torch.tensor([[1] * 9 + [2] * 15, [1] * 4 + [2] * 13 + [0] * 7]) if packed else None
    with torch.no_grad():
        expected = model(ids, documents, budget=budget).last_hidden_state
        model.config._attn_implementation = "flash_attention_2"
        actual = model(ids, documents, budget=budget).last_hidden_state
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)


def test_flex_block_masks_hold_the_dense_rule() -> None:
    """Compared as rules, entry by entry, so that no compiler is needed."""
    documents = torch.tensor([[1] * 5 + [2] * 6 + [0] * 3, [1] * 14])
    for given in (documents, None):
        flex = plan_attention("flex_attention", given, (2, 14), 4, CPU).masks
        dense = plan_attention("sdpa", given, (2, 14), 4, CPU).masks
        for name in ("full_attention", "sliding_attention"):
            everything = torch.ones(2, 1, 14, 14, dtype=torch.bool)
            wanted = everything if dense[name] is None else dense[name].expand(2, 1, 14, 14)
            batch, query, key = (
                torch.arange(n).view(shape)
                for n, shape in ((2, (2, 1, 1)), (14, (1, 14, 1)), (14, (1, 1, 14)))
            )
            rule = flex[name].mask_mod(batch, torch.tensor(0), query, key).expand(2, 14, 14)
            assert torch.equal(rule, wanted[:, 0]), name
