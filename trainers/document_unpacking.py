"""Undo packing: one document a row, as any model without document masks needs it."""

from typing import NamedTuple

import torch
from torch import Tensor


class UnpackedDocuments(NamedTuple):
    """Documents of a packed batch, one a row, and where each token went.

    Attributes:
        input_ids: `(documents, longest)`, padded with `pad_token_id`.
        attention_mask: `(documents, longest)`, 1 for real tokens.
        row: `(batch, seq)`, row of each packed token in `input_ids`; 0 for padding.
        column: `(batch, seq)`, column likewise; 0 for padding.
    """

    input_ids: Tensor
    attention_mask: Tensor
    row: Tensor
    column: Tensor


def unpack_documents(
    input_ids: Tensor, attention_mask: Tensor, pad_token_id: int
) -> UnpackedDocuments:
    """Split packed rows into their documents.

    Args:
        input_ids: `(batch, seq)`.
        attention_mask: `(batch, seq)`: 0 is padding, a packed row numbers its documents 1, 2, 3…
            without gaps inside a document; a plain 0/1 mask is one document a row.
        pad_token_id: Id to pad with.

    Returns:
        The documents in the order of the batch.
    """
    batch, length = input_ids.shape
    is_real = attention_mask > 0
    offsets = torch.arange(batch, device=input_ids.device)[:, None] * (length + 1)
    # (tokens,) number of each real token's document over the whole batch
    _, document, sizes = torch.unique_consecutive(
        (attention_mask + offsets)[is_real], return_inverse=True, return_counts=True
    )
    starts = sizes.cumsum(0) - sizes
    place = torch.arange(document.numel(), device=input_ids.device) - starts[document]
    shape = (sizes.numel(), int(sizes.max()) if sizes.numel() else 0)
    documents = input_ids.new_full(shape, pad_token_id)
    mask = attention_mask.new_zeros(shape)
    documents[document, place] = input_ids[is_real]
    mask[document, place] = 1
    row = torch.zeros_like(input_ids).masked_scatter(is_real, document)
    column = torch.zeros_like(input_ids).masked_scatter(is_real, place)
    return UnpackedDocuments(documents, mask, row, column)
