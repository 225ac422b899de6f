"""Product matching: do two offers name the same product?

A set is a folder with one table per split (columns ``sentence1``, ``sentence2``, ``label``), as
the sets of DeepMatcher and Web Data Commons are distributed. Splits that are there are used as
they are but for one thing: a pair that also stands in a later split (in either order) is taken out
of the earlier one, because the published splits repeat a few. They share offers on purpose;
``facts`` says how many. A split that is missing is cut off by product, so that none is on two
sides.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from .documents import DataError, group_fraction
from .ecommerce_corpus import ProductGroups
from .labelled_tables import read_columns, require_filled, split_files, text_key

LABELS = ("different", "match")
# A column of whole numbers with a gap is stored as floats.
LABEL_TEXTS = {"0": 0, "0.0": 0, "1": 1, "1.0": 1}
SPLIT_NAMES = ("train", "validation", "test")
HELD_OUT = 0.2  # share of the products of each split that is cut off


class OfferPair(NamedTuple):
    """Two offers.

    Attributes:
        first: Text of one offer.
        second: Text of the other.
        label: 1 if both name the same product, else 0; an index into `LABELS`.
    """

    first: str
    second: str
    label: int


class MatchingPairs(NamedTuple):
    """The pairs of a set.

    Attributes:
        splits: ``train``, ``validation`` and ``test``.
        facts: Counts that belong beside a result.
    """

    splits: Mapping[str, list[OfferPair]]
    facts: dict[str, int]


def load_matching_pairs(folder: Path) -> MatchingPairs:
    """Read a matching set.

    Raises:
        DataError: If a file cannot be used, or a split ends up empty.
    """
    files = split_files(folder)
    splits = {name: _read_pairs(file) for name, file in files.items()}
    facts = {f"{name}_rows_in_file": len(pairs) for name, pairs in splits.items()}
    missing = [name for name in SPLIT_NAMES if name not in splits]
    if missing:
        whole = splits["train"]
        splits.update(split_by_product(whole, missing))
        facts["pairs_across_products_of_two_splits"] = len(whole) - sum(
            len(splits[name]) for name in ("train", *missing)
        )
    splits = {name: splits[name] for name in SPLIT_NAMES}
    later: set[frozenset[str]] = set()
    for name in reversed(SPLIT_NAMES):
        kept = [pair for pair in splits[name] if _pair_key(pair) not in later]
        facts[f"{name}_pairs_in_later_splits"] = len(splits[name]) - len(kept)
        splits[name] = kept
        later |= {_pair_key(pair) for pair in kept}
        if not kept:
            raise DataError(f"{folder}: the {name} split has no pair left; give more data")
    seen, asked = (_offers(splits[name]) for name in ("train", "test"))
    facts |= {"test_offers": len(asked), "test_offers_seen_in_training": len(seen & asked)}
    return MatchingPairs(splits, facts)


def split_by_product(
    pairs: Sequence[OfferPair], names: Sequence[str]
) -> dict[str, list[OfferPair]]:
    """Cut `names` off the training pairs, so that no product is on two sides.

    Offers of matching pairs are one product. A pair of two products that land on two sides is
    left out: it would show each side a product of the other.

    Args:
        pairs: All pairs.
        names: Splits that each take the share `HELD_OUT` of the products; the rest is ``train``.
    """
    groups = ProductGroups()
    for pair in pairs:
        if pair.label == 1:
            groups.unite(text_key(pair.first), text_key(pair.second))

    def side(text: str) -> str:
        place = int(group_fraction(groups.root(text_key(text))) / HELD_OUT)
        return names[place] if place < len(names) else "train"

    splits: dict[str, list[OfferPair]] = {name: [] for name in ("train", *names)}
    for pair in pairs:
        if side(pair.first) == side(pair.second):
            splits[side(pair.first)].append(pair)
    return splits


def _read_pairs(file: Path) -> list[OfferPair]:
    pairs = []
    for number, row in enumerate(read_columns(file, ("sentence1", "sentence2", "label"))):
        require_filled(file, number, row)
        if row["label"] not in LABEL_TEXTS:
            raise DataError(f"{file}, row {number}: label {row['label']!r} must be 0 or 1")
        pairs.append(OfferPair(row["sentence1"], row["sentence2"], LABEL_TEXTS[row["label"]]))
    return pairs


def _pair_key(pair: OfferPair) -> frozenset[str]:
    return frozenset((text_key(pair.first), text_key(pair.second)))


def _offers(pairs: Sequence[OfferPair]) -> set[str]:
    return {text_key(text) for pair in pairs for text in (pair.first, pair.second)}
