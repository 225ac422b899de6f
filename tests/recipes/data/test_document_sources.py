"""Files, saved data sets and Hub data sets become documents; wrong input gets one clear line."""

import gzip
import json
from pathlib import Path

import datasets
import pandas
import pytest
from nestling.recipes.data.document_sources import open_source
from nestling.recipes.data.documents import DataError
from nestling.recipes.data.text_columns import ColumnChoice

ROWS = [
    {"text": "first text", "title": "one", "product": "a"},
    {"text": "second, text", "title": "two", "product": "b"},
    {"text": "third\ntext", "title": "three", "product": "a"},
]
TEXTS = [row["text"] for row in ROWS]


def write_rows(folder: Path, kind: str) -> Path:
    """Write ROWS as a file (or saved data set) of a kind."""
    path = folder / f"rows.{kind}"
    frame = pandas.DataFrame(ROWS)
    lines = "".join(json.dumps(row) + "\n" for row in ROWS)
    if kind == "csv" or kind == "csv.gz":
        frame.to_csv(path, index=False)
    elif kind == "parquet":
        frame.to_parquet(path)
    elif kind == "jsonl":
        path.write_text(lines)
    elif kind == "jsonl.gz":
        path.write_bytes(gzip.compress(lines.encode()))
    elif kind == "json":
        path.write_text(json.dumps(ROWS))
    else:
        datasets.Dataset.from_list(ROWS).save_to_disk(str(path))
    return path


KINDS = ["csv", "csv.gz", "parquet", "jsonl", "jsonl.gz", "json", "saved"]


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_table(tmp_path: Path, kind: str) -> None:
    source = open_source(
        path=write_rows(tmp_path, kind), columns=ColumnChoice(group_column="product")
    )
    documents = list(source.documents())
    assert [document.text for document in documents] == TEXTS
    assert [document.group for document in documents] == ["a", "b", "a"]
    assert list(source.documents(2)) == documents[2:]


@pytest.mark.parametrize("kind", KINDS)
def test_wrong_column_lists_the_columns(tmp_path: Path, kind: str) -> None:
    source = open_source(path=write_rows(tmp_path, kind), columns=ColumnChoice("body"))
    with pytest.raises(DataError, match=r"no column 'body'.*columns are: text, title, product"):
        list(source.documents())


def test_joined_columns(tmp_path: Path) -> None:
    columns = ColumnChoice(text_columns=("title", "text"))
    source = open_source(path=write_rows(tmp_path, "csv"), columns=columns)
    assert next(source.documents()).text == "one\nfirst text"


def test_both_column_keys(tmp_path: Path) -> None:
    columns = ColumnChoice(text_column="text", text_columns=("title",))
    with pytest.raises(DataError, match="both set"):
        list(open_source(path=write_rows(tmp_path, "csv"), columns=columns).documents())


def test_wrong_group_column(tmp_path: Path) -> None:
    columns = ColumnChoice(group_column="brand")
    with pytest.raises(DataError, match=r"no column 'brand' \(data.group_column\)"):
        list(open_source(path=write_rows(tmp_path, "parquet"), columns=columns).documents())


def test_a_single_column_needs_no_name(tmp_path: Path) -> None:
    file = tmp_path / "one.csv"
    file.write_text("sentence\nhello\n")
    assert [d.text for d in open_source(path=file).documents()] == ["hello"]
    file.write_text("sentence,label\nhello,1\n")
    with pytest.raises(DataError, match=r"no column 'text'; its columns are: sentence, label"):
        list(open_source(path=file).documents())


def test_text_files_give_paragraphs(tmp_path: Path) -> None:
    (tmp_path / "b.txt").write_text("fourth")
    (tmp_path / "a.txt").write_text("one\ntwo\n\n \nthree\n")
    expected = ["one\ntwo", "three", "fourth"]
    assert [d.text for d in open_source(path=tmp_path).documents()] == expected
    listed = open_source(path=[tmp_path / "b.txt", tmp_path / "a.txt"])
    assert [d.text for d in listed.documents()] == ["fourth", "one\ntwo", "three"]


