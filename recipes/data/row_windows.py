"""From documents to packed rows, one window of the source at a time.

A window is a fixed number of source rows. Packing inside windows bounds the memory and makes a
window the unit of resuming: window k depends on the source rows of window k only.
"""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

from .documents import SPLITS, Document, DocumentSource, Split, SplitRule
from .encoding_pool import Encoder
from .packing import PackedRow, SpecialTokens, pack_pieces

if TYPE_CHECKING:
    import pyarrow

logger = logging.getLogger(__name__)

WINDOW_DOCUMENTS = 16_384


@dataclass(frozen=True, slots=True)
class RowSettings:
    """How documents become rows.

    Attributes:
        special: Special tokens around each document.
        max_length: Longest row.
        packing: Whether documents share rows; otherwise each piece is a row of its own.
        window_documents: Source rows per window.
    """

    special: SpecialTokens
    max_length: int
    packing: bool = True
    window_documents: int = WINDOW_DOCUMENTS

    def rows(self, documents: Sequence[Sequence[int]]) -> list[PackedRow]:
        """Make rows of tokenised documents (without special tokens); no token is dropped."""
        pieces = [
            piece for tokens in documents for piece in self.special.pieces(tokens, self.max_length)
        ]
        if self.packing:
            return pack_pieces(pieces, self.max_length)
        return [PackedRow.join([piece]) for piece in pieces]


@dataclass(frozen=True, slots=True)
class SplitRows:
    """The rows that one split gets from one window.

    Attributes:
        documents: Number of documents in them.
        rows: The rows.
    """

    documents: int
    rows: list[PackedRow]

    @property
    def tokens(self) -> int:
        """Number of tokens, special tokens included."""
        return sum(len(row.input_ids) for row in self.rows)

    @property
    def max_token_id(self) -> int:
        """Largest token id, or -1 without rows."""
        return max((max(row.input_ids) for row in self.rows), default=-1)

    def table(self) -> "pyarrow.Table":
        """Return the rows as Arrow lists of int32: `input_ids`, `document_ids`."""
        import pyarrow

        kind = pyarrow.list_(pyarrow.int32())
        return pyarrow.table(
            {
                "input_ids": pyarrow.array([row.input_ids for row in self.rows], kind),
                "document_ids": pyarrow.array([row.document_ids for row in self.rows], kind),
            }
        )


@dataclass(frozen=True, slots=True)
class RowWindow:
    """What one window of the source gives.

    Attributes:
        number: Number of the window, from 0.
        source_rows: Source rows read; fewer than `window_documents` in the last window.
        splits: The rows of each split.
    """

    number: int
    source_rows: int
    splits: dict[Split, SplitRows]


def row_windows(
    source: DocumentSource,
    rule: SplitRule,
    encode: Encoder,
    settings: RowSettings,
    first_window: int = 0,
) -> Iterator[RowWindow]:
    """Read, split, tokenise and pack the source window by window.

    Args:
        source: Documents.
        rule: Decides the split of each document.
        encode: Tokenises texts.
        settings: Packing.
        first_window: Number of the window to start with.
    """
    size = settings.window_documents
    documents = source.documents(first_window * size)
    number = first_window
    while window := list(islice(documents, size)):
        splits = {split: _split_rows(window, rule, split, encode, settings) for split in SPLITS}
        yield RowWindow(number, len(window), splits)
        number += 1


def _split_rows(
    window: list[Document], rule: SplitRule, split: Split, encode: Encoder, settings: RowSettings
) -> SplitRows:
    texts = [
        document.text
        for document in window
        if document.text.strip() and rule.split_of(document.group) == split
    ]
    if not texts:
        return SplitRows(0, [])
    return SplitRows(len(texts), settings.rows(encode(texts)))
