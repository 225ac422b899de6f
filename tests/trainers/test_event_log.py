"""Event file: one line an event, whatever interrupts it."""

import json
import logging
import math
import os
import subprocess
import sys
from datetime import datetime
from pathlib import Path

import pytest
from nestling.trainers.event_log import EventLog, EventLogError, read_events


def test_lines_and_payload(tmp_path: Path) -> None:
    """Each line is one JSON object with version, event and UTC time."""
    path = tmp_path / "deep" / "events.jsonl"
    log = EventLog(path)
    log.write("log", step=3, losses={"a": 0.5, "b": math.nan}, text="Grün\n")
    log.write("end")
    lines = path.read_text().splitlines()
    assert len(lines) == 2
    record = json.loads(lines[0])
    assert (record["schema_version"], record["event"], record["step"]) == (1, "log", 3)
    assert record["losses"] == {"a": 0.5, "b": None} and record["text"] == "Grün\n"
    assert datetime.fromisoformat(record["time"]).utcoffset().total_seconds() == 0
    assert [event["event"] for event in read_events(path)[0]] == ["log", "end"]


def test_one_write_per_event(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole line goes out in one system call."""
    written: list[bytes] = []
    original = os.write

    def record(descriptor: int, data: bytes) -> int:
        written.append(data)
        return original(descriptor, data)

    monkeypatch.setattr(os, "write", record)
    EventLog(tmp_path / "events.jsonl").write("log", values=list(range(1000)))
    assert len(written) == 1 and written[0].endswith(b"\n")


def test_tail(tmp_path: Path) -> None:
    """Reading goes on where it stopped; a missing file is empty."""
    path = tmp_path / "events.jsonl"
    assert read_events(path) == ([], 0)
    log = EventLog(path)
    log.write("a")
    events, offset = read_events(path)
    assert [event["event"] for event in events] == ["a"]
    assert read_events(path, offset) == ([], offset)
    log.write("b")
    assert [event["event"] for event in read_events(path, offset)[0]] == ["b"]


@pytest.mark.parametrize("filler", [0, 200_000])
def test_a_truncated_last_line(tmp_path: Path, filler: int) -> None:
    """It is not read, not skipped over by the offset, and cut when the file is continued."""
    path = tmp_path / "events.jsonl"
    first = EventLog(path)
    first.write("a")
    first.write("b", text="x" * filler)
    first.close()
    data = path.read_bytes()
    path.write_bytes(data[:-5])
    events, offset = read_events(path)
    assert [event["event"] for event in events] == ["a"]
    EventLog(path).write("resume", step=1)
    assert [event["event"] for event in read_events(path, offset)[0]] == ["resume"]
    assert len(path.read_text().splitlines()) == 2


def test_a_file_that_is_only_a_fragment(tmp_path: Path) -> None:
    """Killed during the very first event."""
    path = tmp_path / "events.jsonl"
    path.write_bytes(b'{"schema_ver')
    assert read_events(path) == ([], 0)
    EventLog(path).write("a")
    assert len(read_events(path)[0]) == 1


def test_a_full_disk_drops_the_event_but_not_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A short write leaves no fragment behind."""
    path = tmp_path / "events.jsonl"
    log = EventLog(path)
    log.write("a")
    original = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: original(fd, data[:7]))
    with caplog.at_level(logging.WARNING):
        log.write("lost")
    assert "'lost' was not written" in caplog.text
    monkeypatch.setattr(os, "write", original)
    log.write("b")
    assert [event["event"] for event in read_events(path)[0]] == ["a", "b"]


def test_a_line_that_is_no_event(tmp_path: Path) -> None:
    """Named with its number; so is another schema version."""
    path = tmp_path / "events.jsonl"
    EventLog(path).write("a")
    with open(path, "a") as file:
        file.write('{"schema_version": 2, "event": "b"}\n')
    with pytest.raises(EventLogError, match="line 2 is not an event of schema version 1"):
        read_events(path)


def test_values_that_are_not_json(tmp_path: Path) -> None:
    """Refused at the source."""
    with pytest.raises(TypeError):
        EventLog(tmp_path / "events.jsonl").write("a", value=object())


def test_light_modules_import_no_torch() -> None:
    """The terminal explorer reads events without torch or transformers."""
    code = (
        "import sys\n"
        "import nestling.trainers.event_log, nestling.trainers.budget_sampling\n"
        "import nestling.trainers.schedules\n"
        "from nestling.trainers import EventLog, SandwichSampler\n"
        "assert not {'torch', 'transformers'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
