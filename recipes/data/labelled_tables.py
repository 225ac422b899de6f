"""Tables of a labelled set: one file per split, named after it."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from .documents import DataError

SPLIT_PREFIXES = {"train": "train", "valid": "validation", "dev": "validation", "test": "test"}
SUFFIXES = (".parquet", ".csv", ".csv.gz")


def split_files(folder: Path) -> dict[str, Path]:
    """Find the files of `train`, `validation` and `test`, such as ``train_medium.parquet``.

    Raises:
        DataError: If the folder does not exist, has no training file, or two files for a split.
    """
    if not folder.is_dir():
        raise DataError(f"{folder} is not a folder; give the folder of a labelled set")
    found: dict[str, Path] = {}
    for file in sorted(folder.iterdir()):
        if not file.name.endswith(SUFFIXES):
            continue
        splits = [split for start, split in SPLIT_PREFIXES.items() if file.name.startswith(start)]
        for split in splits:
            if split in found:
                raise DataError(
                    f"{folder} has two files for {split}, {found[split].name} and {file.name}; "
                    "keep one"
                )
            found[split] = file
    if "train" not in found:
        raise DataError(
            f"{folder} has no file train*.parquet or train*.csv(.gz); it holds: "
            f"{', '.join(sorted(file.name for file in folder.iterdir())) or 'nothing'}"
        )
    return found


def read_columns(file: Path, columns: Sequence[str]) -> Iterator[dict[str, str]]:
    """Yield the rows of a table as text, missing values as empty texts.

    Raises:
        DataError: If the file cannot be read or lacks a column.
    """
    import pandas

    try:
        if file.suffix == ".parquet":
            frame = pandas.read_parquet(file)
        else:
            frame = pandas.read_csv(file, keep_default_na=False, dtype=str)
    except (OSError, ValueError) as error:
        raise DataError(f"{file} cannot be read ({error}); write it again") from error
    missing = [column for column in columns if column not in frame.columns]
    if missing:
        raise DataError(
            f"{file} has no column '{missing[0]}'; its columns are: "
            f"{', '.join(map(str, frame.columns))}"
        )
    texts = [frame[column].fillna("").astype(str) for column in columns]
    for values in zip(*texts, strict=True):
        yield dict(zip(columns, values, strict=True))


def require_filled(file: Path, number: int, row: Mapping[str, str]) -> None:
    """Refuse a row with an empty or missing value.

    Args:
        file: Where the row stands.
        number: Of the row, counted from 0 without the head of the table.
        row: Column -> text.

    Raises:
        DataError: Naming the row and the column.
    """
    for column, text in row.items():
        if not text.strip():
            raise DataError(
                f"{file}, row {number}: {column} is empty or missing; fill it or leave the row out"
            )


def text_key(text: str) -> str:
    """Return what two texts share that differ in case and spaces only."""
    return " ".join(text.lower().split())
