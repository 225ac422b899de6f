"""Preparation: continues after an interruption with the same bytes, refuses other settings."""

import errno
import hashlib
import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from nestling.recipes.data import pretokenize
from nestling.recipes.data.documents import DataError, scan_documents, texts_of_split
from nestling.recipes.data.manifest import Manifest
from nestling.recipes.data.pretokenize import load_prepared, prepare
from nestling.recipes.whole_file import write_whole

SETTINGS = {"max_length": 32, "validation_fraction": 0.2, "window_documents": 40}


def contents(folder: Path) -> dict[str, str]:
    return {
        str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }


@pytest.fixture
def source(list_source, make_texts):
    texts = make_texts(200)
    texts[50] = texts[51] = ""
    return list_source(texts, [f"group {number % 90}" for number in range(200)])


def fail_at_shard(monkeypatch: pytest.MonkeyPatch, number: int, error: BaseException) -> None:
    """Let writing shard `number` (from 0) raise."""
    write_shard, written = pretokenize.write_shard, []

    def write(*arguments):
        if len(written) == number:
            raise error
        written.append(write_shard(*arguments))
        return written[-1]

    monkeypatch.setattr(pretokenize, "write_shard", write)


@pytest.fixture
def whole(source, tokenizer, tmp_path: Path) -> Path:
    prepare(source, tokenizer, tmp_path / "whole", **SETTINGS, progress=False)
    return tmp_path / "whole"


def test_rows_hold_the_source(source, tokenizer, whole: Path) -> None:
    rule = scan_documents(source, 0.2).rule
    for split in ("train", "validation"):
        texts = list(texts_of_split(source.documents(), rule, split))
        wanted = sorted(
            token
            for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]
            for token in ids
        )
        rows = load_prepared(whole, split)
        special = set(tokenizer.all_special_ids)
        found = [token for row in rows for token in row["input_ids"] if token not in special]
        assert sorted(found) == wanted
        assert all(len(row["input_ids"]) == len(row["document_ids"]) <= 32 for row in rows)


def test_manifest_counts(source, tokenizer, whole: Path) -> None:
    manifest = json.loads((whole / "manifest.json").read_text())
    rows = load_prepared(whole, "train")
    counts = manifest["counts"]["train"]
    assert manifest["complete"] and manifest["windows"] == 5
    assert counts["rows"] == len(rows)
    assert counts["tokens"] == sum(len(row["input_ids"]) for row in rows)
    assert counts["fill_rate"] == pytest.approx(counts["tokens"] / len(rows) / 32, abs=1e-6)
    assert counts["documents"] + manifest["counts"]["validation"]["documents"] == 198
    assert {shard["window"] for shard in manifest["shards"]} == set(range(5))
    assert manifest["settings"]["vocab_size"] == len(tokenizer)


@pytest.mark.parametrize("shard", [0, 1, 4, 7])
def test_interrupted_run_continues(
    source, tokenizer, whole: Path, tmp_path: Path, monkeypatch, shard: int
) -> None:
    folder = tmp_path / "interrupted"
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        fail_at_shard(patch, shard, KeyboardInterrupt())
        prepare(source, tokenizer, folder, **SETTINGS, progress=False)
    with pytest.raises(DataError, match="is not complete"):
        load_prepared(folder, "train")
    done = {name: (folder / name).stat().st_mtime_ns for name in contents(folder)}
    prepare(source, tokenizer, folder, **SETTINGS, progress=False)
    assert contents(folder) == contents(whole)
    kept = [record.file for record in Manifest.load(folder).shards if record.window < shard // 2]
    assert all((folder / name).stat().st_mtime_ns == done[name] for name in kept)


KILLED = """
import os, signal, sys
from conftest import ListSource, random_texts
from nestling.recipes.data.pretokenize import prepare
from nestling.recipes.data.tokenizer_training import load_tokenizer

class Deadly(ListSource):
    passes = 0
    def documents(self, start=0):
        self.passes += 1
        for number, document in enumerate(super().documents(start)):
            if self.passes == 2 and number == 130:
                os.kill(os.getpid(), signal.SIGKILL)
            yield document

prepare(Deadly(random_texts(200)), load_tokenizer(sys.argv[1]), sys.argv[2], max_length=32,
        validation_fraction=0.2, window_documents=40, progress=False)
"""


def test_killed_run_continues(list_source, make_texts, tokenizer, tmp_path: Path) -> None:
    source = list_source(make_texts(200))
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path / "tokenizer"), str(tmp_path / "killed")],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert Manifest.load(tmp_path / "killed").windows == 3
    for name in ("killed", "whole"):
        prepare(source, tokenizer, tmp_path / name, **SETTINGS, progress=False)
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")


