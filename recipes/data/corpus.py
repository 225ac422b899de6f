"""Recipe keys in, training data out: the one place where the parts of `recipes.data` meet."""

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..recipe_schema import DataSection
from .document_sources import open_source
from .documents import (
    SPLITS,
    CorpusScan,
    DataError,
    DocumentSource,
    Split,
    SplitRule,
    scan_documents,
    texts_of_split,
)
from .encoding_pool import text_encoder
from .manifest import MANIFEST_FILE, Manifest
from .packing import fill_rate
from .pretokenize import REQUEST_FILE, TOKENIZER_FOLDER, load_prepared, prepare
from .row_windows import WINDOW_DOCUMENTS, RowSettings, SplitRows, row_windows
from .text_columns import ColumnChoice
from .tokenizer_training import (
    encode_texts,
    load_tokenizer,
    special_tokens,
    tokenizer_hash,
    train_tokenizer,
)

if TYPE_CHECKING:
    import datasets
    from transformers import PreTrainedTokenizerFast

    from .streaming import StreamingPackedRows

logger = logging.getLogger(__name__)

REQUEST_KEYS = (
    "source path name split text_column text_columns group_column noncommercial max_bytes "
    "tokenizer vocab_size"
).split()

# A stream has no end to wait for: tokenizer and validation rows come from its beginning.
STREAM_HEAD_DOCUMENTS = 20_000
STREAM_VALIDATION_DOCUMENTS = 1_000


@dataclass(frozen=True, slots=True)
class PreparedData:
    """What a training run needs of its data.

    Attributes:
        train_rows: Rows with `input_ids` and `document_ids`; an endless iterable when streaming.
        validation_rows: Rows of the validation split; empty with `validation_fraction=0`.
        tokenizer: The tokenizer of the rows.
        manifest: Settings and counts, as JSON can hold them.
    """

    train_rows: "datasets.Dataset | StreamingPackedRows"
    validation_rows: "datasets.Dataset"
    tokenizer: "PreTrainedTokenizerFast"
    manifest: dict[str, Any]


def source_of(section: DataSection) -> DocumentSource:
    """Open the documents that the `data` section of a recipe names.

    Raises:
        DataError: If the keys do not fit together or name nothing that can be read.
    """
    return open_source(
        section.source,
        path=section.path,
        name=section.name,
        split=section.split,
        columns=ColumnChoice(
            section.text_column, tuple(section.text_columns), section.group_column
        ),
        streaming=section.streaming,
        max_bytes=section.max_bytes,
        noncommercial=section.noncommercial,
    )


def build_data(section: DataSection, seed: int = 0, progress: bool = True) -> PreparedData:
    """Build the data of a run.

    With `pretokenized_path`: a complete folder is loaded without touching the source, otherwise
    it is prepared (or finished) first. Without it the rows are made in memory. With `streaming`
    they are made while training.

    Args:
        section: The `data` keys of a recipe.
        seed: Seed of the order of a stream.
        progress: Whether long work shows a progress bar.

    Raises:
        DataError: If the data or the settings cannot be used.
    """
    if section.streaming:
        return _stream_data(section, seed)
    if section.pretokenized_path is not None:
        prepare_data(section, progress, same_request=False)
        return _load_folder(Path(section.pretokenized_path))
    return _rows_in_memory(section)


def prepare_data(
    section: DataSection, progress: bool = True, same_request: bool = True
) -> Manifest:
    """Fill the folder `pretokenized_path`, or finish it; a complete one is only checked.

    Args:
        section: The `data` keys of a recipe.
        progress: Whether long work shows a progress bar.
        same_request: Whether a complete folder must have been asked for with the same keys. An
            evaluation reads whatever rows it is given; training must not take others.

    Raises:
        DataError: If the key is missing, or the folder was made with other settings.
    """
    if section.pretokenized_path is None:
        raise DataError("data.pretokenized_path is not set; name the folder to write")
    folder = Path(section.pretokenized_path)
    if (folder / MANIFEST_FILE).is_file():
        manifest = Manifest.load(folder)
        if manifest.complete:
            _require_same_keys(section, manifest, folder)
            if same_request:
                _require_same_request(section, folder)
            return manifest
    source = source_of(section)
    scan = scan_documents(source, section.validation_fraction)
    return prepare(
        source,
        _tokenizer_of(section, source, scan.rule),
        folder,
        max_length=section.max_length,
        packing=section.packing,
        validation_fraction=section.validation_fraction,
        num_proc=section.num_proc,
        progress=progress,
        scan=scan,
        request=_request(section) if same_request else None,
    )


def _require_same_keys(section: DataSection, manifest: Manifest, folder: Path) -> None:
    # The source may be absent where the folder is used, so only the keys are compared.
    settings = manifest.settings
    pairs = {
        "max_length": (settings.max_length, section.max_length),
        "packing": (settings.packing, section.packing),
        "validation_fraction": (settings.validation_fraction, section.validation_fraction),
    }
    differing = [
        f"{key} is {there} there and {here} here"
        for key, (there, here) in pairs.items()
        if here != there
    ]
    if differing:
        raise DataError(
            f"data.pretokenized_path={folder} was prepared with other settings: "
            f"{'; '.join(differing)}; use its values, or pass another folder"
        )


