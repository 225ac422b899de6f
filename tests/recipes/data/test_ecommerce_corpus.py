"""E-commerce text: distinct documents, and no product on both sides of the split."""

import os
from collections import defaultdict
from pathlib import Path

import pandas
import pytest
from nestling.recipes.data.documents import DataError, SplitRule
from nestling.recipes.data.ecommerce_corpus import EcommerceCorpus, ProductGroups

REAL_DATA = "NESTLING_DATA"


def write(folder: Path, name: str, rows: list[dict[str, object]]) -> None:
    (folder / name).mkdir()
    pandas.DataFrame(rows).to_parquet(folder / name / "rows.parquet")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Build a folder with the columns of the public sets."""
    write(tmp_path, "product_offers", [{"text": f"offer {i}"} for i in range(40)])
    pairs = [(f"offer {i}", f"offer {i + 1}", int(i % 4 != 3)) for i in range(39)]
    write(
        tmp_path,
        "match_wdc_computers",
        [{"sentence1": a, "sentence2": b, "label": label} for a, b, label in pairs],
    )
    question = {"ASIN": "B1", "question": "is it red?", "candidate": "it is red", "answer": "yes"}
    write(tmp_path, "pqa_hetpqa_answers", [question])
    write(
        tmp_path,
        "pqa_epqa",
        [{**question, "answer": "", "candidate": "colour: red", "title": "Red Lamp"}],
    )
    oa_mine = {"text": "red  lamp", "attributes": '{"Color": {"red": 1}, "Size": {"L": 1, "M": 1}}'}
    write(tmp_path, "attributes_oa-mine", [oa_mine])
    review = "good sound ANSWERNOTFOUND"
    write(
        tmp_path, "subjqa_electronics", [{"review": review, "question": "loud?", "item_id": "B1"}]
    )
    write(tmp_path, "amazon_counterfactual_en", [{"text": "I wish it were red", "label": 1}])
    return tmp_path


def test_documents_are_distinct_and_clean(folder: Path) -> None:
    corpus = EcommerceCorpus(folder)
    texts = [document.text for document in corpus.documents()]
    assert len(texts) == len(set(texts)) == 40 + 8
    assert "good sound" in texts
    assert "is it red?\nyes" in texts
    assert "red  lamp\nColor: red; Size: L, M" in texts
    assert [document.text for document in corpus.documents(5)] == texts[5:]


def test_noncommercial_sets_need_the_flag(folder: Path) -> None:
    assert not any(d.text == "I wish it were red" for d in EcommerceCorpus(folder).documents())
    corpus = EcommerceCorpus(folder, noncommercial=True)
    assert any(document.text == "I wish it were red" for document in corpus.documents())


def test_matching_offers_share_a_group(folder: Path) -> None:
    groups = {d.text: d.group for d in EcommerceCorpus(folder).documents()}
    clusters = defaultdict(set)
    for number in range(40):
        clusters[groups[f"offer {number}"]].add(number // 4)
    assert len(clusters) == 10
    assert all(len(members) == 1 for members in clusters.values())


def test_ids_and_titles_of_a_product_share_a_group(folder: Path) -> None:
    groups = {d.text: d.group for d in EcommerceCorpus(folder).documents()}
    texts = ("it is red", "colour: red", "Red Lamp", "red  lamp\nColor: red; Size: L, M", "loud?")
    assert len({groups[text] for text in texts}) == 1


def test_group_names_do_not_depend_on_the_order() -> None:
    pairs = [("d", "c"), ("b", "a"), ("c", "b")]
    for order in (pairs, pairs[::-1]):
        groups = ProductGroups()
        for first, second in order:
            groups.unite(first, second)
        assert {groups.root(key) for key in "abcd"} == {"a"}


def test_wrong_folders(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is not a folder"):
        EcommerceCorpus(tmp_path / "missing")
    with pytest.raises(DataError, match="holds none of the e-commerce sets"):
        EcommerceCorpus(tmp_path)
    write(tmp_path, "wands_queries", [{"query": "sofa"}])
    with pytest.raises(DataError, match=r"no column 'text'; its columns are: query"):
        list(EcommerceCorpus(tmp_path).documents())


@pytest.mark.skipif(
    REAL_DATA not in os.environ, reason=f"{REAL_DATA} does not name the folder of the real data"
)
def test_real_folder_is_split_by_product() -> None:
    folder = Path(os.environ[REAL_DATA]) / "ecommerce"
    documents = list(EcommerceCorpus(folder).documents())
    assert len({document.text for document in documents}) == len(documents) > 50_000
    assert 7e6 < sum(len(document.text) for document in documents) < 12e6
    rule = SplitRule(0.05)
    splits = {document.text: rule.split_of(document.group) for document in documents}
    for name in ("match_walmart_amazon", "match_amazon_google", "match_wdc_watches"):
        for file in (folder / name).glob("*.parquet"):
            frame = pandas.read_parquet(file).query("label == 1")
            for first, second in zip(frame.sentence1, frame.sentence2, strict=True):
                assert splits[first.strip()] == splits[second.strip()]
    sides = defaultdict(set)
    for document in documents:
        sides[document.group].add(rule.split_of(document.group))
    assert all(len(side) == 1 for side in sides.values())
    share = sum(split == "validation" for split in splits.values()) / len(splits)
    assert share == pytest.approx(0.05, abs=0.01)
