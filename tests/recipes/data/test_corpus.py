"""Recipe keys give training data, in memory, prepared and streamed."""

import json
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
from nestling.recipes.data import corpus
from nestling.recipes.data.corpus import build_data, prepare_data
from nestling.recipes.data.documents import DataError
from nestling.recipes.data.manifest import Manifest
from nestling.recipes.recipe_schema import DataSection

KEYS = {"vocab_size": 300, "max_length": 32, "validation_fraction": 0.2}


@pytest.fixture
def text_file(tmp_path: Path, make_texts) -> str:
    file = tmp_path / "text.txt"
    file.write_text("\n\n".join(make_texts(200)))
    return str(file)


def rows_of(rows) -> list[tuple[list[int], list[int]]]:
    return sorted((row["input_ids"], row["document_ids"]) for row in rows)


def test_prepared_rows_equal_rows_in_memory(text_file: str, tmp_path: Path) -> None:
    in_memory = build_data(DataSection(path=text_file, **KEYS))
    folder = str(tmp_path / "prepared")
    prepared = build_data(
        DataSection(path=text_file, pretokenized_path=folder, **KEYS), progress=False
    )
    assert rows_of(prepared.train_rows) == rows_of(in_memory.train_rows)
    assert rows_of(prepared.validation_rows) == rows_of(in_memory.validation_rows)
    assert prepared.tokenizer.get_vocab() == in_memory.tokenizer.get_vocab()
    assert prepared.manifest["counts"] == in_memory.manifest["counts"]
    assert json.loads(json.dumps(in_memory.manifest)) == in_memory.manifest


def test_complete_folder_needs_no_source(text_file: str, tmp_path: Path, monkeypatch) -> None:
    section = DataSection(path=text_file, pretokenized_path=str(tmp_path / "p"), **KEYS)
    prepare_data(section, progress=False)
    Path(text_file).unlink()
    assert len(build_data(section).train_rows) > 0
    section.max_length = 64
    with pytest.raises(DataError, match="max_length is 32 there and 64 here"):
        build_data(section)


def test_interrupted_prepare_is_finished(text_file: str, tmp_path: Path, monkeypatch) -> None:
    section = DataSection(path=text_file, pretokenized_path=str(tmp_path / "p"), **KEYS)
    manifest = prepare_data(section, progress=False)
    manifest.complete = False
    manifest.save(tmp_path / "p")
    assert build_data(section, progress=False).manifest["complete"]


def test_a_kill_right_after_the_last_row_keeps_the_request(
    text_file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    section = DataSection(path=text_file, pretokenized_path=str(tmp_path / "p"), **KEYS)
    save = Manifest.save

    def save_and_die(manifest: Manifest, folder: Path) -> None:
        save(manifest, folder)
        if manifest.complete:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Manifest, "save", save_and_die)
        prepare_data(section, progress=False)
    prepare_data(section, progress=False)
    with pytest.raises(DataError, match="data.vocab_size was 300 and is now 400"):
        prepare_data(replace(section, vocab_size=400), progress=False)


def test_a_refused_preparation_keeps_the_request(text_file: str, tmp_path: Path) -> None:
    section = DataSection(path=text_file, pretokenized_path=str(tmp_path / "p"), **KEYS)
    manifest = prepare_data(section, progress=False)
    manifest.complete = False
    manifest.save(tmp_path / "p")
    request = (tmp_path / "p" / "request.json").read_bytes()
    with pytest.raises(DataError, match="vocab_size is 300 there and 400 here"):
        prepare_data(replace(section, vocab_size=400), progress=False)
    assert (tmp_path / "p" / "request.json").read_bytes() == request


def test_prepare_needs_a_folder() -> None:
    with pytest.raises(DataError, match="data.pretokenized_path is not set"):
        prepare_data(DataSection())


def test_embedded_default() -> None:
    data = build_data(DataSection(max_bytes=60_000, packing=False, **KEYS))
    assert data.manifest["source"]["source"] == "embedded"
    assert all(set(row["document_ids"]) == {1} for row in data.train_rows)
    assert len(data.validation_rows) > 0


def test_given_tokenizer(text_file: str, tmp_path: Path, tokenizer) -> None:
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    section = DataSection(path=text_file, tokenizer=str(tmp_path / "tokenizer"), **KEYS)
    assert build_data(section).tokenizer.get_vocab() == tokenizer.get_vocab()


def test_streamed(text_file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpus, "STREAM_VALIDATION_DOCUMENTS", 10)
    section = DataSection(path=text_file, streaming=True, shuffle_buffer=50, **KEYS)
    data = build_data(section, seed=1)
    rows = list(islice(data.train_rows, 20))
    assert rows == list(islice(build_data(section, seed=1).train_rows, 20))
    assert rows != list(islice(build_data(section, seed=2).train_rows, 20))
    assert data.manifest["counts"]["validation"]["documents"] == 10
    held_out = data.tokenizer.decode(data.validation_rows[0]["input_ids"], skip_special_tokens=True)
    trained = [data.tokenizer.decode(row["input_ids"]) for row in islice(data.train_rows, 200)]
    assert not any(held_out in text for text in trained)


def test_bad_max_length(text_file: str) -> None:
    with pytest.raises(DataError, match="max_length=4 is too small"):
        build_data(DataSection(path=text_file, vocab_size=300, max_length=4))
