"""Folders that are complete or absent: written beside their place, then renamed into it."""

import errno
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

MARKER = "nestling.json"
LADDER = "budgets.json"
PRODUCER = "nestling"
# Not after a letter, dot, colon or slash: relative paths, URLs and ratios stay as they are.
_ABSOLUTE_PATH = re.compile(r"(?<![\w.:/])~?/(?:[^\s/]+/)*([^\s/]+)/?")
_DISK_FULL = ("No space left", "os error 28", "Disk quota exceeded")


class ExportError(ValueError):
    """An export that cannot be made; nothing was changed."""


def without_paths(text: str) -> str:
    """Replace absolute paths in ``text`` by their last part, so that exports name no machine."""
    return _ABSOLUTE_PATH.sub(r"\1", text)


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        ExportError: if the file is missing or not a JSON object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ExportError(f"{path} does not exist") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ExportError(f"{path} is not valid JSON ({error})") from None
    if not isinstance(content, dict):
        raise ExportError(f"{path} holds a {type(content).__name__}; an object is needed")
    return content


def write_json(path: Path, content: dict[str, Any] | list[dict[str, Any]]) -> None:
    """Write JSON so that the file is old or new, never half written."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    os.replace(partial, path)


def write_tensors(
    path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None
) -> None:
    """Write a safetensors file that others may read: the library makes it private."""
    save_file(tensors, path, metadata=metadata)
    path.chmod(0o644)


def is_ours(folder: Path) -> bool:
    """Whether ``folder`` was written by an export and may be replaced by another one."""
    if (folder / MARKER).is_file() or (folder / LADDER).is_file():
        return True
    weights = folder / "model.safetensors"
    try:
        with safe_open(weights, framework="pt") as file:
            return (file.metadata() or {}).get("producer") == PRODUCER
    except (OSError, SafetensorError):
        return False


def require_replaceable(target: Path) -> None:
    """Refuse to write over something that is not an export.

    Raises:
        ExportError: if ``target`` is a file, or a folder with other content.
    """
    if not target.exists():
        return
    if not target.is_dir():
        raise ExportError(f"{target} is a file; choose a folder for the output")
    if any(target.iterdir()) and not is_ours(target):
        raise ExportError(
            f"{target} is not empty and not an export of ours; choose another output folder"
        )


@contextmanager
def staging_folder(target: Path) -> Iterator[Path]:
    """Yield an empty hidden folder beside ``target``, removed afterwards whatever happens.

    Raises:
        ExportError: if the disk is full, in one line.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    staged = Path(tempfile.mkdtemp(prefix=f".{target.name}.partial-", dir=target.parent))
    try:
        yield staged
    except Exception as error:
        if _is_disk_full(error):
            free = shutil.disk_usage(target.parent).free // 2**20
            raise ExportError(
                f"could not write {target}: the disk is full ({free} MB free); "
                "nothing was changed, free some space or choose another output folder"
            ) from error
        raise
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def move_into_place(staged: Path, target: Path) -> None:
    """Rename ``staged`` to ``target``; what stood there is removed only after that worked."""
    staged.chmod(0o755)
    if not target.exists():
        os.replace(staged, target)
        return
    replaced = Path(tempfile.mkdtemp(prefix=f".{target.name}.replaced-", dir=target.parent))
    os.replace(target, replaced)
    try:
        os.replace(staged, target)
    except OSError:
        os.replace(replaced, target)
        raise
    shutil.rmtree(replaced, ignore_errors=True)


def _is_disk_full(error: Exception) -> bool:
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    return any(text in str(error) for text in _DISK_FULL)
