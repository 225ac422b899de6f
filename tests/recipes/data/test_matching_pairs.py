"""Matching sets: given splits, splits by product, and what is refused."""

import os
from pathlib import Path

import pandas
import pytest
from nestling.recipes.data.documents import DataError
from nestling.recipes.data.matching_pairs import OfferPair, load_matching_pairs, split_by_product

REAL_DATA = "NESTLING_DATA"


def write(file: Path, pairs: list[tuple[str, str, object]]) -> None:
    file.parent.mkdir(exist_ok=True)
    frame = pandas.DataFrame(pairs, columns=["sentence1", "sentence2", "label"])
    if file.suffix == ".parquet":
        frame.to_parquet(file)
    else:
        frame.to_csv(file, index=False)


def test_given_splits_are_kept_whatever_their_kind_of_file(tmp_path: Path) -> None:
    folder = tmp_path / "match_x"
    write(folder / "train_medium.parquet", [("a", "b", 1)])
    write(folder / "validation_medium.csv", [("c", "d", 0)])
    write(folder / "test.csv.gz", [("e", "null", 1)])  # a word, not a missing value
    assert load_matching_pairs(folder).splits == {
        "train": [OfferPair("a", "b", 1)],
        "validation": [OfferPair("c", "d", 0)],
        "test": [OfferPair("e", "null", 1)],
    }


def test_pairs_of_a_later_split_leave_the_earlier_one(tmp_path: Path) -> None:
    """In either order and whatever the case."""
    folder = tmp_path / "match_x"
    write(folder / "train.parquet", [("a", "b", 1), ("D", " c", 0), ("e", "f", 0)])
    write(folder / "validation.parquet", [("f", "e", 0), ("a", "g", 0)])
    write(folder / "test.parquet", [("c", "d", 0), ("a", "h", 1)])
    found = load_matching_pairs(folder)
    assert found.splits == {
        "train": [OfferPair("a", "b", 1)],
        "validation": [OfferPair("f", "e", 0), OfferPair("a", "g", 0)],
        "test": [OfferPair("c", "d", 0), OfferPair("a", "h", 1)],
    }
    assert found.facts["train_rows_in_file"] == 3
    assert found.facts["train_pairs_in_later_splits"] == 2
    assert (found.facts["test_offers"], found.facts["test_offers_seen_in_training"]) == (4, 1)


def test_missing_splits_are_cut_off_by_product(tmp_path: Path) -> None:
    """No offer, and no offer of the same product, is on two sides."""
    pairs: list[tuple[str, str, object]] = []
    for product in range(80):
        pairs += [(f"p{product} shop{i}", f"p{product} shop{i + 1}", 1) for i in range(3)]
        pairs.append((f"p{product} shop0", f"p{(product * 7 + 1) % 80} shop2", 0))
    write(tmp_path / "match_x" / "train.csv", pairs)
    found = load_matching_pairs(tmp_path / "match_x")
    products = {
        split: {text.split()[0] for pair in members for text in (pair.first, pair.second)}
        for split, members in found.splits.items()
    }
    assert products["train"].isdisjoint(products["validation"] | products["test"])
    assert products["validation"].isdisjoint(products["test"])
    assert set.union(*products.values()) == {f"p{product}" for product in range(80)}
    assert len(products["test"]) < 40 < len(products["train"])
    kept = sum(map(len, found.splits.values()))
    assert found.facts["pairs_across_products_of_two_splits"] == len(pairs) - kept > 0
    assert load_matching_pairs(tmp_path / "match_x") == found


def test_a_product_stays_whole_through_a_chain_of_matches() -> None:
    chain = [OfferPair(f"offer {i}", f"offer {i + 1}", 1) for i in range(60)]
    splits = split_by_product(chain, ["validation", "test"])
    assert sorted(map(len, splits.values())) == [0, 0, 60]


def test_files_that_cannot_be_used(tmp_path: Path) -> None:
    folder = tmp_path / "match_x"
    with pytest.raises(DataError, match="is not a folder"):
        load_matching_pairs(folder)
    folder.mkdir()
    (folder / "notes.txt").write_text("hello")
    with pytest.raises(DataError, match=r"no file train\*.*it holds: notes.txt"):
        load_matching_pairs(folder)
    write(folder / "train.csv", [("a", "b", "yes")])
    with pytest.raises(DataError, match="row 0: label 'yes' must be 0 or 1"):
        load_matching_pairs(folder)
    pandas.DataFrame({"sentence1": ["a"], "label": [1]}).to_csv(folder / "train.csv", index=False)
    with pytest.raises(DataError, match="no column 'sentence2'; its columns are: sentence1, label"):
        load_matching_pairs(folder)
    write(folder / "train_large.csv", [("a", "b", 1)])
    with pytest.raises(DataError, match="two files for train, train.csv and train_large.csv"):
        load_matching_pairs(folder)
    (folder / "train.csv").unlink()
    with pytest.raises(DataError, match="split has no pair left"):
        load_matching_pairs(folder)
    (folder / "train_large.csv").rename(folder / "train.parquet")
    with pytest.raises(DataError, match="cannot be read"):
        load_matching_pairs(folder)


def test_labels_stored_as_floats_are_the_same_labels(tmp_path: Path) -> None:
    for name in ("train", "validation", "test"):
        write(tmp_path / "match_x" / f"{name}.parquet", [(name, "b", 0.0), (name, "c", 1.0)])
    splits = load_matching_pairs(tmp_path / "match_x").splits
    assert [pair.label for pair in splits["test"]] == [0, 1]
    write(tmp_path / "match_x" / "test.parquet", [("e", "f", 0.5)])
    with pytest.raises(DataError, match="row 0: label '0.5' must be 0 or 1"):
        load_matching_pairs(tmp_path / "match_x")


@pytest.mark.parametrize("kind", ["parquet", "csv"])
@pytest.mark.parametrize("column", ["sentence1", "sentence2", "label"])
@pytest.mark.parametrize("missing", [None, " "])
def test_the_row_with_a_missing_value_is_named(
    missing: object, column: str, kind: str, tmp_path: Path
) -> None:
    """Whole numbers become floats where one is missing: the rows before are not at fault."""
    pairs = [[f"a{i}", f"b{i}", 1] for i in range(5)]
    pairs[3][["sentence1", "sentence2", "label"].index(column)] = missing
    rows: list[tuple[str, str, object]] = [(a, b, label) for a, b, label in pairs]
    if column == "label" and missing is not None:
        rows = [(a, b, str(label)) for a, b, label in rows]
    write(tmp_path / "match_x" / f"train.{kind}", rows)
    text = f"train.{kind}, row 3: {column} is empty or missing; fill it or leave the row out"
    with pytest.raises(DataError, match=text):
        load_matching_pairs(tmp_path / "match_x")


@pytest.mark.skipif(
    REAL_DATA not in os.environ, reason=f"{REAL_DATA} does not name the folder of the real data"
)
@pytest.mark.parametrize("name", ["walmart_amazon", "amazon_google", "wdc_computers"])
def test_real_sets_have_no_pair_in_two_splits(name: str) -> None:
    found = load_matching_pairs(Path(os.environ[REAL_DATA]) / "ecommerce" / f"match_{name}")
    keys = [
        {frozenset((pair.first, pair.second)) for pair in members}
        for members in found.splits.values()
    ]
    assert not keys[0] & keys[1] and not keys[0] & keys[2] and not keys[1] & keys[2]
    assert found.facts["test_rows_in_file"] == len(found.splits["test"]) > 1000
    assert all({pair.label for pair in members} == {0, 1} for members in found.splits.values())
