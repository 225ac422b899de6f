"""The ``data`` keys of a decoder's recipe in, streams of token ids out."""

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..ddl_schema import DdlDataSection
from .byte_tokenizer import byte_tokenizer
from .document_sources import open_source
from .documents import (
    SPLITS,
    DataError,
    DocumentSource,
    Split,
    scan_documents,
    texts_of_split,
)
from .text_columns import ColumnChoice
from .token_ids import is_meant_as_token_ids, parse_token_ids, read_token_ids
from .token_stream import (
    SCHEMA_VERSION,
    TokenStreams,
    encode_stream,
    open_streams,
    read_description,
    stream_hash,
    write_streams,
)
from .tokenizer_training import open_tokenizer, train_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

logger = logging.getLogger(__name__)

BYTES, TRAINED, IDS = "bytes", "train", "ids"
AS_TEXT = " (to read the file as text, set data.source=files data.tokenizer=bytes)"
# Below this losses, accuracies and calibrations of a validation split are mostly chance.
FEW_PREDICTED = 100
# Keys that do not change which tokens there are.
FREE_KEYS = ("pretokenized_path", "num_proc", "max_length")


def build_streams(section: DdlDataSection) -> TokenStreams:
    """Return the streams of a section, from its prepared folder where it names one.

    Raises:
        DataError: if the data cannot be used.
    """
    if section.pretokenized_path is None:
        streams = make_streams(section)
    else:
        prepare_streams(section)
        streams = open_streams(Path(section.pretokenized_path))
    predicted = len(streams.ids["validation"]) - 1
    if 0 < predicted < FEW_PREDICTED:
        logger.warning(
            "the validation split predicts %d tokens: fewer than %d say little about a model; give "
            "more validation data",
            predicted,
            FEW_PREDICTED,
        )
    return streams


def prepare_streams(
    section: DdlDataSection, check: Callable[[TokenStreams], object] | None = None
) -> None:
    """Fill the folder ``pretokenized_path``; a finished one is only checked.

    Args:
        section: the ``data`` keys.
        check: raises for streams that are of no use. Nothing is written then, so that the corrected
            command does not meet a folder of other tokens.

    Raises:
        DataError: if it was made with other keys, or the data cannot be used.
    """
    if section.pretokenized_path is None:
        raise DataError("data.pretokenized_path is not set; name the folder to write")
    folder = Path(section.pretokenized_path)
    found = read_description(folder)
    if found is None:
        streams = make_streams(section)
        if check is not None:
            check(streams)
        write_streams(folder, streams)
        return
    here, there = _request(section), found["request"]
    differing = [
        f"data.{key} was {there.get(key)!r} and is now {value!r}"
        for key, value in here.items()
        if there.get(key) != value
    ]
    if differing:
        raise DataError(
            f"{folder} holds other tokens: {'; '.join(differing)}; use its values, or pass another "
            "data.pretokenized_path or output_dir"
        )


def make_streams(section: DdlDataSection) -> TokenStreams:
    """Read and tokenize the data.

    Raises:
        DataError: if they cannot be used.
    """
    if section.train_tokens is not None or _are_ids(section):
        return _streams_of_ids(section)
    source = _source(section, section.path)
    if section.valid_path is None:
        rule = scan_documents(source, section.validation_fraction).rule
        places = {split: (source, rule, split) for split in SPLITS}
    else:
        # Each file is one split: all of it is what the rule calls training text.
        other = _source(section, section.valid_path)
        places = {
            "train": (source, scan_documents(source, 0.0).rule, "train"),
            "validation": (other, scan_documents(other, 0.0).rule, "train"),
        }

    def texts(split: Split) -> Iterator[str]:
        place, rule, part = places[split]
        return texts_of_split(place.documents(), rule, part)

    tokenizer = _tokenizer(section, texts("train"))
    ids: dict[Split, NDArray[np.integer[Any]]] = {}
    counts: dict[Split, dict[str, int]] = {}
    for split in SPLITS:
        ids[split], documents, size = encode_stream(texts(split), tokenizer, section.num_proc)
        counts[split] = {"tokens": len(ids[split]), "documents": documents, "bytes": size}
    return TokenStreams(ids, tokenizer, _description(section, source.describe(), ids, counts))


def _streams_of_ids(section: DdlDataSection) -> TokenStreams:
    """Read both splits from numbers; without validation ids the end of the stream is held out."""
    if section.train_tokens is not None:
        train = parse_token_ids(section.train_tokens, "data.train_tokens")
    else:
        train = read_token_ids(Path(str(section.path)), AS_TEXT)
    if section.valid_tokens is not None:
        validation = parse_token_ids(section.valid_tokens, "data.valid_tokens")
    elif section.valid_path is not None:
        validation = read_token_ids(Path(section.valid_path), AS_TEXT)
    else:
        held_out = round(len(train) * section.validation_fraction)
        train, validation = np.split(train, [len(train) - held_out])
    ids: dict[Split, NDArray[np.integer[Any]]] = {"train": train, "validation": validation}
    counts = {split: {"tokens": len(part), "documents": 1} for split, part in ids.items()}
    source = {"source": "token ids", "path": str(section.path)}
    return TokenStreams(ids, None, _description(section, source, ids, counts))


def _are_ids(section: DdlDataSection) -> bool:
    """Whether the files hold numbers: because the recipe says so, or hardly anything else.

    A recipe that names the source ``files`` says that they hold text.
    """
    if section.tokenizer == IDS:
        return True
    path = Path(section.path) if section.path else None
    if section.tokenizer != BYTES or section.source is not None:
        return False
    if path is None or path.suffix != ".txt" or not path.is_file():
        return False
    if is_meant_as_token_ids(path):
        logger.info("%s holds numbers: read as token ids", path)
        return True
    return False


def _source(section: DdlDataSection, path: str | None) -> DocumentSource:
    return open_source(
        section.source,
        path=path,
        name=section.name,
        split=section.split,
        columns=ColumnChoice(
            section.text_column, tuple(section.text_columns), section.group_column
        ),
        max_bytes=section.max_bytes,
        noncommercial=section.noncommercial,
    )


def _tokenizer(section: DdlDataSection, texts: Iterator[str]) -> "PreTrainedTokenizerFast":
    if section.tokenizer == BYTES:
        return byte_tokenizer(section.max_length)
    if section.tokenizer == TRAINED:
        return train_tokenizer(texts, section.vocab_size, section.max_length)
    return open_tokenizer(section.tokenizer)


def _request(section: DdlDataSection) -> dict[str, Any]:
    """Return the keys that decide which tokens there are."""
    return {key: value for key, value in asdict(section).items() if key not in FREE_KEYS}


def _description(
    section: DdlDataSection,
    source: dict[str, str],
    ids: dict[Split, NDArray[np.integer[Any]]],
    counts: Mapping[Split, dict[str, int]],
) -> dict[str, Any]:
    return {
        "schema_version": SCHEMA_VERSION,
        "source": source,
        "request": _request(section),
        "counts": counts,
        "sha256": {split: stream_hash(part) for split, part in ids.items()},
    }
