"""Rows with labels: positions and padding."""

import pytest
import torch
from nestling.trainers.labelled_rows import LabelledCollator, LabelledRows
from nestling.trainers.stream_sampler import PositionSampler

TOKENS = [
    {"input_ids": [2, 7, 3], "labels": [-100, 1, -100]},
    {"input_ids": [2, 3], "labels": [0, -100]},
]


def test_positions_wrap_around_and_carry_labels() -> None:
    rows = LabelledRows(TOKENS)
    assert rows[3] == TOKENS[1]
    order = PositionSampler(rows, seed=0)
    order.set_epoch(2)
    assert sorted(order) == [4, 5]
    with pytest.raises(IndexError, match="-1 is negative"):
        rows[-1]


def test_labels_of_tokens_are_padded_with_the_ids() -> None:
    batch = LabelledCollator(9)(TOKENS)
    assert batch["input_ids"].tolist() == [[2, 7, 3], [2, 3, 9]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 1, 0]]
    assert batch["labels"].tolist() == [[-100, 1, -100], [0, -100, -100]]


def test_labels_of_rows_stay_one_a_row() -> None:
    batch = LabelledCollator(0)([{"input_ids": [5], "labels": 1}, {"input_ids": [6], "labels": 0}])
    assert batch["labels"].tolist() == [1, 0] and batch["labels"].dtype == torch.long
