"""Files that are complete or absent: written beside their place, then renamed into it."""

import errno
import os
from collections.abc import Callable
from pathlib import Path

from .data.documents import DataError


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary file, force it to disk and rename it to `path`.

    Raises:
        DataError: If the disk is full; the temporary file is removed.
    """
    temporary = path.with_name(path.name + ".tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(temporary)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        if error.errno == errno.ENOSPC:
            raise DataError(
                f"the disk is full while writing {path}; what was written before is kept: free "
                f"some space and run the same command again"
            ) from error
        raise


def write_whole_file(path: Path, text: str) -> None:
    """Write a text file so that it is the old or the new one, never a part.

    Raises:
        DataError: If the disk is full.
    """
    write_whole(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))
