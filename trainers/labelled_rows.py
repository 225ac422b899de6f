"""Rows of token ids with labels: addressed by position, padded into batches."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .losses.masked_lm import IGNORED_LABEL
from .stream_sampler import PositionedRows


class LabelledRows(PositionedRows):
    """Rows with `input_ids` and `labels`: one label for the row, or one per token.

    `position = epoch * len(rows) + row`, as for the packed rows of masked LM, so that a
    `PositionSampler` gives the order.
    """

    def __getitem__(self, position: int) -> dict[str, Any]:
        """Return the row `position % len(rows)`.

        Raises:
            IndexError: If the position is negative.
        """
        row = self.row_at(position)
        return {"input_ids": row["input_ids"], "labels": row["labels"]}


class LabelledCollator:
    """Pads rows to the longest of the batch.

    Args:
        pad_token_id: Fills `input_ids`; labels of tokens are filled with -100.
    """

    def __init__(self, pad_token_id: int) -> None:
        self.pad_token_id = pad_token_id

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """Return `input_ids` and `attention_mask` (batch, seq), and `labels`.

        `labels` is (batch,) for labels of rows and (batch, seq) for labels of tokens.
        """
        longest = max(len(row["input_ids"]) for row in rows)
        ids = torch.full((len(rows), longest), self.pad_token_id)
        mask = torch.zeros(len(rows), longest, dtype=torch.long)
        of_tokens = isinstance(rows[0]["labels"], Sequence)
        labels = torch.full(ids.shape if of_tokens else ids.shape[:1], IGNORED_LABEL)
        for index, row in enumerate(rows):
            length = len(row["input_ids"])
            ids[index, :length] = torch.as_tensor(row["input_ids"])
            mask[index, :length] = 1
            where: Any = (index, slice(length)) if of_tokens else index
            labels[where] = torch.as_tensor(row["labels"])
        return {"input_ids": ids, "attention_mask": mask, "labels": labels}
