"""Packed rows come apart into documents."""

import pytest
import torch
from nestling.trainers.document_unpacking import unpack_documents

IDS = torch.tensor([[5, 6, 7, 8, 9, 0], [1, 2, 3, 4, 0, 0]])


@pytest.mark.parametrize(
    ("mask", "expected"),
    [
        ([[1, 1, 2, 2, 2, 0], [1, 1, 1, 1, 0, 0]], [[5, 6], [7, 8, 9], [1, 2, 3, 4]]),
        ([[1, 1, 1, 1, 1, 0], [1, 2, 3, 3, 0, 0]], [[5, 6, 7, 8, 9], [1], [2], [3, 4]]),
        ([[0, 1, 1, 1, 0, 0], [1, 1, 1, 1, 0, 0]], [[6, 7, 8], [1, 2, 3, 4]]),
    ],
)
def test_documents_and_the_way_back(mask: list[list[int]], expected: list[list[int]]) -> None:
    """Each document has its own row; row and column find each token again."""
    packed = torch.tensor(mask)
    found = unpack_documents(IDS, packed, pad_token_id=99)
    lengths = found.attention_mask.sum(1).tolist()
    rows = [row[:n] for row, n in zip(found.input_ids.tolist(), lengths, strict=True)]
    assert rows == expected
    assert (found.input_ids[found.attention_mask == 0] == 99).all()
    is_real = packed > 0
    back = found.input_ids[found.row[is_real], found.column[is_real]]
    assert torch.equal(back, IDS[is_real])


def test_all_padding() -> None:
    """No documents, no error."""
    assert unpack_documents(IDS, torch.zeros_like(IDS), 0).input_ids.shape == (0, 0)
