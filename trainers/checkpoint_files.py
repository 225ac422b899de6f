"""Checkpoint folders that are complete or absent, never half written.

A checkpoint is written into a hidden folder beside its place, listed in a manifest (size and CRC-32
of each file), flushed to disk and then renamed. A kill leaves only a hidden folder, which the next
start removes.
"""

import errno
import json
import os
import re
import shutil
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

MANIFEST_NAME = "checkpoint_files.json"
_PARTIAL_PREFIX = ".partial-"
_REPLACED_PREFIX = ".replaced-"
_CHECKPOINT = re.compile(r"^checkpoint-(\d+)$")
_DISK_FULL_TEXTS = (
    "No space left",
    "os error 28",
    "PytorchStreamWriter failed writing",
    "unexpected pos",
)


class CheckpointError(ValueError):
    """A checkpoint cannot be loaded."""


class CheckpointWriteError(OSError):
    """A checkpoint could not be written; earlier checkpoints are intact."""


def partial_path(target: Path) -> Path:
    """Return the hidden folder in which `target` is written."""
    return target.with_name(_PARTIAL_PREFIX + target.name)


@contextmanager
def atomic_directory(target: Path) -> Iterator[Path]:
    """Write a folder so that it appears only when complete.

    Args:
        target: The folder to create; one that exists is replaced.

    Yields:
        The hidden folder to write into, on the same file system.

    Raises:
        CheckpointWriteError: If writing failed. The hidden folder is gone and whatever stood at
            `target` before is still there.
    """
    try:
        yield start_directory(target)
        publish_directory(target)
    except Exception as error:
        shutil.rmtree(partial_path(target), ignore_errors=True)
        raise write_error(target, error) from error


def start_directory(target: Path) -> Path:
    """Create the empty hidden folder of `target` and return it."""
    partial = partial_path(target)
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    return partial


def publish_directory(target: Path) -> None:
    """Add the manifest to the hidden folder of `target`, flush it and rename it into place."""
    partial = partial_path(target)
    files = sorted(path for path in partial.rglob("*") if path.is_file())
    entries = {
        path.relative_to(partial).as_posix(): {"size": path.stat().st_size, "crc32": _crc32(path)}
        for path in files
    }
    manifest = partial / MANIFEST_NAME
    manifest.write_text(json.dumps({"schema_version": 1, "files": entries}, indent=1) + "\n")
    for path in (*files, manifest, *(p for p in partial.rglob("*") if p.is_dir()), partial):
        _flush(path)
    replaced = target.with_name(_REPLACED_PREFIX + target.name)
    if target.exists():
        os.replace(target, replaced)
    os.replace(partial, target)
    _flush(target.parent)
    shutil.rmtree(replaced, ignore_errors=True)


def write_error(target: Path, error: BaseException) -> CheckpointWriteError:
    """Describe a failed save in one line."""
    cause = (str(error).splitlines() or [type(error).__name__])[0]
    if not is_disk_full(error):
        return CheckpointWriteError(
            f"could not write {target}: {cause}; earlier checkpoints are intact"
        )
    existing = next(path for path in (target.parent, *target.parents) if path.exists())
    free_mb = shutil.disk_usage(existing).free // 2**20
    return CheckpointWriteError(
        f"could not write {target}: the disk is full ({free_mb} MB free); earlier checkpoints are "
        "intact: free some space or choose another output_dir, then resume"
    )


