"""Documents out of local files and folders.

| name | a document is |
| --- | --- |
| .txt .txt.gz | a paragraph: lines up to a blank line |
| .jsonl .jsonl.gz | a line, one JSON object |
| .json | an object of the list in the file (one object a line works too) |
| .csv .csv.gz | a row; the first line names the columns |
| .parquet | a row |
| a folder of `Dataset.save_to_disk` | a row |
| any other folder | all of these in it, sub-folders included, in the order of their names |
"""

import csv
import gzip
import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TextIO

from .documents import DataError, Document
from .text_columns import ColumnChoice, ResolvedColumns

SUFFIXES = (".txt", ".txt.gz", ".jsonl", ".jsonl.gz", ".json", ".csv", ".csv.gz", ".parquet")
MAX_FIELD_CHARACTERS = 2**31 - 1  # the csv module stops at 131,072 otherwise
DAMAGED = (
    UnicodeDecodeError,
    json.JSONDecodeError,
    csv.Error,
    EOFError,
    gzip.BadGzipFile,
    zlib.error,
)


class FileDocuments:
    """Documents of local paths, in the order given and sorted inside folders.

    Args:
        paths: Files or folders.
        columns: The columns that make text and group; without meaning for .txt.
        split: Which part of a saved `DatasetDict` to read.

    Raises:
        DataError: If a path does not exist, or nothing readable is under it.
    """

    def __init__(
        self, paths: Sequence[str | Path], columns: ColumnChoice, split: str = "train"
    ) -> None:
        """Find the files; they are read by `documents()`."""
        if not paths:
            raise DataError("data.path is empty; give a file or a folder")
        self.columns = columns
        self.split = split
        self.files = [file for path in paths for file in _readable_files(Path(path))]
        self.paths = [str(path) for path in paths]

    def describe(self) -> dict[str, str]:
        """Return the paths and columns."""
        chosen = self.columns.text_columns or (self.columns.text_column or "text",)
        return {
            "source": "files",
            "path": ",".join(self.paths),
            "text_columns": ",".join(chosen),
            "group_column": str(self.columns.group_column),
        }

    def documents(self, start: int = 0) -> Iterator[Document]:
        """Yield the documents from number `start` on.

        Raises:
            DataError: If a file cannot be read as what its name says.
        """
        return islice(self._all_documents(), start, None)

    def _all_documents(self) -> Iterator[Document]:
        for file in self.files:
            try:
                yield from self._file_documents(file)
            except DAMAGED as error:
                raise DataError(
                    f"{file} cannot be read: {error}; allowed is UTF-8 text of the form its "
                    f"name says; convert or remove it"
                ) from error

    def _file_documents(self, file: Path) -> Iterator[Document]:
        if file.is_dir():
            yield from _saved_documents(file, self.split, self.columns)
            return
        suffix = file.name.removesuffix(".gz").rpartition(".")[2]
        if suffix == "txt":
            yield from _paragraphs(file)
        elif suffix == "parquet":
            yield from _parquet_documents(file, self.columns)
        elif suffix == "csv":
            yield from _csv_documents(file, self.columns)
        else:
            yield from _json_documents(file, self.columns)


def _is_saved_dataset(path: Path) -> bool:
    return (path / "state.json").is_file() or (path / "dataset_dict.json").is_file()


def _readable_files(path: Path) -> list[Path]:
    allowed = f"allowed: {' '.join(SUFFIXES)} or a folder with such files"
    if not path.exists():
        raise DataError(f"data.path={path} does not exist; {allowed}; check the path")
    if path.is_file():
        if not path.name.endswith(SUFFIXES):
            raise DataError(f"data.path={path} is of an unknown kind; {allowed}; convert it")
        return [path]
    if _is_saved_dataset(path):
        return [path]
    files = sorted(file for file in path.rglob("*") if file.name.endswith(SUFFIXES))
    if not files:
        raise DataError(f"data.path={path} holds no readable file; {allowed}")
    return files


def _open_text(file: Path) -> TextIO:
    if file.suffix == ".gz":
        return gzip.open(file, "rt", encoding="utf-8", newline="")
    return file.open(encoding="utf-8", newline="")


def _paragraphs(file: Path) -> Iterator[Document]:
    with _open_text(file) as stream:
        lines: list[str] = []
        for line in stream:
            if line.strip():
                lines.append(line.rstrip("\r\n"))
            elif lines:
                yield _text_document("\n".join(lines), file)
                lines = []
        if lines:
            yield _text_document("\n".join(lines), file)


def _text_document(text: str, file: Path) -> Document:
    return Document(text=text, group=text, origin=file.name)


def _csv_documents(file: Path, columns: ColumnChoice) -> Iterator[Document]:
    csv.field_size_limit(MAX_FIELD_CHARACTERS)
    with _open_text(file) as stream:
        reader = csv.DictReader(stream)
        resolved = columns.resolve(list(reader.fieldnames or []), str(file))
        for number, row in enumerate(reader):
            yield resolved.document(row, number)


def _json_documents(file: Path, columns: ColumnChoice) -> Iterator[Document]:
    resolved: ResolvedColumns | None = None
    for number, row in enumerate(_json_rows(file)):
        if not isinstance(row, Mapping):
            raise DataError(
                f"{file}, row {number}: {type(row).__name__} found, but each row must be a JSON "
                f'object such as {{"text": "..."}}'
            )
        if resolved is None:
            resolved = columns.resolve([str(key) for key in row], str(file))
        missing = [name for name in resolved.names if name not in row]
        if missing:
            raise DataError(
                f"{file}, row {number} has no key '{missing[0]}'; its keys are: {', '.join(row)}"
            )
        yield resolved.document(row, number)


def _json_rows(file: Path) -> Iterator[object]:
    with _open_text(file) as stream:
        if ".jsonl" not in file.name and stream.read(1) == "[":
            stream.seek(0)
            yield from json.load(stream)
            return
        stream.seek(0)
        for line in stream:
            if line.strip():
                yield json.loads(line)


def _parquet_documents(file: Path, columns: ColumnChoice) -> Iterator[Document]:
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.ParquetFile(file)
    except pyarrow.ArrowInvalid as error:
        raise DataError(f"{file} is no parquet file ({error}); write it again") from error
    with table:
        resolved = columns.resolve(table.schema_arrow.names, str(file))
        number = 0
        for batch in table.iter_batches(batch_size=1024, columns=resolved.names):
            for row in batch.to_pylist():
                yield resolved.document(row, number)
                number += 1


def _saved_documents(folder: Path, split: str, columns: ColumnChoice) -> Iterator[Document]:
    import datasets

    loaded = datasets.load_from_disk(str(folder))
    if isinstance(loaded, datasets.DatasetDict):
        if split not in loaded:
            raise DataError(
                f"{folder} has no split '{split}' (data.split); its splits are: {', '.join(loaded)}"
            )
        loaded = loaded[split]
    resolved = columns.resolve(loaded.column_names, str(folder))
    for number, row in enumerate(loaded.select_columns(resolved.names)):
        yield resolved.document(row, number)
