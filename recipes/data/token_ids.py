"""Token ids written as numbers: in a string, or in a text file."""

import re
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .documents import DataError

_SEPARATORS = re.compile(r"[\s,\[\]]+")
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)(e[+-]?[0-9]+)?", re.IGNORECASE)
# A file with at least this share of numbers is meant as ids; prose and logs stay far below.
NUMBERS_OF_IDS = 0.8


def parse_token_ids(text: str, where: str, fix: str = "") -> NDArray[np.int64]:
    """Read numbers between spaces, commas or line ends.

    Args:
        text: such as "1 2 3" or "[1, 2, 3]".
        where: what is read, for errors.
        fix: what else to do about a word that is no id, for errors.

    Raises:
        DataError: if there is none, one is no number, or one is negative.
    """
    words = _words(text)
    if not words:
        raise DataError(f"{where} holds no token id; write numbers such as 1 2 3")
    wrong = next((place for place, word in enumerate(words) if not _is_id(word)), None)
    if wrong is not None:
        raise DataError(
            f"{where} holds {words[wrong]!r}, which is no token id, at place {wrong}; ids are "
            f"whole numbers >= 0 between spaces or commas{fix}"
        )
    numbers = [int(word) for word in words]
    if max(numbers) >= 2**31:
        raise DataError(f"{where} holds the id {max(numbers)}, ids must be below 2147483648")
    return np.asarray(numbers, dtype=np.int64)


def read_token_ids(path: Path, fix: str = "") -> NDArray[np.int64]:
    """Read the ids of a text file.

    Args:
        path: of the file.
        fix: what else to do about a word that is no id, for errors.

    Raises:
        DataError: if it cannot be read or holds something else.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"token ids of {path} cannot be read: {error}; give a text file") from error
    return parse_token_ids(text, str(path), fix)


def is_meant_as_token_ids(path: Path, head: int = 65536) -> bool:
    """Whether a text file begins with numbers and hardly anything else.

    It need not be a file that `read_token_ids` accepts: a stray word or a number below 0 among ids
    is a mistake that has to be named, not a reason to read all of it as text.
    """
    try:
        with path.open("rb") as file:
            words = _words(file.read(head).decode("utf-8", "replace"))
    except OSError:
        return False
    numbers = sum(_NUMBER.fullmatch(word) is not None for word in words)
    return bool(words) and numbers >= NUMBERS_OF_IDS * len(words)


def _words(text: str) -> list[str]:
    return [word for word in _SEPARATORS.split(text) if word]


def _is_id(word: str) -> bool:
    return word.isascii() and word.isdigit()


def require_vocabulary(
    ids: NDArray[np.integer[Any]],
    vocab_size: int,
    where: str,
    fix: str = "raise model.vocab_size",
) -> None:
    """Check that every id has a row in the embedding.

    Args:
        ids: token ids.
        vocab_size: rows of the embedding.
        where: what is checked, for errors.
        fix: what to do about it, for errors; the default is that of a recipe.

    Raises:
        DataError: naming the first id that has none.
    """
    outside = np.flatnonzero(ids >= vocab_size)
    if outside.size:
        raise DataError(
            f"{where} holds the id {int(ids[outside[0]])} at place {int(outside[0])}, but the "
            f"vocabulary has {vocab_size} tokens (0..{vocab_size - 1}); {fix}"
        )
