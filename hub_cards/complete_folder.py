"""Folders that are complete or absent: written beside their place, then renamed into it."""

import errno
import json
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
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
# The number of the process that writes is part of the name.
_HIDDEN = re.compile(r"\.(?P<name>.+)\.(?P<kind>partial|replaced)-(?P<process>\d+)-\w+")
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


def clear_leftovers(target: Path) -> None:
    """Remove what killed exports left beside and in ``target``; bring back what they took away.

    For the start of an export: folders of this process count as left by an earlier one, which had
    the same number (in a container it often has). Those of other running processes stay. Processes
    of another machine are not seen: do not export into one folder from two machines at once.
    """
    for folder, only in ((target.parent, target.name), (target, None)):
        hidden = sorted(folder.glob(".*")) if folder.is_dir() else []
        for path in hidden:
            match = _HIDDEN.fullmatch(path.name)
            if match is None or only not in (None, match["name"]):
                continue
            if not _is_other_running_process(int(match["process"])):
                _clear(path, folder / match["name"] if match["kind"] == "replaced" else None)


def _clear(path: Path, place: Path | None) -> None:
    if place is None or place.exists():
        shutil.rmtree(path, ignore_errors=True)
        return
    # Another process that clears the same folder may have been faster.
    with suppress(FileNotFoundError):
        os.replace(path, place)


def _is_other_running_process(number: int) -> bool:
    if number == os.getpid():
        return False
    if sys.platform == "win32":
        return True  # nothing here can ask without ending it
    try:
        os.kill(number, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass  # it runs and is somebody else's
    return True


def _hidden_folder(target: Path, kind: str) -> Path:
    prefix = f".{target.name}.{kind}-{os.getpid()}-"
    return Path(tempfile.mkdtemp(prefix=prefix, dir=target.parent))


@contextmanager
def staging_folder(target: Path) -> Iterator[Path]:
    """Yield an empty hidden folder beside ``target``, removed afterwards whatever happens.

    Raises:
        ExportError: if the disk is full, in one line.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    staged = _hidden_folder(target, "partial")
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
    replaced = _hidden_folder(target, "replaced")
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
