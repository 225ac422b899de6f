"""Whole optimizer steps, whatever the number of rows."""

import pytest
from nestling.trainers.whole_step_sampler import WholeStepSampler
from tiny_masked_lm_run import TinySampler


def test_the_tail_is_cut_and_differs_by_epoch() -> None:
    """27 rows at 8 a step: 24 positions, other rows sit out the next epoch."""
    sampler = WholeStepSampler(TinySampler(27), 8)
    epochs = []
    for epoch in range(2):
        sampler.set_epoch(epoch)
        positions = list(sampler)
        assert len(positions) == len(sampler) == 24
        assert all(epoch * 27 <= position < (epoch + 1) * 27 for position in positions)
        epochs.append({position % 27 for position in positions})
    assert epochs[0] != epochs[1]


def test_too_few_rows() -> None:
    """The error gives both numbers."""
    with pytest.raises(ValueError, match="have 7 rows, one optimizer step takes 8"):
        WholeStepSampler(TinySampler(7), 8)
