"""First-fit-decreasing packing: short documents share a row, long ones are cut into chunks.

Sorting the pieces by falling length and putting each into the first row that has room needs at
most 11/9 of the smallest possible number of rows, plus one (Johnson 1973; Dosa 2007). Used for
pre-training by Krell et al. (arXiv 2107.02027). Nothing is dropped: a document longer than a row
becomes several pieces, each with the special tokens of a document of its own.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .documents import DataError

MIN_ROW_LENGTH = 8


@dataclass(frozen=True, slots=True)
class SpecialTokens:
    """The special tokens around a document, for example `[CLS]` and `[SEP]`.

    Attributes:
        before: Token ids in front.
        after: Token ids behind.
    """

    before: tuple[int, ...]
    after: tuple[int, ...]

    def room(self, max_length: int) -> int:
        """Return how many tokens of text fit beside the special tokens.

        Raises:
            DataError: If `max_length` is too small.
        """
        room = max_length - len(self.before) - len(self.after)
        if max_length < MIN_ROW_LENGTH or room < 1:
            raise DataError(f"data.max_length={max_length} is too small; at least {MIN_ROW_LENGTH}")
        return room

    def pieces(self, tokens: Sequence[int], max_length: int) -> Iterator[list[int]]:
        """Cut a document into pieces of at most `max_length` tokens, special tokens included.

        Args:
            tokens: Token ids of the text, without special tokens.
            max_length: Longest piece.
        """
        room = self.room(max_length)
        for start in range(0, len(tokens), room):
            yield [*self.before, *tokens[start : start + room], *self.after]


@dataclass(frozen=True, slots=True)
class PackedRow:
    """A row of the model input before padding.

    Attributes:
        input_ids: Token ids of one document after the other.
        document_ids: Number of the document that each token belongs to: 1, 2, 3, ...
    """

    input_ids: list[int]
    document_ids: list[int]

    @classmethod
    def join(cls, pieces: Iterable[Sequence[int]]) -> "PackedRow":
        """Put pieces behind each other and number them from 1."""
        input_ids: list[int] = []
        document_ids: list[int] = []
        for number, piece in enumerate(pieces, 1):
            input_ids.extend(piece)
            document_ids.extend([number] * len(piece))
        return cls(input_ids, document_ids)


def assign_rows(lengths: Sequence[int] | NDArray[np.int64], max_length: int) -> NDArray[np.int64]:
    """Give each piece the number of its row, by first-fit decreasing.

    Pieces of equal length are placed together: row r takes floor(room_r / length) of them, from
    the first row on, which is what one-by-one first fit does. So the work is one array operation
    over the rows per distinct length, O(n log n + distinct lengths * rows), and not a search per
    piece.

    Args:
        lengths: (pieces,) lengths, each in [1, max_length].
        max_length: Room of a row.

    Returns:
        (pieces,) row numbers from 0, without gaps.

    Raises:
        DataError: If a piece is empty or longer than a row.
    """
    sizes = np.asarray(lengths, dtype=np.int64)
    if sizes.size and not 1 <= int(sizes.min()) <= int(sizes.max()) <= max_length:
        raise DataError(
            f"pieces of {sizes.min()} to {sizes.max()} tokens do not fit rows of {max_length}; "
            f"lengths must be in [1, {max_length}]"
        )
    order = np.argsort(-sizes, kind="stable")
    rows = np.empty(sizes.size, dtype=np.int64)
    room = np.zeros(0, dtype=np.int64)
    start = 0
    distinct, counts = np.unique(sizes, return_counts=True)
    for length, count in zip(distinct[::-1].tolist(), counts[::-1].tolist(), strict=True):
        open_rows = np.flatnonzero(room >= length)
        fits = room[open_rows] // length
        missing = count - int(fits.sum())
        if missing > 0:
            per_row = max_length // length
            new_rows = np.arange(room.size, room.size + -(-missing // per_row))
            room = np.concatenate([room, np.full(new_rows.size, max_length, dtype=np.int64)])
            open_rows = np.concatenate([open_rows, new_rows])
            fits = np.concatenate([fits, np.full(new_rows.size, per_row, dtype=np.int64)])
        placed = np.repeat(open_rows, fits)[:count]
        rows[order[start : start + count]] = placed
        room -= length * np.bincount(placed, minlength=room.size)
        start += count
    return rows


def pack_pieces(pieces: Sequence[Sequence[int]], max_length: int) -> list[PackedRow]:
    """Pack pieces into as few rows as first-fit decreasing finds.

    Args:
        pieces: Token ids of each piece, special tokens included, at most `max_length` long.
        max_length: Longest row.

    Returns:
        The rows; inside a row longer pieces come first.
    """
    lengths = np.fromiter((len(piece) for piece in pieces), np.int64, len(pieces))
    rows = assign_rows(lengths, max_length)
    order = np.lexsort((-lengths, rows))
    starts = np.flatnonzero(np.diff(rows[order], prepend=-1))
    return [
        PackedRow.join(pieces[index] for index in members.tolist())
        for members in np.split(order, starts[1:])
        if members.size
    ]


def fill_rate(tokens: int, rows: int, max_length: int) -> float:
    """Return the share of row places that hold a token; 0.0 where there is no row."""
    return tokens / (rows * max_length) if rows else 0.0
