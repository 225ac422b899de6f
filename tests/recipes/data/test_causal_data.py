"""Text and numbers as rows for a decoder: nothing lost, nothing predicted twice, clear errors."""

import logging
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from nestling.recipes.data.byte_tokenizer import BYTES, byte_tokenizer
from nestling.recipes.data.causal_corpus import build_streams, make_streams, prepare_streams
from nestling.recipes.data.causal_rows import IGNORED_LABEL, CausalRows, collate_rows
from nestling.recipes.data.documents import DataError
from nestling.recipes.data.token_ids import (
    is_meant_as_token_ids,
    parse_token_ids,
    require_vocabulary,
)
from nestling.recipes.data.token_stream import STREAM_FILE, open_streams
from nestling.recipes.ddl_schema import DdlDataSection
from transformers import AutoTokenizer


def test_byte_tokens_are_bytes_and_come_back(tmp_path: Path) -> None:
    text = "naïve — 文\n\tdef f(): pass\x00\x7f"
    byte_tokenizer(64).save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    ids = tokenizer(text)["input_ids"]
    assert ids == list(text.encode())
    assert tokenizer.decode(ids) == text
    assert (tokenizer.eos_token_id, tokenizer.pad_token_id) == (BYTES, BYTES + 1)
    assert [tokenizer.decode([byte]) for byte in (65, 10, 32)] == ["A", "\n", " "]


@pytest.mark.parametrize("text", ["1 2 3", "1,2, 3", "[1,2,3]", " 1\n2\t3 \n"])
def test_token_ids_are_read_however_they_are_separated(text: str) -> None:
    assert parse_token_ids(text, "x").tolist() == [1, 2, 3]


@pytest.mark.parametrize(
    ("text", "said"),
    [("", "no token id"), ("1 two", "'two'"), ("1 -2", "'-2'"), ("1 2.5", "'2.5'"), ("²", "'²'")],
)
def test_what_is_no_token_id_is_named(text: str, said: str) -> None:
    with pytest.raises(DataError, match=said):
        parse_token_ids(text, "x")


def test_an_id_without_a_row_in_the_embedding_is_named() -> None:
    with pytest.raises(DataError, match=r"id 7 at place 1.*0\.\.6"):
        require_vocabulary(np.array([6, 7, 8]), 7, "x")
    with pytest.raises(DataError, match=r"raise model\.vocab_size$"):
        require_vocabulary(np.array([7]), 7, "x")
    with pytest.raises(DataError, match=r"\(0\.\.6\); give others$"):
        require_vocabulary(np.array([7]), 7, "x", "give others")
    require_vocabulary(np.array([6]), 7, "x")


@pytest.mark.parametrize("count", [2, 5, 9, 10, 17])
def test_every_token_but_the_first_is_predicted_once(count: int) -> None:
    ids = np.arange(count, dtype=np.uint16) + 100
    rows = CausalRows(ids, 4, "x")
    batch = collate_rows([rows[index] for index in range(len(rows))])
    predicted = batch["labels"][batch["labels"] != IGNORED_LABEL]
    assert predicted.tolist() == ids[1:].tolist()
    read = batch["input_ids"][batch["labels"] != IGNORED_LABEL]
    assert read.tolist() == ids[:-1].tolist()
    is_padded = "attention_mask" in batch
    assert is_padded == bool((count - 1) % 4 and len(rows) > 1)
    if is_padded:
        assert torch.equal(batch["attention_mask"] == 1, batch["labels"] != IGNORED_LABEL)


def test_a_stream_with_nothing_to_predict_is_refused() -> None:
    with pytest.raises(DataError, match="the train split has 1 tokens"):
        CausalRows(np.array([3]), 4, "the train split")
    with pytest.raises(DataError, match="predict one; give two$"):
        CausalRows(np.array([3]), 4, "x", "give two")


def _text_files(folder: Path) -> DdlDataSection:
    for name, word in (("train", "alpha"), ("valid", "omega")):
        paragraphs = "\n\n".join(f"{word} {number}" for number in range(30))
        (folder / f"{name}.txt").write_text(paragraphs)
    return DdlDataSection(path=str(folder / "train.txt"), max_length=16)


def test_documents_end_with_the_end_token_and_splits_do_not_mix(tmp_path: Path) -> None:
    section = replace(_text_files(tmp_path), valid_path=str(tmp_path / "valid.txt"))
    streams = make_streams(section)
    assert streams.tokenizer is not None
    texts = [
        bytes(part.tolist()).decode()
        for part in np.split(streams.ids["train"], np.flatnonzero(streams.ids["train"] == BYTES))
        for part in [part[part != BYTES]]
        if len(part)
    ]
    assert texts == [f"alpha {number}" for number in range(30)]
    assert b"alpha" not in bytes(streams.ids["validation"][streams.ids["validation"] < BYTES])
    counts = streams.description["counts"]
    assert counts["train"]["documents"] == 30
    assert counts["train"]["tokens"] == counts["train"]["bytes"] + 30


def test_without_a_validation_file_part_of_the_text_is_held_out(tmp_path: Path) -> None:
    streams = make_streams(replace(_text_files(tmp_path), validation_fraction=0.3))
    counts = streams.description["counts"]
    assert 0 < counts["validation"]["documents"] < 30
    assert counts["validation"]["documents"] + counts["train"]["documents"] == 30


