"""Reads an `events.jsonl` while a run is still writing it: only the bytes that were appended."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

from ...trainers.event_log import SCHEMA_VERSION
from ..cli_errors import DataError

# What stands before the offset is compared at each reading, to notice a file that was rewritten
# in place; the last lines of two runs differ in their times.
REMEMBERED_BYTES = 256
BLOCK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Appended:
    """What one reading found.

    Attributes:
        events: The complete lines since the last reading.
        starts_over: The file shrank or is another one: forget the events read before.
    """

    events: list[dict[str, Any]]
    starts_over: bool = False


class EventTail:
    """Reader of one event file; remembers how far it has read.

    A last line without its newline is being written, or was cut by a kill: it is read again when
    the file has grown. A file that does not exist has no events yet.

    Args:
        path: The event file.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.offset = 0
        self._lines = 0
        self._before = b""
        self._identity: tuple[int, int] | None = None
        self._seen: tuple[int, int] | None = None

    def poll(self) -> Appended:
        """Read what was appended.

        Raises:
            DataError: If the next complete line is no event, with the number of that line. Events
                that stand before it are returned first; the call after that raises.
        """
        try:
            with self.path.open("rb") as file:
                status = os.fstat(file.fileno())
                identity = (status.st_dev, status.st_ino)
                if (identity, _size_and_time(status)) == (self._identity, self._seen):
                    return Appended([])
                starts_over = self._is_another_file(file, identity, status.st_size)
                if starts_over:
                    self._forget()
                self._identity, self._seen = identity, None
                return Appended(self._read_lines(file), starts_over)
        except FileNotFoundError:
            had_events = self.offset > 0
            self._forget()
            return Appended([], had_events)
        except OSError as error:
            raise DataError(
                f"{self.path} cannot be read ({error.strerror}); give the events.jsonl of a run"
            ) from error

    def _forget(self) -> None:
        self.offset, self._lines, self._before = 0, 0, b""
        self._identity = self._seen = None

    def _is_another_file(self, file: BinaryIO, identity: tuple[int, int], size: int) -> bool:
        if self.offset == 0:
            return False
        if identity != self._identity or size < self.offset:
            return True
        file.seek(self.offset - len(self._before))
        return file.read(len(self._before)) != self._before

    def _read_lines(self, file: BinaryIO) -> list[dict[str, Any]]:
        events: list[dict[str, Any]] = []
        status = os.fstat(file.fileno())
        file.seek(self.offset)
        fragment = b""
        while block := file.read(BLOCK_BYTES):
            *lines, fragment = (fragment + block).split(b"\n")
            for line in lines:
                try:
                    events += self._parsed(line)
                except DataError:
                    if events:
                        return events
                    raise
                self._lines += 1
                self.offset += len(line) + 1
                self._before = (self._before + line + b"\n")[-REMEMBERED_BYTES:]
        # Not set while a bad line is ahead: the next reading comes to it again.
        self._seen = _size_and_time(status)
        return events

    def _parsed(self, line: bytes) -> list[dict[str, Any]]:
        if not line.strip():
            return []
        try:
            record = json.loads(line)
        except ValueError:
            self._refuse(line, "is no JSON")
        if not isinstance(record, Mapping) or not isinstance(record.get("event"), str):
            self._refuse(line, "is no event")
        version = record.get("schema_version")
        if version != SCHEMA_VERSION:
            self._refuse(line, f"has schema version {version!r}, {SCHEMA_VERSION} is read")
        return [dict(record)]

    def _refuse(self, line: bytes, what: str) -> NoReturn:
        shown = line[:60].decode("utf-8", "replace")
        raise DataError(
            f"{self.path}: line {self._lines + 1} {what}: {shown!r}; remove that line, or read the "
            "file with the Nestling that wrote it"
        )


def _size_and_time(status: os.stat_result) -> tuple[int, int]:
    return status.st_size, status.st_mtime_ns
