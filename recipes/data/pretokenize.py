"""Tokenise and pack a source once into a folder of Arrow files, and load such a folder.

    OUTPUT/manifest.json            settings, counts, one record per shard
    OUTPUT/request.json             what was asked for, where a recipe did
    OUTPUT/tokenizer/               the tokenizer
    OUTPUT/train/00000.arrow ...    rows: input_ids, document_ids (1, 2, 3, ...)
    OUTPUT/validation/00000.arrow

An interrupted preparation continues after the last window in the manifest when it is run again,
and the finished folder has the same bytes as one that was made in one go.
"""

import json
import logging
import platform
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..whole_file import write_whole, write_whole_file
from .documents import SPLITS, CorpusScan, DataError, DocumentSource, Split, scan_documents
from .encoding_pool import text_encoder
from .manifest import MANIFEST_FILE, Manifest, PreparationSettings, ShardRecord
from .row_windows import WINDOW_DOCUMENTS, RowSettings, RowWindow, SplitRows, row_windows
from .tokenizer_training import check_tokenizer, special_tokens, tokenizer_hash

if TYPE_CHECKING:
    import datasets
    from transformers import PreTrainedTokenizerFast

logger = logging.getLogger(__name__)

TOKENIZER_FOLDER = "tokenizer"
# What was asked for, beside the manifest that says what was made.
REQUEST_FILE = "request.json"


def prepare(
    source: DocumentSource,
    tokenizer: "PreTrainedTokenizerFast",
    output: str | Path,
    *,
    max_length: int = 512,
    packing: bool = True,
    validation_fraction: float = 0.05,
    num_proc: int = 1,
    window_documents: int = WINDOW_DOCUMENTS,
    progress: bool = True,
    scan: CorpusScan | None = None,
    request: Mapping[str, Any] | None = None,
) -> Manifest:
    """Write the packed rows of a source to a folder, or finish an interrupted run.

    Args:
        source: Documents.
        tokenizer: Fast tokenizer with mask and pad tokens.
        output: Folder to write; new, empty, or left by an interrupted run with these settings.
        max_length: Longest row in tokens.
        packing: Whether documents share rows.
        validation_fraction: Share of the groups for the validation split; 0 for none.
        num_proc: Processes that tokenise; the result does not depend on it.
        window_documents: Source rows per window (and per shard).
        progress: Whether to show a progress bar.
        scan: Result of `scan_documents` for this source and fraction, if the caller has it.
        request: Keys that asked for these rows, kept in request.json; None leaves it as it is.

    Returns:
        The manifest of the finished folder.

    Raises:
        DataError: If the data or settings cannot be used, or differ from those in `output`.
    """
    folder = Path(output)
    check_tokenizer(tokenizer, tokenizer.name_or_path)
    settings = RowSettings(special_tokens(tokenizer), max_length, packing, window_documents)
    settings.special.room(max_length)
    if window_documents < 1:
        raise DataError(f"window_documents={window_documents} must be at least 1")
    scan = scan or scan_documents(source, validation_fraction)
    wanted = PreparationSettings(
        input_hash=scan.content_hash,
        tokenizer_hash=tokenizer_hash(tokenizer),
        vocab_size=len(tokenizer),
        max_length=max_length,
        packing=packing,
        window_documents=window_documents,
        validation_fraction=validation_fraction,
    )
    manifest = _open_manifest(folder, wanted, source)
    if manifest.complete:
        return manifest
    if request is not None:
        # Before the rows: no complete folder lacks the request that it was made for.
        write_whole_file(folder / REQUEST_FILE, json.dumps(request, indent=1) + "\n")
    tokenizer.save_pretrained(str(folder / TOKENIZER_FOLDER))
    with text_encoder(tokenizer, num_proc) as encode:
        windows = row_windows(source, scan.rule, encode, settings, manifest.windows)
        _write_windows(folder, manifest, windows, scan.rows, progress)
    return manifest


