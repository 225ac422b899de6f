"""Text or numbers as one long stream of token ids a split, on disk or in memory.

    OUTPUT/stream.json              what was asked for, counts, SHA-256 of each split
    OUTPUT/tokenizer/               the tokenizer, where there is one
    OUTPUT/train.npy  validation.npy    ids, mapped into memory when read

Documents follow each other with an end token between them, as decoders are trained. The
description is written last: a folder without it is not finished and is made again.
"""

import hashlib
import json
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..whole_file import write_whole, write_whole_file
from .documents import SPLITS, DataError, Split
from .encoding_pool import text_encoder
from .pretokenize import TOKENIZER_FOLDER

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

STREAM_FILE = "stream.json"
SCHEMA_VERSION = 1
TEXTS_PER_BATCH = 512


@dataclass(frozen=True)
class TokenStreams:
    """The splits of a corpus.

    Attributes:
        ids: split -> token ids, (tokens,).
        tokenizer: of the ids; None where they came as numbers.
        description: what was asked for and what there is, as JSON can hold it.
    """

    ids: dict[Split, NDArray[np.integer[Any]]]
    tokenizer: "PreTrainedTokenizerFast | None"
    description: dict[str, Any]


def end_token_of(tokenizer: "PreTrainedTokenizerFast") -> int:
    """Return the id of the token that ends a document: ``eos``, or else ``sep``.

    Raises:
        DataError: if the tokenizer has neither.
    """
    end = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else tokenizer.sep_token_id
    if end is None:
        raise DataError(
            f"the tokenizer {tokenizer.name_or_path} has no end token, which separates documents; "
            "give it an eos_token, or take another tokenizer (data.tokenizer=…)"
        )
    return int(end)


def encode_stream(
    texts: Iterable[str], tokenizer: "PreTrainedTokenizerFast", num_proc: int = 1
) -> tuple[NDArray[np.integer[Any]], int, int]:
    """Turn texts into one stream, each followed by the end token.

    Returns:
        The ids, the number of documents and the number of UTF-8 bytes.

    Raises:
        DataError: if the tokenizer has no end token.
    """
    end = end_token_of(tokenizer)
    kind = np.uint16 if len(tokenizer) <= 2**16 else np.uint32
    pieces: list[NDArray[np.integer[Any]]] = [np.zeros(0, dtype=kind)]
    documents = size = 0
    with text_encoder(tokenizer, num_proc) as encode:
        rest = iter(texts)
        while batch := list(islice(rest, TEXTS_PER_BATCH)):
            for text, ids in zip(batch, encode(batch), strict=True):
                pieces.append(np.asarray([*ids, end], dtype=kind))
                documents += 1
                size += len(text.encode("utf-8", "surrogatepass"))
    return np.concatenate(pieces), documents, size


def write_streams(folder: Path, streams: TokenStreams) -> None:
    """Write the splits, then the description that makes the folder complete."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / STREAM_FILE).unlink(missing_ok=True)
    if streams.tokenizer is not None:
        streams.tokenizer.save_pretrained(str(folder / TOKENIZER_FOLDER))
    elif (folder / TOKENIZER_FOLDER).is_dir():
        # Of an interrupted preparation of text; these ids would be read as its tokens.
        shutil.rmtree(folder / TOKENIZER_FOLDER)
    for split in SPLITS:
        write_whole(_split_file(folder, split), partial(_save, streams.ids[split]))
    text = json.dumps(streams.description, indent=1, ensure_ascii=False) + "\n"
    write_whole_file(folder / STREAM_FILE, text)


def _save(ids: NDArray[np.integer[Any]], path: Path) -> None:
    with path.open("wb") as file:
        np.save(file, ids, allow_pickle=False)


def _split_file(folder: Path, split: Split) -> Path:
    return folder / f"{split}.npy"


def read_description(folder: Path) -> dict[str, Any] | None:
    """Return the description of a finished folder; None where there is none.

    Raises:
        DataError: if it cannot be read, or another version wrote it.
    """
    path = folder / STREAM_FILE
    if not path.is_file():
        return None
    try:
        description: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        version = description["schema_version"]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path} is damaged ({error}); remove {folder} and prepare again"
        ) from error
    if version != SCHEMA_VERSION:
        raise DataError(
            f"{path} has schema version {version}, this reads {SCHEMA_VERSION}; remove {folder} "
            "and prepare again"
        )
    return description


def open_streams(folder: Path) -> TokenStreams:
    """Map a finished folder into memory.

    Raises:
        DataError: if it is not finished or damaged.
    """
    from .tokenizer_training import open_tokenizer

    description = read_description(folder)
    if description is None:
        raise DataError(f"{folder} holds no prepared tokens; run nestling prepare")
    ids: dict[Split, NDArray[np.integer[Any]]] = {}
    for split in SPLITS:
        path = _split_file(folder, split)
        try:
            ids[split] = np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError) as error:
            raise DataError(f"{path} is damaged: {error}; remove {folder}") from error
        if len(ids[split]) != description["counts"][split]["tokens"]:
            raise DataError(f"{path} has {len(ids[split])} tokens, not what {STREAM_FILE} says")
    has_tokenizer = (folder / TOKENIZER_FOLDER).is_dir()
    tokenizer = open_tokenizer(folder / TOKENIZER_FOLDER) if has_tokenizer else None
    return TokenStreams(ids, tokenizer, description)


def stream_hash(ids: NDArray[np.integer[Any]]) -> str:
    """Return the SHA-256 of the ids as little-endian 32-bit numbers, piece by piece."""
    digest = hashlib.sha256()
    for piece in _pieces(ids):
        digest.update(piece.astype("<u4").tobytes())
    return digest.hexdigest()


def _pieces(ids: NDArray[np.integer[Any]], size: int = 1 << 20) -> Iterator[NDArray[Any]]:
    for start in range(0, len(ids), size):
        yield ids[start : start + size]
