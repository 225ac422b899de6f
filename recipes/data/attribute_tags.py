"""Attribute extraction: which words of a product title are the brand, the colour, the size?

A set is a folder with one table per split: ``text`` and ``attributes``, JSON of the form
``{name: {value: count}}``, where every value is a piece of the text (OA-Mine, as ExtractGPT
distributes it). Values become character spans, spans become BIO tags on the words of the model's
tokenizer. As is usual for BERT, the first token of a word carries its tag and its other tokens
-100, so a word has one tag (Devlin et al., https://arxiv.org/abs/1810.04805, section 5.3).
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ...trainers.losses.masked_lm import IGNORED_LABEL
from ...trainers.metrics.span_f1 import Span
from .documents import DataError, group_fraction
from .labelled_tables import read_columns, require_filled, split_files, text_key

SPLIT_NAMES = ("train", "validation", "test")
HELD_OUT = 0.1  # share of the titles of a split that is cut off
OUTSIDE = "O"


class TaggedText(NamedTuple):
    """A text with its spans, in characters, not overlapping, in order."""

    text: str
    spans: tuple[Span, ...]


class AttributeTags(NamedTuple):
    """The texts of a set.

    Attributes:
        splits: ``train``, ``validation`` and ``test``.
        names: Names of all attributes, sorted.
        facts: Counts that belong beside a result.
    """

    splits: Mapping[str, list[TaggedText]]
    names: list[str]
    facts: dict[str, int]


class TaggedTokens(NamedTuple):
    """A text as the model sees it.

    Attributes:
        input_ids: With special tokens.
        labels: One per token: a tag at the first token of a word, else -100.
        words: Start and end character of each word, in the order of the labels that are not -100.
    """

    input_ids: list[int]
    labels: list[int]
    words: list[tuple[int, int]]


def load_attribute_tags(folder: Path) -> AttributeTags:
    """Read an attribute set; splits that are missing are cut off by title.

    A title of a later split is taken out of the earlier ones.

    Raises:
        DataError: If a file cannot be used, or a split ends up empty.
    """
    facts: dict[str, int] = {"values_that_found_no_place": 0}
    splits: dict[str, list[TaggedText]] = {}
    for name, file in split_files(folder).items():
        splits[name] = []
        for text, attributes in _read_rows(file):
            spans = place_values(text, attributes)
            facts["values_that_found_no_place"] += sum(map(len, attributes.values())) - len(spans)
            splits[name].append(TaggedText(text, spans))
        facts[f"{name}_rows_in_file"] = len(splits[name])
    missing = [name for name in SPLIT_NAMES if name not in splits]
    whole = splits["train"]
    for name in ("train", *missing):
        splits[name] = [each for each in whole if _side(each.text, missing) == name]
    later: set[str] = set()
    for name in reversed(SPLIT_NAMES):
        splits[name] = [each for each in splits[name] if text_key(each.text) not in later]
        later |= {text_key(each.text) for each in splits[name]}
        if not splits[name]:
            raise DataError(f"{folder}: the {name} split has no text left; give more data")
    names = {span.name for texts in splits.values() for each in texts for span in each.spans}
    return AttributeTags({name: splits[name] for name in SPLIT_NAMES}, sorted(names), facts)


def place_values(text: str, attributes: Mapping[str, Iterable[str]]) -> tuple[Span, ...]:
    """Find the values of attributes in a text.

    A value takes its first occurrence that is made of whole words (else its first occurrence) and
    that no longer value has taken: "Vitamin C" comes before "C".

    Args:
        text: The text.
        attributes: Name -> values, in the case of the text.

    Returns:
        Spans that do not overlap, in order. A value without a place is left out.
    """
    taken: list[Span] = []
    wanted = ((value, name) for name, values in attributes.items() for value in values if value)
    for value, name in sorted(wanted, key=lambda pair: (-len(pair[0]), pair)):
        literal = re.escape(value)
        for pattern in (rf"(?<!\w){literal}(?!\w)", literal):
            free = (
                Span(found.start(), found.end(), name)
                for found in re.finditer(pattern, text)
                if all(found.end() <= span.start or span.end <= found.start() for span in taken)
            )
            if (span := next(free, None)) is not None:
                taken.append(span)
                break
    return tuple(sorted(taken))


def tag_list(names: Sequence[str]) -> list[str]:
    """Return ``O`` and ``B-name``, ``I-name`` of each name."""
    return [OUTSIDE, *(f"{kind}-{name}" for name in names for kind in "BI")]


def tag_tokens(tokenizer: Any, tagged: TaggedText, tags: Sequence[str], limit: int) -> TaggedTokens:
    """Tokenize a text and lay its spans on the words.

    A word is what the tokenizer splits before it looks for sub-words. A word that a span only
    touches belongs to the span: its exact border cannot be expressed, and counts as missed.

    Args:
        tokenizer: A fast tokenizer.
        tagged: The text.
        tags: From `tag_list`.
        limit: Tokens at most; the rest of the text is cut off.
    """
    encoded = tokenizer(
        tagged.text, truncation=True, max_length=limit, return_offsets_mapping=True
    )
    index = {tag: number for number, tag in enumerate(tags)}
    ids: list[int] = encoded["input_ids"]
    word_of: list[int | None] = encoded.word_ids()
    labels = [IGNORED_LABEL] * len(ids)
    words: list[tuple[int, int]] = []
    previous: Span | None = None
    for places in _tokens_of_words(word_of):
        borders = [encoded["offset_mapping"][place] for place in places]
        start, end = _without_spaces(tagged.text, borders[0][0], borders[-1][1])
        if start >= end:
            continue
        inside = next((s for s in tagged.spans if s.start < end and start < s.end), None)
        tag = OUTSIDE
        if inside is not None:
            tag = f"{'I' if inside is previous else 'B'}-{inside.name}"
        labels[places[0]] = index[tag]
        words.append((start, end))
        previous = inside
    return TaggedTokens(ids, labels, words)


def _tokens_of_words(word_of: Sequence[int | None]) -> Iterator[list[int]]:
    places: dict[int, list[int]] = {}
    for place, word in enumerate(word_of):
        if word is not None:
            places.setdefault(word, []).append(place)
    return iter(places.values())


def _without_spaces(text: str, start: int, end: int) -> tuple[int, int]:
    piece = text[start:end]
    return start + len(piece) - len(piece.lstrip()), end - len(piece) + len(piece.rstrip())


def _read_rows(file: Path) -> Iterator[tuple[str, dict[str, list[str]]]]:
    for number, row in enumerate(read_columns(file, ("text", "attributes"))):
        require_filled(file, number, {"text": row["text"]})
        try:
            attributes = json.loads(row["attributes"] or "{}")
            named = {
                name: [value.strip() for value in values if value.strip()]
                for name, values in attributes.items()
            }
        except (ValueError, AttributeError, TypeError) as error:
            raise DataError(
                f"{file}, row {number}: attributes must be JSON such as "
                f'{{"Brand": {{"Diesel": 1}}}} ({error})'
            ) from error
        yield row["text"], named


def _side(text: str, names: Sequence[str]) -> str:
    place = int(group_fraction(text_key(text)) / HELD_OUT)
    return names[place] if place < len(names) else "train"