def is_disk_full(error: BaseException) -> bool:
    """Tell a full disk from other failures, also as torch and safetensors word it."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    return any(text in str(error) for text in _DISK_FULL_TEXTS)


def remove_leftovers(output_dir: Path) -> None:
    """Remove what a killed save left; bring back a checkpoint that was being replaced."""
    bring_back_replaced(output_dir)
    for prefix in (_PARTIAL_PREFIX, _REPLACED_PREFIX):
        for path in output_dir.glob(f"{prefix}checkpoint-*"):
            shutil.rmtree(path, ignore_errors=True)


def bring_back_replaced(output_dir: Path) -> None:
    """Put checkpoints back that a kill took away, between the two renames of `publish_directory`.

    Nothing is removed, and all processes of a run may call this at once: one rename works, and
    afterwards each of them finds the checkpoint.
    """
    for path in output_dir.glob(f"{_REPLACED_PREFIX}*"):
        target = path.with_name(path.name.removeprefix(_REPLACED_PREFIX))
        if not target.exists():
            with suppress(FileNotFoundError):
                os.replace(path, target)


def list_checkpoints(output_dir: Path) -> list[Path]:
    """Return the checkpoint folders, the oldest step first."""
    if not output_dir.is_dir():
        return []
    found = [
        (int(match.group(1)), path)
        for path in output_dir.iterdir()
        if (match := _CHECKPOINT.match(path.name)) and path.is_dir()
    ]
    return [path for _, path in sorted(found)]


def last_complete_checkpoint(output_dir: str | os.PathLike[str]) -> Path | None:
    """Return the newest checkpoint that was written to its end, or None.

    Whether its files are still whole is the question of `verify_checkpoint`.
    """
    complete = _complete_checkpoints(Path(output_dir))
    return complete[-1] if complete else None


def _complete_checkpoints(output_dir: Path) -> list[Path]:
    return [path for path in list_checkpoints(output_dir) if (path / MANIFEST_NAME).is_file()]


def verify_checkpoint(checkpoint: Path) -> None:
    """Compare every file with the manifest.

    Args:
        checkpoint: The checkpoint folder.

    Raises:
        CheckpointError: Naming the first file that is missing, truncated or changed, and how the
            run goes on without it.
    """
    try:
        entries = json.loads((checkpoint / MANIFEST_NAME).read_text())["files"]
    except FileNotFoundError:
        raise CheckpointError(
            f"{checkpoint / MANIFEST_NAME} is missing: the folder is no complete checkpoint of "
            f"Nestling; {_instead_of(checkpoint)}"
        ) from None
    except (ValueError, KeyError, TypeError):
        raise CheckpointError(
            f"{checkpoint / MANIFEST_NAME} is damaged; {_instead_of(checkpoint)}"
        ) from None
    for name, expected in entries.items():
        problem = _compare(checkpoint / name, expected["size"], expected["crc32"])
        if problem:
            raise CheckpointError(f"{checkpoint / name} {problem}; {_instead_of(checkpoint)}")


def rotate_checkpoints(output_dir: Path, limit: int | None, best: str | None) -> None:
    """Delete the oldest checkpoints, but never the newest or the best one.

    Args:
        output_dir: Folder of the checkpoints.
        limit: How many to keep; None or 0 keeps all.
        best: Path of the best checkpoint, if tracked.
    """
    checkpoints = list_checkpoints(output_dir)
    if not limit or len(checkpoints) <= limit:
        return
    keep = {checkpoints[-1].resolve()} | ({Path(best).resolve()} if best else set())
    surplus = len(checkpoints) - max(limit, len(keep))
    for path in [path for path in checkpoints if path.resolve() not in keep][:surplus]:
        shutil.rmtree(path, ignore_errors=True)


def _compare(path: Path, size: int, crc32: int) -> str | None:
    if not path.is_file():
        return "is missing"
    if path.stat().st_size != size:
        return f"is truncated ({path.stat().st_size} of {size} bytes)"
    return "is damaged (its checksum differs)" if _crc32(path) != crc32 else None


def _instead_of(checkpoint: Path) -> str:
    """Say what to do: a run goes on from the newest complete checkpoint that is there."""
    others = [path for path in _complete_checkpoints(checkpoint.parent) if path != checkpoint]
    next_one = f"goes on from {others[-1].name}" if others else "starts anew: there is no other"
    return f"remove {checkpoint} and give the same command again, which then {next_one}"


def _crc32(path: Path) -> int:
    value = 0
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            value = zlib.crc32(block, value)
    return value


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
