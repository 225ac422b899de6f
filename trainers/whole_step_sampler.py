"""A training order cut to whole optimizer steps."""

from collections.abc import Iterator
from itertools import islice
from typing import Protocol

from torch.utils.data import Sampler


class TrainSampler(Protocol):
    """What the trainer needs of a sampler: positions of one epoch in a fixed order.

    The order must be a pure function of the sampler's seed and the epoch.
    """

    def __iter__(self) -> Iterator[int]:
        """Yield the positions of the current epoch."""
        ...

    def __len__(self) -> int:
        """Return the number of positions of an epoch."""
        ...

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch, counted from 0."""
        ...


class WholeStepSampler(Sampler[int]):
    """Yields only as many positions as fill whole optimizer steps.

    Otherwise the last step of an epoch would hold fewer rows with one accumulation setting than
    with another, and with several processes `accelerate` would repeat rows to even them out: the
    totals would then depend on both. At most `rows_per_step - 1` rows sit out an epoch, others in
    the next one, as the order changes.

    Args:
        sampler: The full order.
        rows_per_step: Rows of one optimizer step over all micro-batches and ranks.

    Raises:
        ValueError: If the data do not fill one step.
    """

    def __init__(self, sampler: TrainSampler, rows_per_step: int) -> None:
        if len(sampler) < rows_per_step:
            raise ValueError(
                f"the training data have {len(sampler)} rows, one optimizer step takes "
                f"{rows_per_step}; give more data or lower the batch size or accumulation"
            )
        self.sampler = sampler
        self.rows_per_step = rows_per_step

    def __len__(self) -> int:
        """Return the number of positions, a multiple of `rows_per_step`."""
        return len(self.sampler) // self.rows_per_step * self.rows_per_step

    def __iter__(self) -> Iterator[int]:
        """Yield the positions of the current epoch."""
        return islice(iter(self.sampler), len(self))

    def set_epoch(self, epoch: int) -> None:
        """Pass the epoch on."""
        self.sampler.set_epoch(epoch)
