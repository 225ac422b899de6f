import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from nestling.recipes.cli_errors import DataError
from nestling.recipes.explorer.event_tail import BLOCK_BYTES, Appended, EventTail
from nestling.trainers.event_log import EventLog

Event = Callable[..., dict[str, Any]]
Write = Callable[..., Path]


def steps(appended: Appended) -> list[int]:
    return [event["step"] for event in appended.events]


def test_only_appended_lines_are_read(tmp_path: Path, event: Event, write: Write) -> None:
    path = write(tmp_path / "events.jsonl", event("log", step=1), event("log", step=2))
    tail = EventTail(path)
    assert steps(tail.poll()) == [1, 2]
    assert tail.offset == path.stat().st_size
    assert steps(tail.poll()) == []
    before = tail.offset
    write(path, event("log", step=3))
    assert steps(tail.poll()) == [3]
    assert tail.offset == path.stat().st_size > before


def test_the_read_part_is_not_read_again(tmp_path: Path, event: Event, write: Write) -> None:
    """Damage far before the offset is not seen, so that part is not read."""
    path = write(tmp_path / "events.jsonl", *(event("log", step=step) for step in range(50)))
    tail = EventTail(path)
    tail.poll()
    with path.open("r+b") as file:
        file.write(b"#")
    write(path, event("log", step=50))
    assert steps(tail.poll()) == [50]


def test_a_truncated_last_line_is_completed(tmp_path: Path, event: Event, write: Write) -> None:
    path = write(tmp_path / "events.jsonl", event("log", step=1))
    line = json.dumps(event("log", step=2)) + "\n"
    for cut in (1, len(line) // 2, len(line) - 1):
        tail = EventTail(path)
        assert steps(tail.poll()) == [1]
        size = path.stat().st_size
        with path.open("a") as file:
            file.write(line[:cut])
        assert steps(tail.poll()) == []
        assert tail.offset == size
        with path.open("a") as file:
            file.write(line[cut:])
        assert steps(tail.poll()) == [2]
        os.truncate(path, size)


def test_a_writer_that_cuts_a_fragment_does_not_start_over(tmp_path: Path) -> None:
    """A resumed run first removes the line that a kill had cut."""
    path = tmp_path / "events.jsonl"
    EventLog(path).write("log", step=1)
    with path.open("a") as file:
        file.write('{"schema_version": 1, "event": "lo')
    tail = EventTail(path)
    assert steps(tail.poll()) == [1]
    EventLog(path).write("resume", step=1)
    appended = tail.poll()
    assert [one["event"] for one in appended.events] == ["resume"]
    assert not appended.starts_over


def test_a_shorter_file_starts_over(tmp_path: Path, event: Event, write: Write) -> None:
    path = write(tmp_path / "events.jsonl", *(event("log", step=step) for step in range(5)))
    tail = EventTail(path)
    tail.poll()
    path.write_text("")
    write(path, event("log", step=7))
    appended = tail.poll()
    assert (steps(appended), appended.starts_over) == ([7], True)


def test_a_replaced_file_starts_over(tmp_path: Path, event: Event, write: Write) -> None:
    path = write(tmp_path / "events.jsonl", event("log", step=1))
    tail = EventTail(path)
    tail.poll()
    other = write(tmp_path / "other", *(event("log", step=step) for step in range(5)))
    other.replace(path)
    appended = tail.poll()
    assert (steps(appended), appended.starts_over) == ([0, 1, 2, 3, 4], True)


def test_a_file_rewritten_in_place_starts_over(tmp_path: Path, event: Event, write: Write) -> None:
    """As long as before or longer, and the same inode: only its content tells."""
    path = write(tmp_path / "events.jsonl", event("log", 0, step=1))
    tail = EventTail(path)
    tail.poll()
    with path.open("r+") as file:
        file.writelines(json.dumps(event("log", 60, step=step)) + "\n" for step in (1, 2))
    appended = tail.poll()
    assert (steps(appended), appended.starts_over) == ([1, 2], True)


def test_a_missing_file_appears_and_disappears(tmp_path: Path, event: Event, write: Write) -> None:
    path = tmp_path / "new" / "events.jsonl"
    tail = EventTail(path)
    assert tail.poll() == Appended([])
    write(path, event("log", step=1))
    assert steps(tail.poll()) == [1]
    path.unlink()
    assert tail.poll() == Appended([], starts_over=True)
    assert tail.poll() == Appended([])


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("no json", "line 3 is no JSON: 'no json'"),
        ("[1, 2]", "line 3 is no event"),
        ('{"schema_version": 1}', "line 3 is no event"),
        ('{"schema_version": 9, "event": "log"}', "line 3 has schema version 9, 1 is read"),
    ],
)
def test_a_bad_line_is_named_by_its_number(
    line: str, words: str, tmp_path: Path, event: Event, write: Write
) -> None:
    path = write(tmp_path / "events.jsonl", event("log", step=1))
    tail = EventTail(path)
    assert steps(tail.poll()) == [1]
    write(path, event("log", step=2))
    with path.open("a") as file:
        file.write(line + "\n")
    write(path, event("log", step=4))
    assert steps(tail.poll()) == [2]
    for _ in range(2):
        with pytest.raises(DataError, match="events.jsonl: ") as raised:
            tail.poll()
        assert words in str(raised.value) and "\n" not in str(raised.value)


def test_a_mended_line_is_read(tmp_path: Path, event: Event, write: Write) -> None:
    path = write(tmp_path / "events.jsonl", event("log", step=1))
    good = path.read_bytes()
    path.write_bytes(good + b"bad\n")
    tail = EventTail(path)
    tail.poll()
    with pytest.raises(DataError):
        tail.poll()
    path.write_bytes(good)
    write(path, event("log", step=2))
    assert steps(tail.poll()) == [2]


def test_lines_longer_than_a_block(tmp_path: Path, event: Event, write: Write) -> None:
    long = event("log", step=1, text="x" * (2 * BLOCK_BYTES + 17))
    path = write(tmp_path / "events.jsonl", long, event("log", step=2))
    assert steps(EventTail(path).poll()) == [1, 2]


def test_a_folder_is_no_event_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        EventTail(tmp_path).poll()
