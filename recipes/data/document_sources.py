"""From recipe keys to a document source: embedded text, files, a Hub data set, product data."""

from collections.abc import Sequence
from pathlib import Path

from .documents import DataError, DocumentSource
from .ecommerce_corpus import EcommerceCorpus
from .embedded_corpus import EmbeddedCorpus
from .file_documents import FileDocuments
from .hub_documents import HubDocuments
from .text_columns import ColumnChoice

SOURCES = ("embedded", "files", "hub", "ecommerce")


def open_source(
    source: str | None = None,
    *,
    path: str | Path | Sequence[str | Path] | None = None,
    name: str | None = None,
    split: str = "train",
    columns: ColumnChoice | None = None,
    streaming: bool = False,
    max_bytes: int | None = None,
    noncommercial: bool = False,
) -> DocumentSource:
    """Open the documents that a recipe names.

    Args:
        source: One of `SOURCES`. None decides by the other keys: `path` means files, `name` means
            hub, neither means embedded.
        path: File(s) or folder(s); the folder of the sets for "ecommerce".
        name: Hub data set.
        split: Split of a Hub data set or of a saved `DatasetDict`.
        columns: Text and group columns of tables.
        streaming: Read a Hub data set without downloading it first.
        max_bytes: Limit of the embedded corpus.
        noncommercial: Include e-commerce sets with a non-commercial licence.

    Raises:
        DataError: If the keys do not fit together or name nothing that can be read.
    """
    if source is None:
        source = "files" if path is not None else "hub" if name is not None else "embedded"
    columns = columns or ColumnChoice()
    if source == "embedded":
        return EmbeddedCorpus(max_bytes)
    if source == "hub":
        if name is None:
            raise DataError("data.source=hub needs data.name=; give a data set of the Hub")
        return HubDocuments(name, split, columns, streaming)
    if source not in SOURCES:
        raise DataError(f"data.source={source} is unknown; allowed: {', '.join(SOURCES)}")
    if path is None:
        raise DataError(f"data.source={source} needs data.path=; give a file or a folder")
    paths = [path] if isinstance(path, str | Path) else list(path)
    if source == "files":
        return FileDocuments(paths, columns, split)
    if len(paths) != 1:
        raise DataError(f"data.source=ecommerce takes one folder, not {len(paths)}; give one path")
    return EcommerceCorpus(paths[0], noncommercial)