def _request(section: DataSection) -> dict[str, Any]:
    """Return the keys that decide which rows there are; the source itself may be absent later."""
    return {key: section.__dict__[key] for key in REQUEST_KEYS}


def _require_same_request(section: DataSection, folder: Path) -> None:
    path = folder / REQUEST_FILE
    if not path.is_file():
        return  # prepared by calling `prepare` directly
    there, here = json.loads(path.read_text(encoding="utf-8")), _request(section)
    differing = [
        f"data.{key} was {there.get(key)!r} and is now {here[key]!r}"
        for key in REQUEST_KEYS
        if there.get(key) != here[key]
    ]
    if differing:
        raise DataError(
            f"{folder} holds other rows: {'; '.join(differing)}; use its values, or pass another "
            "data.pretokenized_path or output_dir"
        )


def _load_folder(folder: Path) -> PreparedData:
    tokenizer = load_tokenizer(folder / TOKENIZER_FOLDER)
    train, validation = (load_prepared(folder, split, len(tokenizer)) for split in SPLITS)
    return PreparedData(train, validation, tokenizer, Manifest.load(folder).to_dict())


def _tokenizer_of(
    section: DataSection, source: DocumentSource, rule: SplitRule, documents: int | None = None
) -> "PreTrainedTokenizerFast":
    if section.tokenizer is not None:
        return load_tokenizer(section.tokenizer)
    head = islice(source.documents(), documents)
    texts = texts_of_split(head, rule, "train")
    return train_tokenizer(texts, section.vocab_size, section.max_length)


def _rows_in_memory(section: DataSection) -> PreparedData:
    import datasets
    import pyarrow

    source = source_of(section)
    scan = scan_documents(source, section.validation_fraction)
    tokenizer = _tokenizer_of(section, source, scan.rule)
    settings = _row_settings(section, tokenizer)
    parts: dict[Split, list[SplitRows]] = {split: [] for split in SPLITS}
    with text_encoder(tokenizer, section.num_proc) as encode:
        for window in row_windows(source, scan.rule, encode, settings):
            for split in SPLITS:
                parts[split].append(window.splits[split])
    train, validation = (
        datasets.Dataset(pyarrow.concat_tables(part.table() for part in parts[split]))
        for split in SPLITS
    )
    manifest = _description(section, source, tokenizer, scan)
    manifest["counts"] = {split: _counts(parts[split], section.max_length) for split in SPLITS}
    return PreparedData(train, validation, tokenizer, manifest)


def _row_settings(section: DataSection, tokenizer: "PreTrainedTokenizerFast") -> RowSettings:
    settings = RowSettings(
        special_tokens(tokenizer), section.max_length, section.packing, WINDOW_DOCUMENTS
    )
    settings.special.room(section.max_length)
    return settings


def _counts(parts: Sequence[SplitRows], max_length: int) -> dict[str, int | float]:
    rows, tokens = sum(len(part.rows) for part in parts), sum(part.tokens for part in parts)
    return {
        "documents": sum(part.documents for part in parts),
        "tokens": tokens,
        "rows": rows,
        "fill_rate": round(fill_rate(tokens, rows, max_length), 6),
    }


def _description(
    section: DataSection,
    source: DocumentSource,
    tokenizer: "PreTrainedTokenizerFast",
    scan: CorpusScan | None,
) -> dict[str, Any]:
    settings: dict[str, Any] = {
        "tokenizer_hash": tokenizer_hash(tokenizer),
        "vocab_size": len(tokenizer),
        "max_length": section.max_length,
        "packing": section.packing,
        "validation_fraction": section.validation_fraction,
    }
    if scan is not None:
        settings["input_hash"] = scan.content_hash
    return {"source": source.describe(), "settings": settings}


def _stream_data(section: DataSection, seed: int) -> PreparedData:
    import datasets

    from .streaming import StreamingPackedRows

    source = source_of(section)
    rule = SplitRule(section.validation_fraction)
    tokenizer = _tokenizer_of(section, source, rule, STREAM_HEAD_DOCUMENTS)
    settings = _row_settings(section, tokenizer)
    texts: list[str] = []
    if section.validation_fraction > 0:
        held_out = texts_of_split(source.documents(), rule, "validation")
        texts = list(islice(held_out, STREAM_VALIDATION_DOCUMENTS))
    rows = SplitRows(len(texts), settings.rows(encode_texts(tokenizer, texts)) if texts else [])
    train = StreamingPackedRows(
        source, tokenizer, settings, rule, "train", seed=seed, shuffle_buffer=section.shuffle_buffer
    )
    manifest = _description(section, source, tokenizer, None)
    manifest["counts"] = {"validation": _counts([rows], section.max_length)}
    return PreparedData(train, datasets.Dataset(rows.table()), tokenizer, manifest)