def _open_manifest(folder: Path, wanted: PreparationSettings, source: DocumentSource) -> Manifest:
    if (folder / MANIFEST_FILE).is_file():
        manifest = Manifest.load(folder)
        wanted.require_equal(manifest.settings, folder)
        for left_over in folder.rglob("*.tmp"):
            left_over.unlink()
        if manifest.windows and not manifest.complete:
            logger.info("continue %s after window %d", folder, manifest.windows - 1)
        return manifest
    # All that a kill before the first manifest can leave; saving writes over it.
    unfinished = folder / f"{MANIFEST_FILE}.tmp"
    if folder.is_file() or (folder.is_dir() and any(p != unfinished for p in folder.iterdir())):
        raise DataError(f"{folder} is not empty and has no {MANIFEST_FILE}; pass another output")
    versions = {name: version(name) for name in ("tokenizers", "transformers", "pyarrow")}
    versions["python"] = platform.python_version()
    manifest = Manifest(wanted, source.describe(), versions)
    manifest.save(folder)
    return manifest


def _write_windows(
    folder: Path,
    manifest: Manifest,
    windows: Iterator[RowWindow],
    source_rows: int,
    progress: bool,
) -> None:
    from tqdm import tqdm

    done = manifest.windows * manifest.settings.window_documents
    with tqdm(
        total=source_rows, initial=done, unit="doc", desc="prepare", disable=not progress
    ) as bar:
        for window in windows:
            for split in SPLITS:
                if window.splits[split].rows:
                    manifest.shards.append(
                        write_shard(folder, split, window.number, window.splits[split])
                    )
            manifest.windows = window.number + 1
            manifest.save(folder)
            bar.update(window.source_rows)
    manifest.complete = True
    manifest.save(folder)


def write_shard(folder: Path, split: Split, window: int, rows: SplitRows) -> ShardRecord:
    """Write the rows of one split of one window as an Arrow stream file.

    Raises:
        DataError: If the disk is full.
    """
    import pyarrow.ipc

    name = f"{split}/{window:05d}.arrow"
    table = rows.table()

    def write(path: Path) -> None:
        with pyarrow.ipc.new_stream(str(path), table.schema) as writer:
            writer.write_table(table)

    write_whole(folder / name, write)
    return ShardRecord(
        split=split,
        window=window,
        file=name,
        documents=rows.documents,
        tokens=rows.tokens,
        rows=len(rows.rows),
        bytes=(folder / name).stat().st_size,
        max_token_id=rows.max_token_id,
    )


def load_prepared(
    path: str | Path, split: Split, vocab_size: int | None = None
) -> "datasets.Dataset":
    """Load one split of a prepared folder, memory-mapped.

    Args:
        path: Folder written by `prepare`.
        split: "train" or "validation".
        vocab_size: Vocabulary of the model; None takes that of the tokenizer in the manifest.

    Returns:
        Rows with `input_ids` and `document_ids`, lists of equal length; no rows where the split
        is empty.

    Raises:
        DataError: If the folder is not complete, a shard is missing or of another size, or a
            token id lies beyond the vocabulary.
    """
    import datasets

    folder = Path(path)
    manifest = Manifest.load(folder)
    if not manifest.complete:
        raise DataError(
            f"{folder} is not complete ({manifest.windows} windows done); run the same "
            f"`nestling prepare` again, it continues where it stopped"
        )
    limit = manifest.settings.vocab_size if vocab_size is None else vocab_size
    parts = []
    for shard in (shard for shard in manifest.shards if shard.split == split):
        file = folder / shard.file
        size = file.stat().st_size if file.is_file() else None
        if size != shard.bytes:
            found = "is missing" if size is None else f"has {size} bytes"
            raise DataError(
                f"{file} {found}, the manifest says {shard.bytes} bytes; remove {folder} and "
                f"prepare the data again"
            )
        part = datasets.Dataset.from_file(str(file))
        _require_known_tokens(part, limit, file)
        parts.append(part)
    if not parts:
        return datasets.Dataset(SplitRows(0, []).table())
    return datasets.concatenate_datasets(parts)


def _require_known_tokens(rows: "datasets.Dataset", vocab_size: int, name: Path) -> None:
    import pyarrow.compute

    for chunk in rows.data.column("input_ids").chunks:
        limits = pyarrow.compute.min_max(chunk.flatten()).as_py()
        for token_id in (limits["min"], limits["max"]):
            if token_id is not None and not 0 <= token_id < vocab_size:
                raise DataError(
                    f"{name} holds token id {token_id}, but the vocabulary has {vocab_size} "
                    f"tokens (0 to {vocab_size - 1}); prepare the data with the tokenizer of the "
                    f"model, or set the model's vocab_size"
                )