@pytest.mark.parametrize(("predicted", "lines"), [(1, 1), (99, 1), (100, 0)])
def test_a_validation_split_of_a_few_tokens_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, predicted: int, lines: int
) -> None:
    section = replace(_text_files(tmp_path), valid_path=str(tmp_path / "valid.txt"))
    (tmp_path / "valid.txt").write_text("a" * predicted)  # the end mark is one more
    with caplog.at_level(logging.WARNING):
        build_streams(section)
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == lines
    assert all(f"predicts {predicted} tokens" in line for line in said)


def test_a_file_of_numbers_is_read_as_token_ids(tmp_path: Path) -> None:
    path = tmp_path / "ids.txt"
    path.write_text(" ".join(map(str, range(100))))
    assert is_meant_as_token_ids(path)
    streams = make_streams(DdlDataSection(path=str(path), validation_fraction=0.2))
    assert streams.tokenizer is None
    assert streams.ids["train"].tolist() == list(range(80))
    assert streams.ids["validation"].tolist() == list(range(80, 100))


MANY = " ".join(map(str, range(60)))


@pytest.mark.parametrize(
    ("text", "word", "place"),
    [
        ("1 2 -3 4 " * 40, "-3", 2),
        (f"{MANY} sixty {MANY}", "sixty", 60),
        (f"{MANY}\n2.5\n{MANY}", "2.5", 60),
        ("1 2 x 4 5", "x", 2),
        # Beyond what is looked at to tell numbers from text.
        (MANY + f" {MANY}" * 1000 + " end", "end", 60_060),
    ],
)
def test_a_file_of_numbers_with_a_word_that_is_no_id_is_refused(
    tmp_path: Path, text: str, word: str, place: int
) -> None:
    path = tmp_path / "ids.txt"
    path.write_text(text)
    section = DdlDataSection(path=str(path), valid_path=str(path))
    with pytest.raises(DataError) as caught:
        make_streams(section)
    assert f"{path} holds {word!r}, which is no token id, at place {place};" in str(caught.value)
    # What the message says reads the same file as text.
    keys = re.search(r"set data\.source=(\w+) data\.tokenizer=(\w+)", str(caught.value))
    assert keys is not None
    streams = make_streams(replace(section, source=keys[1], tokenizer=keys[2]))
    assert bytes(streams.ids["train"][:4].tolist()) == text[:4].encode()


@pytest.mark.parametrize(
    "text",
    [
        "In 1990 there were 12 of 30, in 2001 25, in 2024 only 7 of 31.",
        "1 + 2 = 3\n4 + 5 = 9\n10 + 11 = 21",
        "2024-01-01 12:30:00 took 17 ms\n2024-01-02 12:31:00 took 19 ms",
        "Chapter 1",
    ],
)
def test_prose_with_numbers_stays_text(tmp_path: Path, text: str) -> None:
    path = tmp_path / "text.txt"
    path.write_text(text)
    streams = make_streams(DdlDataSection(path=str(path), valid_path=str(path)))
    assert bytes(streams.ids["train"][:-1].tolist()) == text.encode()


def test_prepared_tokens_are_found_again_and_other_keys_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    section = replace(_text_files(tmp_path), pretokenized_path=str(folder))
    prepare_streams(section)
    first = (folder / STREAM_FILE).stat().st_mtime_ns
    streams = build_streams(section)
    assert (folder / STREAM_FILE).stat().st_mtime_ns == first
    assert np.array_equal(streams.ids["train"], make_streams(section).ids["train"])
    assert streams.description["sha256"] == make_streams(section).description["sha256"]
    # Another row length reads the same tokens; another split does not.
    prepare_streams(replace(section, max_length=8))
    with pytest.raises(DataError, match=r"data\.validation_fraction was 0\.05 and is now 0\.5"):
        prepare_streams(replace(section, validation_fraction=0.5))


def test_damaged_tokens_are_named(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    section = replace(_text_files(tmp_path), pretokenized_path=str(folder))
    prepare_streams(section)
    whole = (folder / "train.npy").read_bytes()
    (folder / "train.npy").write_bytes(whole[:60])
    with pytest.raises(DataError, match=r"train\.npy is damaged"):
        open_streams(folder)
    (folder / "train.npy").write_bytes(whole)
    (folder / STREAM_FILE).write_text('{"schema_ver')
    with pytest.raises(DataError, match=r"stream\.json is damaged"):
        open_streams(folder)
    (folder / STREAM_FILE).unlink()
    prepare_streams(section)  # a folder without a description is not finished
    assert open_streams(folder).ids["train"].size


def test_ids_do_not_get_the_tokenizer_of_an_interrupted_preparation(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    section = replace(_text_files(tmp_path), pretokenized_path=str(folder))
    prepare_streams(section)
    (folder / STREAM_FILE).unlink()  # it would have been written last
    (tmp_path / "ids.txt").write_text(" ".join(map(str, range(100))))
    ids = replace(section, path=str(tmp_path / "ids.txt"), tokenizer="ids")
    assert build_streams(ids).tokenizer is None


def test_an_empty_file_and_a_missing_one_are_named(tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text("")
    with pytest.raises(DataError, match="no text"):
        make_streams(DdlDataSection(path=str(tmp_path / "empty.txt")))
    with pytest.raises(DataError, match=r"absent\.txt"):
        make_streams(DdlDataSection(path=str(tmp_path / "absent.txt")))
