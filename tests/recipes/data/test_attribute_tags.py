"""Attribute values become spans, spans become BIO tags, and tags become the spans again."""

import json
import os
from pathlib import Path
from typing import Any

import pandas
import pytest
from nestling.recipes.data.attribute_tags import (
    TaggedText,
    load_attribute_tags,
    place_values,
    tag_list,
    tag_tokens,
)
from nestling.recipes.data.documents import DataError
from nestling.recipes.data.tokenizer_training import train_tokenizer
from nestling.trainers.metrics.span_f1 import Span, spans_of_tags

REAL_DATA = "NESTLING_DATA"
TITLE = "Stump Men's Road Shoe,Red-Black 10 D US"
VALUES = {"Brand": ["Stump"], "Gender": ["Men's"], "Color": ["Red-Black"], "Size": ["10 D US"]}


def pieces(text: str, spans: tuple[Span, ...]) -> list[tuple[str, str]]:
    return [(text[span.start : span.end], span.name) for span in spans]


def write(folder: Path, split: str, titles: list[str], values: list[dict[str, Any]]) -> None:
    folder.mkdir(exist_ok=True)
    as_json = [
        json.dumps({name: dict.fromkeys(found, 1) for name, found in each.items()})
        for each in values
    ]
    frame = pandas.DataFrame({"text": titles, "category": "Shoes", "attributes": as_json})
    frame.to_parquet(folder / f"{split}.parquet")


def test_values_take_their_places() -> None:
    assert pieces(TITLE, place_values(TITLE, VALUES)) == [
        ("Stump", "Brand"), ("Men's", "Gender"), ("Red-Black", "Color"), ("10 D US", "Size")
    ]  # fmt: skip


def test_whole_words_and_longer_values_come_first() -> None:
    text = "Scar Car, Car Vitamin C, C 5oz"
    found = place_values(text, {"a": ["Car"], "b": ["Vitamin C"], "c": ["C"], "d": ["5"]})
    starts = {span.name: span.start for span in found}
    assert starts == {"a": 5, "b": 14, "c": 25, "d": 27}


def test_a_value_without_a_free_place_is_left_out() -> None:
    assert place_values("red shoe", {"a": ["red shoe"], "b": ["red"], "c": ["blue"]}) == (
        Span(0, 8, "a"),
    )


def test_the_first_token_of_a_word_carries_the_tag() -> None:
    tokenizer = train_tokenizer([TITLE], vocab_size=262, max_length=64)  # hardly a merge
    spans = place_values(TITLE, VALUES)
    tags = tag_list(sorted(VALUES))
    assert tags[:3] == ["O", "B-Brand", "I-Brand"]
    found = tag_tokens(tokenizer, TaggedText(TITLE, spans), tags, 64)
    assert len(found.input_ids) == len(found.labels)
    labelled = [place for place, label in enumerate(found.labels) if label != -100]
    words = [TITLE[start:end] for start, end in found.words]
    assert words[:4] == ["Stump", "Men", "'s", "Road"] and words[-3:] == ["10", "D", "US"]
    firsts = [tokenizer.decode([found.input_ids[place]]).strip() or " " for place in labelled]
    # A token of the space before a word is the first token of that word.
    both = zip(words, firsts, strict=True)
    assert all(word.startswith(first) or first == " " for word, first in both)
    assert [tags[found.labels[place]] for place in labelled][:4] == [
        "B-Brand", "B-Gender", "I-Gender", "O"
    ]  # fmt: skip


def test_tags_give_the_spans_back(tokenizer: Any) -> None:
    tags = tag_list(sorted(VALUES))
    spans = place_values(TITLE, VALUES)
    found = tag_tokens(tokenizer, TaggedText(TITLE, spans), tags, 64)
    names = [tags[label] for label in found.labels if label != -100]
    back = [
        Span(found.words[start][0], found.words[end - 1][1], name)
        for start, end, name in spans_of_tags(names)
    ]
    assert tuple(back) == spans
    short = tag_tokens(tokenizer, TaggedText(TITLE, spans), tags, 8)
    assert len(short.input_ids) == len(short.labels) == 8
    assert len(short.words) == sum(label != -100 for label in short.labels) < len(found.words)


def test_neighbours_of_one_name_stay_apart(tokenizer: Any) -> None:
    text = "red blue"
    tagged = TaggedText(text, (Span(0, 3, "Color"), Span(4, 8, "Color")))
    tags = tag_list(["Color"])
    found = tag_tokens(tokenizer, tagged, tags, 16)
    assert [tags[label] for label in found.labels if label != -100] == ["B-Color", "B-Color"]


def test_missing_splits_are_cut_off_and_no_title_is_on_two_sides(tmp_path: Path) -> None:
    titles = [f"Brand{i % 9} shoe {i}" for i in range(60)]
    values = [{"Brand": [f"Brand{i % 9}"]} for i in range(60)]
    write(tmp_path / "a", "train", [*titles, *titles[:5]], [*values, *values[:5]])
    write(
        tmp_path / "a",
        "test",
        [titles[0].upper(), "Nike boot"],
        [{"Brand": []}, {"Brand": ["Nike"], "Style": ["sandal"]}],
    )
    found = load_attribute_tags(tmp_path / "a")
    keys = {name: {each.text.lower() for each in texts} for name, texts in found.splits.items()}
    assert keys["train"].isdisjoint(keys["validation"] | keys["test"])
    assert keys["validation"].isdisjoint(keys["test"]) and keys["validation"]
    assert keys["test"] == {titles[0].lower(), "nike boot"}
    assert len(keys["train"] | keys["validation"]) == 59
    assert found.names == ["Brand"]
    assert found.facts["values_that_found_no_place"] == 1
    assert (found.facts["train_rows_in_file"], found.facts["test_rows_in_file"]) == (65, 2)


def test_attributes_that_are_no_json(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    for bad in ("{", '["red"]', '{"Color": 1}'):
        frame = pandas.DataFrame({"text": ["red shoe"], "attributes": [bad]})
        frame.to_parquet(tmp_path / "a" / "train.parquet")
        with pytest.raises(DataError, match="row 0: attributes must be JSON"):
            load_attribute_tags(tmp_path / "a")


def test_a_text_that_is_missing_is_named(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    frame = pandas.DataFrame({"text": ["red shoe", None], "attributes": ["{}", "{}"]})
    frame.to_parquet(tmp_path / "a" / "train.parquet")
    with pytest.raises(DataError, match=r"row 1: text is empty or missing; fill it or leave"):
        load_attribute_tags(tmp_path / "a")


@pytest.mark.skipif(
    REAL_DATA not in os.environ, reason=f"{REAL_DATA} does not name the folder of the real data"
)
def test_real_values_nearly_all_find_their_place() -> None:
    found = load_attribute_tags(Path(os.environ[REAL_DATA]) / "ecommerce" / "attributes_oa-mine")
    spans = sum(len(each.spans) for texts in found.splits.values() for each in texts)
    assert found.facts["values_that_found_no_place"] <= 0.001 * spans
    assert len(found.splits["test"]) == 491 and len(found.names) == 51
