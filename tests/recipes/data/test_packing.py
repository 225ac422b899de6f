"""Properties of the packer, and equality with one-by-one first-fit decreasing."""

import time
from collections import Counter

import numpy as np
import pytest
from nestling.recipes.data.documents import DataError
from nestling.recipes.data.packing import (
    PackedRow,
    SpecialTokens,
    assign_rows,
    fill_rate,
    pack_pieces,
)

SPECIAL = SpecialTokens(before=(1,), after=(2,))


def random_lengths(seed: int, limit: int, count: int = 400) -> list[int]:
    generator = np.random.default_rng(seed)
    return np.clip(generator.lognormal(3.0, 1.2, count).astype(int), 1, limit).tolist()


def first_fit_decreasing(lengths: list[int], limit: int) -> list[int]:
    """Reference: place one piece at a time into the first row that has room."""
    rooms: list[int] = []
    rows = [0] * len(lengths)
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        for row, room in enumerate(rooms):  # noqa: B007
            if room >= lengths[index]:
                break
        else:
            row = len(rooms)
            rooms.append(limit)
        rooms[row] -= lengths[index]
        rows[index] = row
    return rows


def next_fit_rows(lengths: list[int], limit: int) -> int:
    """Count the rows when each piece goes to the last row or a new one."""
    rows, room = 0, 0
    for length in lengths:
        if length > room:
            rows, room = rows + 1, limit
        room -= length
    return rows


@pytest.mark.parametrize("limit", [128, 512, 2048, 8192])
@pytest.mark.parametrize("seed", range(5))
def test_equal_to_one_by_one_first_fit(seed: int, limit: int) -> None:
    lengths = random_lengths(seed, limit)
    assert assign_rows(lengths, limit).tolist() == first_fit_decreasing(lengths, limit)


@pytest.mark.parametrize("seed", range(20))
def test_packed_rows_hold_every_token_once(seed: int) -> None:
    generator = np.random.default_rng(seed)
    limit = int(generator.integers(8, 200))
    documents = [
        generator.integers(3, 1000, length).tolist() for length in random_lengths(seed, 600, 80)
    ]
    pieces = [piece for tokens in documents for piece in SPECIAL.pieces(tokens, limit)]
    rows = pack_pieces(pieces, limit)
    assert all(0 < len(row.input_ids) == len(row.document_ids) <= limit for row in rows)
    packed = [
        tuple(np.array(row.input_ids)[np.array(row.document_ids) == number].tolist())
        for row in rows
        for number in range(1, max(row.document_ids) + 1)
    ]
    assert Counter(packed) == Counter(tuple(piece) for piece in pieces)
    tokens = Counter(token for tokens in documents for token in tokens)
    kept = Counter(token for row in rows for token in row.input_ids)
    assert all(kept[token] == count for token, count in tokens.items())


@pytest.mark.parametrize("seed", range(5))
def test_rows_are_no_more_than_next_fit(seed: int) -> None:
    lengths = random_lengths(seed, 512)
    rows = int(assign_rows(lengths, 512).max()) + 1
    assert rows <= next_fit_rows(lengths, 512)
    # 11/9 OPT + 6/9 (Dosa 2007), with the sum of the lengths as lower bound of OPT.
    assert rows <= 11 / 9 * max(np.ceil(sum(lengths) / 512), sum(x > 256 for x in lengths)) + 1


def test_document_ids_number_the_documents() -> None:
    assert PackedRow.join([[1, 5, 2], [1, 2]]) == PackedRow([1, 5, 2, 1, 2], [1, 1, 1, 2, 2])


@pytest.mark.parametrize("size", [1, 5, 6, 7, 12, 13, 100])
def test_long_documents_are_cut(size: int) -> None:
    tokens = list(range(10, 10 + size))
    pieces = list(SPECIAL.pieces(tokens, 8))
    assert all(piece[0] == 1 and piece[-1] == 2 and len(piece) <= 8 for piece in pieces)
    assert [token for piece in pieces for token in piece[1:-1]] == tokens
    assert len(pieces) == -(-size // 6)


def test_a_million_documents_are_packed_in_seconds() -> None:
    generator = np.random.default_rng(0)
    lengths = np.clip(generator.lognormal(3.7, 1.0, 1_000_000).astype(int), 3, 2048)
    start = time.process_time()
    rows = assign_rows(lengths, 2048)
    assert time.process_time() - start < 10
    assert np.bincount(rows, weights=lengths).max() <= 2048
    assert fill_rate(int(lengths.sum()), int(rows.max()) + 1, 2048) > 0.99


def test_nothing_to_pack() -> None:
    assert pack_pieces([], 128) == []
    assert fill_rate(0, 0, 128) == 0.0


@pytest.mark.parametrize("lengths", [[0, 3], [129]])
def test_lengths_out_of_range(lengths: list[int]) -> None:
    with pytest.raises(DataError, match=r"lengths must be in \[1, 128\]"):
        assign_rows(lengths, 128)


def test_max_length_too_small() -> None:
    with pytest.raises(DataError, match=r"max_length=7 is too small; at least 8"):
        SPECIAL.room(7)
