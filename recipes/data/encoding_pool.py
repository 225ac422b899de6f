"""Tokenisation of many texts, in this process or in several (`data.num_proc`)."""

import multiprocessing
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import lru_cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Protocol

from .documents import DataError
from .tokenizer_training import encode_texts

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

BATCH_TEXTS = 512


class Encoder(Protocol):
    """Turns texts into token ids, in their order."""

    def __call__(self, texts: list[str], /) -> list[list[int]]:
        """Return the token ids of each text, without special tokens."""
        ...


@contextmanager
def text_encoder(tokenizer: "PreTrainedTokenizerFast", num_proc: int = 1) -> Iterator[Encoder]:
    """Give a function that tokenises texts; the processes live as long as the context.

    Args:
        tokenizer: The tokenizer.
        num_proc: Number of processes; 1 means this one.

    Raises:
        DataError: If `num_proc` is below 1.
    """
    if num_proc < 1:
        raise DataError(f"data.num_proc={num_proc} must be at least 1; pass the number of cores")
    if num_proc == 1:
        yield partial(encode_texts, tokenizer)
        return
    # Forking a process whose tokenizer already runs threads can block; a fresh one cannot.
    context = multiprocessing.get_context("spawn")
    with (
        TemporaryDirectory(prefix="nestling-tokenizer-") as folder,
        ProcessPoolExecutor(num_proc, context, initializer=_use_one_thread) as pool,
    ):
        tokenizer.save_pretrained(folder)
        yield partial(_encode_in_pool, pool, Path(folder))


def _use_one_thread() -> None:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"


def _encode_in_pool(
    pool: ProcessPoolExecutor, folder: Path, texts: list[str], /
) -> list[list[int]]:
    batches = [texts[start : start + BATCH_TEXTS] for start in range(0, len(texts), BATCH_TEXTS)]
    results = pool.map(partial(_encode_from_folder, folder), batches)
    return [tokens for batch in results for tokens in batch]


def _encode_from_folder(folder: Path, texts: list[str]) -> list[list[int]]:
    return encode_texts(_saved_tokenizer(folder), texts)


@lru_cache(maxsize=1)
def _saved_tokenizer(folder: Path) -> "PreTrainedTokenizerFast":
    from transformers import PreTrainedTokenizerFast

    tokenizer: PreTrainedTokenizerFast = PreTrainedTokenizerFast.from_pretrained(str(folder))
    return tokenizer