def test_equal_texts_without_a_group_column_share_a_group(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\n\none\n")
    first, second = open_source(path=tmp_path).documents()
    assert first.group == second.group


def test_empty_cells_are_empty_documents(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text('{"text": null}\n{"text": "a"}\n')
    assert [d.text for d in open_source(path=file).documents()] == ["", "a"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("rows.jsonl", '{"text": "a"}\n{"text": \n', "cannot be read"),
        ("rows.jsonl", '"a"\n', "must be a JSON object"),
        ("rows.jsonl", '{"text": "a"}\n{"body": "b"}\n', "row 1 has no key 'text'"),
        ("rows.jsonl", '{"text": ["a"]}\n', "holds list, not text"),
        ("rows.parquet", "no parquet", "is no parquet file"),
        ("rows.csv.gz", "no gzip", "cannot be read|Not a gzipped file"),
    ],
)
def test_damaged_files(tmp_path: Path, name: str, content: str, message: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=message):
        list(open_source(path=tmp_path / name).documents())


def test_latin_1_text(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("caf\xe9".encode("latin-1"))
    with pytest.raises(DataError, match="UTF-8"):
        list(open_source(path=tmp_path).documents())


def test_paths_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        open_source(path=tmp_path / "missing.txt")
    with pytest.raises(DataError, match="holds no readable file"):
        open_source(path=tmp_path)
    (tmp_path / "a.xlsx").write_text("x")
    with pytest.raises(DataError, match="unknown kind"):
        open_source(path=tmp_path / "a.xlsx")


def test_split_of_a_saved_dataset_dict(tmp_path: Path) -> None:
    rows = datasets.Dataset.from_list(ROWS)
    datasets.DatasetDict({"train": rows, "test": rows.select([1])}).save_to_disk(str(tmp_path))
    assert [d.text for d in open_source(path=tmp_path, split="test").documents()] == TEXTS[1:2]
    with pytest.raises(DataError, match=r"no split 'dev'.*train, test"):
        list(open_source(path=tmp_path, split="dev").documents())


@pytest.mark.parametrize("streaming", [False, True])
def test_hub_data_set(monkeypatch: pytest.MonkeyPatch, streaming: bool) -> None:
    calls = []

    def load_dataset(name, configuration, *, split, streaming):
        calls.append((name, configuration, split, streaming))
        rows = datasets.Dataset.from_list(ROWS)
        return rows.to_iterable_dataset() if streaming else rows

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    source = open_source(name="thebajajra/Ecom-niverse", streaming=streaming)
    assert [document.text for document in source.documents()] == TEXTS
    assert [document.text for document in source.documents(1)] == TEXTS[1:]
    assert calls[0] == ("thebajajra/Ecom-niverse", None, "train", streaming)
    list(open_source(name="wikitext:raw", split="test", streaming=streaming).documents())
    assert calls[-1] == ("wikitext", "raw", "test", streaming)
    wrong = open_source(name="a/b", columns=ColumnChoice("body"), streaming=streaming)
    with pytest.raises(DataError, match="no column 'body'"):
        list(wrong.documents())


def test_hub_data_set_that_cannot_be_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    def load_dataset(*_args, **_kwargs):
        raise ConnectionError("no network\nmore lines")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(DataError, match=r"data.name=a/b .*no network; check") as error:
        list(open_source(name="a/b").documents())
    assert "\n" not in str(error.value)


def test_keys_that_do_not_fit() -> None:
    with pytest.raises(DataError, match=r"unknown; allowed: embedded, files, hub, ecommerce"):
        open_source("web")
    with pytest.raises(DataError, match=r"data.source=hub needs data.name="):
        open_source("hub")
    with pytest.raises(DataError, match=r"data.source=files needs data.path="):
        open_source("files")
    assert open_source().describe()["source"] == "embedded"
