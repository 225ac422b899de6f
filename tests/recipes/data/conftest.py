"""A source held in memory and a small tokenizer for the data tests."""

from collections.abc import Callable, Iterator, Sequence
from itertools import islice

import numpy as np
import pytest
from nestling.recipes.data.documents import Document
from nestling.recipes.data.tokenizer_training import train_tokenizer
from transformers import PreTrainedTokenizerFast

WORDS = "red blue small large chair table lamp with without steel oak cable mount and for".split()


class ListSource:
    """Documents of a list; the group is the text unless groups are given."""

    def __init__(self, texts: Sequence[str], groups: Sequence[str] | None = None) -> None:
        self.texts = list(texts)
        self.groups = list(groups if groups is not None else texts)

    def describe(self) -> dict[str, str]:
        return {"source": "list"}

    def documents(self, start: int = 0) -> Iterator[Document]:
        pairs = zip(self.texts, self.groups, strict=True)
        return (Document(text, group) for text, group in islice(pairs, start, None))


def random_texts(count: int, seed: int = 0) -> list[str]:
    """Distinct texts of 1 to about 60 words."""
    generator = np.random.default_rng(seed)
    lengths = np.clip(generator.lognormal(2.0, 1.0, count).astype(int), 1, 60)
    return [
        f"{number} " + " ".join(generator.choice(WORDS, length))
        for number, length in enumerate(lengths)
    ]


@pytest.fixture(scope="session")
def list_source() -> type[ListSource]:
    return ListSource


@pytest.fixture(scope="session")
def make_texts() -> Callable[..., list[str]]:
    return random_texts


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    return train_tokenizer(random_texts(300), vocab_size=300, max_length=64)
