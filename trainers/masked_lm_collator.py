"""Masked language modelling batches whose masks depend on (seed, position) only.

Per row, of its n real tokens that are not special, k = max(1, round(p n)) are predicted: 80 % of
them become the mask token, 10 % a random token, 10 % stay (BERT, arXiv 1810.04805). k is fixed by
n, so the count does not vary from draw to draw, and the same row at the same position gets the
same mask in any batch, on any rank, after any resume.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

IGNORED = -100  # label of tokens that are not predicted
MASK_SHARE = 0.8
RANDOM_SHARE = 0.1


class MaskedLMCollator:
    """Pads rows and draws their masks.

    Args:
        mask_token_id: Id of the mask token.
        pad_token_id: Id that fills rows.
        vocab_size: Random replacements are drawn from the ids below it that are not special.
        special_token_ids: Ids that are never predicted and never drawn.
        mlm_probability: Share p of the tokens that are predicted, in (0, 1).
        seed: Seed of the masks. Use one fixed seed for evaluation, so that all budgets and runs
            predict the same tokens.
        pad_to_length: Pad every batch to this length (static shapes); None pads to the longest
            row of the batch.

    Raises:
        ValueError: If a setting is outside its range.
    """

    def __init__(
        self,
        *,
        mask_token_id: int,
        pad_token_id: int,
        vocab_size: int,
        special_token_ids: Iterable[int],
        mlm_probability: float = 0.3,
        seed: int = 0,
        pad_to_length: int | None = None,
    ) -> None:
        """Check the settings and list the tokens that may be drawn."""
        if not 0.0 < mlm_probability < 1.0:
            raise ValueError(
                f"mlm_probability={mlm_probability} is outside (0, 1); 0.3 is the default"
            )
        if seed < 0:
            raise ValueError(f"seed {seed} is negative; give 0 or more")
        special = np.array(
            sorted({*special_token_ids, mask_token_id, pad_token_id}), dtype=np.int64
        )
        self.special_token_ids = special
        self.drawn_token_ids = np.setdiff1d(np.arange(vocab_size), special)
        if self.drawn_token_ids.size == 0:
            raise ValueError(f"vocab_size={vocab_size} leaves no token beside the special ones")
        self.mask_token_id = mask_token_id
        self.pad_token_id = pad_token_id
        self.vocab_size = vocab_size
        self.mlm_probability = mlm_probability
        self.seed = seed
        self.pad_to_length = pad_to_length

    @classmethod
    def from_tokenizer(
        cls,
        tokenizer: "PreTrainedTokenizerBase",
        *,
        mlm_probability: float = 0.3,
        seed: int = 0,
        pad_to_length: int | None = None,
    ) -> "MaskedLMCollator":
        """Take the token ids from a tokenizer.

        Raises:
            ValueError: If it has no mask or pad token.
        """
        if tokenizer.mask_token_id is None or tokenizer.pad_token_id is None:
            raise ValueError("the tokenizer has no mask or no pad token; add them or take another")
        return cls(
            mask_token_id=tokenizer.mask_token_id,
            pad_token_id=tokenizer.pad_token_id,
            vocab_size=len(tokenizer),
            special_token_ids=tokenizer.all_special_ids,
            mlm_probability=mlm_probability,
            seed=seed,
            pad_to_length=pad_to_length,
        )

    def __call__(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """Make a batch.

        Args:
            examples: Rows with `input_ids`, `document_ids` (1, 2, 3, ...) and `position`.

        Returns:
            `input_ids` (batch, length) with masked tokens; `attention_mask` (batch, length), the
            document numbers, 0 = padding; `labels` (batch, length), -100 = not predicted.

        Raises:
            ValueError: If an example has no position, or is longer than `pad_to_length`.
        """
        longest = max(len(example["input_ids"]) for example in examples)
        length = self.pad_to_length or longest
        if longest > length:
            raise ValueError(
                f"a row has {longest} tokens, but pad_to_length is {length}; pack rows of at most "
                f"{length} tokens or raise pad_to_length"
            )
        shape = (len(examples), length)
        input_ids = np.full(shape, self.pad_token_id, dtype=np.int64)
        attention_mask = np.zeros(shape, dtype=np.int64)
        labels = np.full(shape, IGNORED, dtype=np.int64)
        for index, example in enumerate(examples):
            if "position" not in example:
                raise ValueError("an example has no 'position'; wrap the rows in PositionedRows")
            size = len(example["input_ids"])
            ids = np.asarray(example["input_ids"], dtype=np.int64)
            input_ids[index, :size], labels[index, :size] = self.mask_row(ids, example["position"])
            attention_mask[index, :size] = example["document_ids"]
        return {
            "input_ids": torch.from_numpy(input_ids),
            "attention_mask": torch.from_numpy(attention_mask),
            "labels": torch.from_numpy(labels),
        }

    def mask_row(
        self, input_ids: NDArray[np.int64], position: int
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Draw the mask of one row.

        Args:
            input_ids: (length,) tokens without padding.
            position: Position of the row in the training stream.

        Returns:
            (length,) masked tokens and (length,) labels. A row of special tokens has no labels.
        """
        masked, labels = input_ids.copy(), np.full_like(input_ids, IGNORED)
        candidates = np.flatnonzero(~np.isin(input_ids, self.special_token_ids))
        if candidates.size == 0:
            return masked, labels
        count = max(1, round(self.mlm_probability * candidates.size))
        key = np.array([self.seed, position], dtype=np.uint64)
        generator = np.random.Generator(np.random.Philox(key=key))
        chosen = generator.permutation(candidates)[:count]
        labels[chosen] = input_ids[chosen]
        fate = generator.random(count)
        drawn = generator.choice(self.drawn_token_ids, count)
        is_random = (fate >= MASK_SHARE) & (fate < MASK_SHARE + RANDOM_SHARE)
        masked[chosen[fate < MASK_SHARE]] = self.mask_token_id
        masked[chosen[is_random]] = drawn[is_random]
        return masked, labels
