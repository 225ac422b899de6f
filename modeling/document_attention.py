"""Which tokens may attend to which, in the form each attention back-end wants.

One rule covers padding and packing: *tokens attend inside their own document*. Documents of a row
are numbered 1, 2, 3, … in the attention mask and padding is document 0; an ordinary 0/1 mask is
the case of one document. Padding therefore attends only to padding, so no row is ever fully
masked (which would be NaN under SDPA). Local layers add ``|i - j| <= window // 2``.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

FLASH = ("flash_attention_2", "flash_attention_3", "flash_attention_4")


class AttentionPlan(NamedTuple):
    """Masks per layer type, and extra keyword arguments for the attention function."""

    masks: Mapping[str, Any]
    kwargs: dict[str, Any]


def reset_positions(document_ids: Tensor) -> Tensor:
    """Count positions from 0 inside each document: (batch, tokens) -> (batch, tokens)."""
    index = torch.arange(document_ids.shape[1], device=document_ids.device)
    starts = torch.ones_like(document_ids, dtype=torch.bool)
    starts[:, 1:] = document_ids[:, 1:] != document_ids[:, :-1]
    return index - torch.where(starts, index, 0).cummax(dim=1).values


def plan_attention(
    implementation: str,
    document_ids: Tensor | None,
    shape: tuple[int, int],
    window: int,
    device: torch.device,
) -> AttentionPlan:
    """Build what the layers need to keep documents apart.

    Args:
        implementation: name of the attention back-end.
        document_ids: (batch, tokens) document numbers, 0 for padding; None if every row is one
            document without padding.
        shape: (batch, tokens).
        window: tokens a local layer sees, both sides together.
        device: where masks live.
    """
    half = window // 2
    if implementation in FLASH:
        return AttentionPlan(_no_masks(), _segment_lengths(document_ids))
    if implementation == "flex_attention":
        return AttentionPlan(_block_masks(document_ids, shape, half, device), {})
    return AttentionPlan(_dense_masks(document_ids, shape[1], half, device), {})


def _no_masks() -> dict[str, Any]:
    return {"full_attention": None, "sliding_attention": None}


def _dense_masks(
    document_ids: Tensor | None, tokens: int, half: int, device: torch.device
) -> dict[str, Tensor | None]:
    """Boolean masks (batch or 1, 1, tokens, tokens), True where attention is allowed."""
    same = None
    if document_ids is not None:
        same = (document_ids[:, None, :, None] == document_ids[:, None, None, :])
    if tokens <= half + 1:
        return {"full_attention": same, "sliding_attention": same}
    index = torch.arange(tokens, device=device)
    near = ((index[:, None] - index[None, :]).abs() <= half)[None, None]
    return {"full_attention": same, "sliding_attention": near if same is None else same & near}


def _segment_lengths(document_ids: Tensor | None) -> dict[str, Any]:
    """Variable-length arguments of flash attention over the flattened batch.

    Every run of equal document numbers, padding included, is one segment.
    """
    if document_ids is None:
        return {}
    starts = reset_positions(document_ids).flatten() == 0
    edges = starts.nonzero().flatten().to(torch.int32)
    total = torch.tensor([starts.numel()], dtype=torch.int32, device=starts.device)
    edges = torch.cat((edges, total))
    longest = int(edges.diff().max())
    return {
        "cu_seq_lens_q": edges,
        "cu_seq_lens_k": edges,
        "max_length_q": longest,
        "max_length_k": longest,
    }


def _block_masks(
    document_ids: Tensor | None, shape: tuple[int, int], half: int, device: torch.device
) -> dict[str, Any]:
    from torch.nn.attention.flex_attention import create_block_mask

    def same_document(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        if document_ids is None:
            return query >= 0
        return document_ids[batch, query] == document_ids[batch, key]

    def near(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return same_document(batch, head, query, key) & ((query - key).abs() <= half)

    rows, tokens = shape
    return {
        name: create_block_mask(rule, rows, None, tokens, tokens, device=str(device))
        for name, rule in (("full_attention", same_document), ("sliding_attention", near))
    }
