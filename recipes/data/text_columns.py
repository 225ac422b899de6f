"""Which columns of a table make the text of a document, and which one its group."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from .documents import DataError, Document


@dataclass(frozen=True, slots=True)
class ColumnChoice:
    """The columns a recipe asks for.

    Attributes:
        text_column: One text column (`data.text_column`).
        text_columns: Several text columns, joined by line breaks (`data.text_columns`).
        group_column: Rows with equal values land in the same split (`data.group_column`).
            Without it the text itself is the group, so exact repeats stay on one side.
    """

    text_column: str | None = None
    text_columns: tuple[str, ...] = ()
    group_column: str | None = None

    def resolve(self, columns: Sequence[str], where: str) -> "ResolvedColumns":
        """Check the choice against the columns that exist.

        Without a choice the column `text` is taken, or the only column there is.

        Args:
            columns: The columns of the table.
            where: Name of the table for the error message.

        Raises:
            DataError: If a column is missing, both keys are set, or the choice is not clear.
        """
        listed = ", ".join(columns) or "none"
        if self.text_column is not None and self.text_columns:
            raise DataError(
                f"data.text_column={self.text_column} and data.text_columns="
                f"{list(self.text_columns)} are both set; set one of them"
            )
        if self.text_columns:
            text = self.text_columns
        elif self.text_column is not None:
            text = (self.text_column,)
        elif "text" in columns:
            text = ("text",)
        elif len(columns) == 1:
            text = (columns[0],)
        else:
            raise DataError(
                f"{where} has no column 'text'; its columns are: {listed}; set data.text_column="
            )
        group = () if self.group_column is None else (self.group_column,)
        for column in (*text, *group):
            if column not in columns:
                key = "data.group_column" if column in group else "data.text_column(s)"
                raise DataError(
                    f"{where} has no column '{column}' ({key}); its columns are: {listed}"
                )
        return ResolvedColumns(text, self.group_column, where)


@dataclass(frozen=True, slots=True)
class ResolvedColumns:
    """Columns that exist; turns rows into documents.

    Attributes:
        text: Text columns in the order in which they are joined.
        group: Group column, or None.
        where: Name of the table for error messages.
    """

    text: tuple[str, ...]
    group: str | None
    where: str

    @property
    def names(self) -> list[str]:
        """All columns that have to be read."""
        return list(dict.fromkeys([*self.text, *([self.group] if self.group else [])]))

    def document(self, row: Mapping[str, object], number: int) -> Document:
        """Make the document of row `number` (from 0).

        Raises:
            DataError: If a column is missing in this row or holds no text.
        """
        parts: list[str] = []
        for column in self.text:
            value = row.get(column, "") if row else ""
            if value is None:
                continue
            if not isinstance(value, str | int | float):
                raise DataError(
                    f"{self.where}, row {number}: column '{column}' holds "
                    f"{type(value).__name__}, not text; choose another data.text_column"
                )
            parts.append(str(value))
        text = "\n".join(part for part in parts if part.strip())
        if self.group is None:
            return Document(text=text, group=text, origin=self.where)
        return Document(text=text, group=str(row.get(self.group)), origin=self.where)
