"""Documents of a data set on the Hugging Face Hub, downloaded or streamed."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from .documents import DataError, Document
from .text_columns import ColumnChoice

if TYPE_CHECKING:
    import datasets


class HubDocuments:
    """Rows of `datasets.load_dataset(name, split=..., streaming=...)`, in the order of the Hub.

    Args:
        name: Repository of the data set, for example `thebajajra/Ecom-niverse`. A configuration
            follows after a colon: `wikitext:wikitext-2-raw-v1`.
        split: Split of the data set.
        columns: The columns that make text and group.
        streaming: Read over the network while iterating, without a download first.

    Raises:
        DataError: If `name` is empty.
    """

    def __init__(
        self, name: str, split: str, columns: ColumnChoice, streaming: bool = False
    ) -> None:
        """Keep the name; the data set is opened by `documents()`."""
        if not name.strip(":"):
            raise DataError("data.name is empty; give a data set such as thebajajra/Ecom-niverse")
        self.name = name
        self.split = split
        self.columns = columns
        self.streaming = streaming

    def describe(self) -> dict[str, str]:
        """Return name, split and columns."""
        chosen = self.columns.text_columns or (self.columns.text_column or "text",)
        return {
            "source": "hub",
            "name": self.name,
            "split": self.split,
            "text_columns": ",".join(chosen),
            "group_column": str(self.columns.group_column),
        }

    def documents(self, start: int = 0) -> Iterator[Document]:
        """Yield the documents from number `start` on.

        Raises:
            DataError: If the data set cannot be opened, or the columns are not there.
        """
        import datasets

        repository, _, configuration = self.name.partition(":")
        try:
            rows = datasets.load_dataset(
                repository, configuration or None, split=self.split, streaming=self.streaming
            )
        except (OSError, ValueError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise DataError(
                f"data.name={self.name} (split {self.split}) cannot be loaded: {reason}; check "
                f"the name, the split and the network, or give a local data.path="
            ) from error
        if self.streaming:
            yield from self._streamed(rows, start)
            return
        resolved = self.columns.resolve(list(rows.column_names), self.name)
        rows = rows.select_columns(resolved.names).select(range(start, len(rows)))
        for number, row in enumerate(rows, start):
            yield resolved.document(row, number)

    def _streamed(self, rows: "datasets.IterableDataset", start: int) -> Iterator[Document]:
        resolved = None
        for number, row in enumerate(rows.skip(start) if start else rows, start):
            if resolved is None:
                # A streamed data set may not know its columns before the first row is read.
                resolved = self.columns.resolve(list(row), self.name)
            yield resolved.document(row, number)