def test_finished_folder_is_left_alone(source, tokenizer, whole: Path, monkeypatch) -> None:
    monkeypatch.setattr(pretokenize, "row_windows", lambda *_: pytest.fail("prepared again"))
    assert prepare(source, tokenizer, whole, **SETTINGS, progress=False).complete


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"max_length": 64}, "max_length is 32 there and 64 here"),
        ({"validation_fraction": 0.3}, "validation_fraction is 0.2 there and 0.3 here"),
        ({"packing": False}, "packing is True there and False here"),
    ],
)
def test_other_settings_are_named(source, tokenizer, whole: Path, changed, message) -> None:
    with pytest.raises(DataError, match=message):
        prepare(source, tokenizer, whole, **{**SETTINGS, **changed}, progress=False)


def test_other_data_are_named(list_source, tokenizer, whole: Path) -> None:
    with pytest.raises(DataError, match="input_hash is .* pass another output"):
        prepare(list_source(["a", "b"]), tokenizer, whole, **SETTINGS, progress=False)


def test_one_document_per_row_without_packing(source, tokenizer, tmp_path: Path) -> None:
    prepare(source, tokenizer, tmp_path, **SETTINGS, packing=False, progress=False)
    assert all(set(row["document_ids"]) == {1} for row in load_prepared(tmp_path, "train"))


def test_empty_validation_split(source, tokenizer, tmp_path: Path) -> None:
    settings = {**SETTINGS, "validation_fraction": 0.0}
    prepare(source, tokenizer, tmp_path, **settings, progress=False)
    rows = load_prepared(tmp_path, "validation")
    assert len(rows) == 0 and rows.column_names == ["input_ids", "document_ids"]


def test_token_ids_beyond_the_vocabulary(whole: Path) -> None:
    with pytest.raises(DataError, match=r"token id \d+, but the vocabulary has 262 tokens"):
        load_prepared(whole, "train", vocab_size=262)


def test_damaged_folders(whole: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has no manifest.json"):
        load_prepared(tmp_path / "nothing", "train")
    shard = whole / "train" / "00001.arrow"
    size = shard.stat().st_size
    shard.write_bytes(shard.read_bytes()[:-10])
    with pytest.raises(DataError, match=f"has {size - 10} bytes, the manifest says {size}"):
        load_prepared(whole, "train")
    shard.unlink()
    with pytest.raises(DataError, match="is missing"):
        load_prepared(whole, "train")
    (whole / "manifest.json").write_text('{"schema_version": 99}')
    with pytest.raises(DataError, match="schema version 99"):
        load_prepared(whole, "train")
    (whole / "manifest.json").write_text('{"schema_ver')
    with pytest.raises(DataError, match="is damaged"):
        load_prepared(whole, "train")


def test_output_that_is_something_else(source, tokenizer, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(DataError, match="is not empty and has no manifest.json"):
        prepare(source, tokenizer, tmp_path, **SETTINGS, progress=False)


def test_a_kill_before_the_first_manifest_is_no_obstacle(
    source, tokenizer, whole: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "killed"
    folder.mkdir()
    (folder / "manifest.json.tmp").write_text('{"schema_ver')
    prepare(source, tokenizer, folder, **SETTINGS, progress=False)
    assert contents(folder) == contents(whole)


def test_full_disk(source, tokenizer, whole: Path, tmp_path: Path, monkeypatch) -> None:
    folder = tmp_path / "full"

    def full(path: Path, write) -> None:
        def fail(temporary: Path) -> None:
            temporary.write_bytes(b"part")
            raise OSError(errno.ENOSPC, "No space left on device")

        write_whole(path, fail if path.name == "00002.arrow" else write)

    with monkeypatch.context() as patch:
        patch.setattr(pretokenize, "write_whole", full)
        with pytest.raises(DataError, match="the disk is full while writing"):
            prepare(source, tokenizer, folder, **SETTINGS, progress=False)
    assert not list(folder.rglob("*.tmp"))
    prepare(source, tokenizer, folder, **SETTINGS, progress=False)
    assert contents(folder) == contents(whole)
