"""E-commerce text from a folder of public product data, grouped by product.

The folder holds one sub-folder per set (see `TABLES`): product offers, catalogues, pairs of offers
with the label "same product", product questions with answers, reviews, attributes, queries.
Sub-folders that are missing are left out, others in it are not read.

Every distinct text is one document. Its group is a product: the product id where a row has one
(ASIN, item id), else the title or text itself. Keys that name the same product are united
(union-find): the two offers of a pair with label 1, an id and its title, equal offer texts.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from pathlib import Path

from .documents import DataError, Document
from .labelled_tables import SUFFIXES, read_columns

NO_ANSWER = "ANSWERNOTFOUND"  # SubjQA ends every review with it and uses it for "no span"


@dataclass(frozen=True, slots=True)
class Table:
    """How the rows of one set become documents.

    Attributes:
        texts: Columns that hold a text each.
        joined: Columns that are read together as one text (a question and its answer).
        product: Column with a product id; None where the text itself is the key.
        pairs: Two columns with offers; equal products where `label` is 1.
        title: Column with the product title, an additional key of the product.
        attributes: Column with JSON {name: {value: count}}, appended to the joined text.
        commercial: False where the licence allows non-commercial use only.
    """

    texts: tuple[str, ...] = ()
    joined: tuple[str, ...] = ()
    product: str | None = None
    pairs: tuple[str, str] | None = None
    title: str | None = None
    attributes: str | None = None
    commercial: bool = True


OFFER_PAIRS = Table(pairs=("sentence1", "sentence2"))
TABLES: Mapping[str, Table] = {
    "product_offers": Table(texts=("text",)),
    "match_walmart_amazon": OFFER_PAIRS,
    "match_amazon_google": OFFER_PAIRS,
    "match_wdc_computers": OFFER_PAIRS,
    "match_wdc_cameras": OFFER_PAIRS,
    "match_wdc_watches": OFFER_PAIRS,
    "retail_demo_store": Table(texts=("text",), title="title"),
    "attributes_oa-mine": Table(joined=("text",), title="text", attributes="attributes"),
    "pqa_hetpqa_answers": Table(
        texts=("candidate",), joined=("question", "answer"), product="ASIN"
    ),
    "pqa_hetpqa_ranking": Table(texts=("question", "candidate"), product="ASIN"),
    "pqa_epqa": Table(
        texts=("title", "candidate"), joined=("question", "answer"), product="ASIN", title="title"
    ),
    "pqa_semipqa": Table(texts=("question", "candidate"), product="qid"),
    "subjqa_electronics": Table(texts=("review", "question"), product="item_id"),
    "wands_queries": Table(texts=("text",)),
    "amazon_counterfactual_en": Table(texts=("text",), commercial=False),
    "amazon_counterfactual_en_ext": Table(texts=("text",), commercial=False),
}


@dataclass(slots=True)
class ProductGroups:
    """Union-find over product keys. A group is named by its smallest key, whatever the order."""

    parents: dict[str, str] = field(default_factory=dict)

    def root(self, key: str) -> str:
        """Return the name of the group of `key`."""
        while (parent := self.parents.setdefault(key, key)) != key:
            self.parents[key] = self.parents[parent]
            key = parent
        return key

    def unite(self, first: str, second: str) -> None:
        """Put both keys into one group."""
        low, high = sorted((self.root(first), self.root(second)))
        self.parents[high] = low


class EcommerceCorpus:
    """Distinct texts of an e-commerce folder; `Document.origin` names the set.

    Args:
        folder: Folder with one sub-folder per set.
        noncommercial: Read the sets whose licence allows non-commercial use only as well.

    Raises:
        DataError: If the folder does not exist or holds none of the known sets.
    """

    def __init__(self, folder: str | Path, noncommercial: bool = False) -> None:
        """Find the sets; they are read by `documents()`."""
        self.folder = Path(folder)
        self.noncommercial = noncommercial
        if not self.folder.is_dir():
            raise DataError(f"data.path={folder} is not a folder; give the e-commerce folder")
        self.tables = {
            name: table
            for name, table in TABLES.items()
            if (table.commercial or noncommercial) and (self.folder / name).is_dir()
        }
        if not self.tables:
            raise DataError(
                f"data.path={folder} holds none of the e-commerce sets; expected are sub-folders "
                f"such as: {', '.join(TABLES)}"
            )

    def describe(self) -> dict[str, str]:
        """Return the folder name and the sets."""
        return {
            "source": "ecommerce",
            "sets": ",".join(self.tables),
            "noncommercial": str(self.noncommercial),
        }

    def documents(self, start: int = 0) -> Iterator[Document]:
        """Yield the documents from number `start` on; the groups are settled before the first.

        Raises:
            DataError: If a set lacks a column.
        """
        return islice(self._documents, start, None)

    @cached_property
    def _documents(self) -> list[Document]:
        groups = ProductGroups()
        keyed: dict[str, tuple[str, str]] = {}
        for name, table in self.tables.items():
            for row in _rows(self.folder / name, table):
                for text, key in _keyed_texts(row, table, name, groups):
                    keyed.setdefault(text, (key, name))
        return [
            Document(text=text, group=groups.root(key), origin=name)
            for text, (key, name) in keyed.items()
        ]


def _keyed_texts(
    row: Mapping[str, str], table: Table, name: str, groups: ProductGroups
) -> Iterator[tuple[str, str]]:
    """Yield (text, product key) of a row and unite the keys that it shows to be one product."""
    if table.pairs is not None:
        first, second = (_clean(row[column]) for column in table.pairs)
        if row["label"] == "1":
            groups.unite(_title_key(first), _title_key(second))
        yield from ((text, _title_key(text)) for text in (first, second) if text)
        return
    title = _clean(row[table.title]) if table.title else ""
    key = f"{_id_space(name, table.product)}:{row[table.product]}" if table.product else ""
    if key and title:
        groups.unite(key, _title_key(title))
    joined = "\n".join(filter(None, (_clean(row[column]) for column in table.joined)))
    if table.attributes:
        joined = "\n".join(filter(None, (joined, _attribute_line(row[table.attributes]))))
    for text in (joined, *(_clean(row[column]) for column in table.texts)):
        if text:
            yield text, key or _title_key(title or text)


def _id_space(name: str, column: str | None) -> str:
    # ASINs are the same products in all sets; item_id of SubjQA is an ASIN too. Other ids count
    # inside their own set only.
    return "asin" if column in ("ASIN", "item_id") else name


def _title_key(text: str) -> str:
    return "title:" + " ".join(text.lower().split())


def _clean(text: str) -> str:
    text = text.strip()
    if text.endswith(NO_ANSWER):
        text = text.removesuffix(NO_ANSWER).rstrip()
    return text


def _attribute_line(attributes: str) -> str:
    values: dict[str, dict[str, int]] = json.loads(attributes or "{}")
    return "; ".join(f"{name}: {', '.join(found)}" for name, found in values.items())


def _rows(folder: Path, table: Table) -> Iterator[dict[str, str]]:
    """Yield the rows of all files of a set as text, files in the order of their names."""
    optional = (table.product, table.title, table.attributes)
    wanted = [*table.texts, *table.joined, *(column for column in optional if column)]
    wanted += [*table.pairs, "label"] if table.pairs else []
    columns = list(dict.fromkeys(wanted))
    for file in sorted(folder.iterdir()):
        if file.name.endswith(SUFFIXES):
            yield from read_columns(file, columns)
