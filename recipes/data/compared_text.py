"""Text cut into pieces that several tokenizers can be measured on alike.

A piece is a run of whole documents, or a part of a long one. Every model reads each piece on its
own, from an end mark on, and predicts all of it: so pieces are equal for all tokenizers, and the
bytes of what was predicted are known.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from .causal_rows import CausalRows
from .documents import DataError
from .encoding_pool import text_encoder
from .token_stream import end_token_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

# Enough pieces for an interval, of enough text for a context.
WANTED_PIECES, SMALLEST_PIECE, LARGEST_PIECE = 64, 256, 4096


@dataclass(frozen=True)
class Piece:
    """Consecutive text.

    Attributes:
        parts: Documents, or one part of a document.
        ends: For each part whether its document ends there.
    """

    parts: tuple[str, ...]
    ends: tuple[bool, ...]

    @property
    def size(self) -> int:
        """Return the bytes in UTF-8."""
        return sum(len(part.encode("utf-8", "surrogatepass")) for part in self.parts)


def cut_pieces(texts: Iterable[str]) -> list[Piece]:
    """Cut documents into pieces of about equal size, `WANTED_PIECES` or more where there is text.

    Raises:
        DataError: If there is no text.
    """
    documents = [text for text in texts if text.strip()]
    if not documents:
        raise DataError("the data hold no text; give a file with text")
    wanted = sum(map(len, documents)) // WANTED_PIECES
    size = min(LARGEST_PIECE, max(SMALLEST_PIECE, wanted))
    pieces: list[Piece] = []
    parts: list[str] = []
    ends: list[bool] = []
    for document in documents:
        for part, is_end in _parts(document, size):
            parts.append(part)
            ends.append(is_end)
            if sum(map(len, parts)) >= size:
                pieces.append(Piece(tuple(parts), tuple(ends)))
                parts, ends = [], []
    if parts:
        pieces.append(Piece(tuple(parts), tuple(ends)))
    return pieces


def _parts(document: str, size: int) -> Iterator[tuple[str, bool]]:
    """Cut a document that is longer than two pieces, at a space where there is one."""
    rest = document
    while len(rest) > 2 * size:
        space = rest.rfind(" ", size // 2, size)
        cut = size if space < 0 else space
        yield rest[:cut], False
        rest = rest[cut:]
    yield rest, True


def rows_of_pieces(
    pieces: Sequence[Piece], tokenizer: "PreTrainedTokenizerFast", length: int
) -> tuple[list[dict[str, "np.ndarray"]], list[int]]:
    """Tokenize pieces and cut each into rows of at most `length` tokens.

    Returns:
        The rows, and the number of the piece that each belongs to.

    Raises:
        DataError: If the tokenizer has no end mark.
    """
    end = end_token_of(tokenizer)
    with text_encoder(tokenizer) as encode:
        encoded = iter(encode([part for piece in pieces for part in piece.parts]))
        rows: list[dict[str, np.ndarray]] = []
        owners: list[int] = []
        for number, piece in enumerate(pieces):
            ids = [end]
            for is_end in piece.ends:
                ids += next(encoded)
                ids += [end] if is_end else []
            if len(ids) < 2:  # a tokenizer may see nothing in a piece of spaces
                continue
            found = CausalRows(np.asarray(ids, dtype=np.int64), length, "a piece of text")
            rows += [found[index] for index in range(len(found))]
            owners += [number] * len(found)
    return rows, owners
