"""One integer names a training example: `position = epoch * len(rows) + row`.

Order, masks and resume depend on positions alone, never on the state of a random generator, on
workers, ranks or gradient accumulation.

    epoch e visits  e * N + permutation(seed, e)[i],  i = 0 ... N - 1
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from torch.utils.data import Dataset, Sampler

# Philox counters of the permutations start here; those of the masks start at 0 (same key space).
PERMUTATION_COUNTER = 1 << 192


class PackedRows(Protocol):
    """Rows by number: a `datasets.Dataset` or a list."""

    def __len__(self) -> int:
        """Return the number of rows."""
        ...

    def __getitem__(self, index: int, /) -> Mapping[str, Any]:
        """Return a row with `input_ids` and `document_ids`."""
        ...


class PositionedRows(Dataset[dict[str, Any]]):
    """Rows addressed by position; each example carries its position for the collator.

    It also keeps the epoch, because loaders differ in whom they tell: `accelerate` reaches the
    sampler of a plain loader, but only the data set of a loader that is both sharded and resumed
    in the middle of an epoch. `set_epoch` works on either.

    Args:
        rows: Rows with `input_ids` and `document_ids`.

    Raises:
        ValueError: If there is no row.
    """

    def __init__(self, rows: PackedRows | Sequence[Mapping[str, Any]]) -> None:
        """Wrap the rows; the epoch is 0."""
        if len(rows) == 0:
            raise ValueError("the data have 0 rows, at least 1 is needed; give more text")
        self.rows = rows
        self.epoch = 0

    def __len__(self) -> int:
        """Return the number of rows of one epoch."""
        return len(self.rows)

    def __getitem__(self, position: int) -> dict[str, Any]:
        """Return the row `position % len(rows)` and the position itself.

        Raises:
            IndexError: If the position is negative.
        """
        row = self.row_at(position)
        return {
            "input_ids": row["input_ids"],
            "document_ids": row["document_ids"],
            "position": int(position),
        }

    def row_at(self, position: int) -> Mapping[str, Any]:
        """Return the stored row `position % len(rows)`.

        Raises:
            IndexError: If the position is negative.
        """
        if position < 0:
            raise IndexError(f"position {position} is negative; positions start at 0")
        row: Mapping[str, Any] = self.rows[int(position) % len(self.rows)]
        return row

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that samplers of these rows visit.

        Raises:
            ValueError: If it is negative.
        """
        if epoch < 0:
            raise ValueError(f"epoch {epoch} is negative; epochs start at 0")
        self.epoch = int(epoch)


class PositionSampler(Sampler[int]):
    """Yields the positions of the current epoch of its rows, in the order of (seed, epoch).

    Args:
        rows: The rows; their epoch is the sampler's.
        seed: Seed of the order, at least 0.
        shuffle: False visits the rows in their stored order.

    Raises:
        ValueError: If the seed is negative.
    """

    def __init__(self, rows: PositionedRows, seed: int = 0, shuffle: bool = True) -> None:
        """Keep the rows; nothing is drawn yet."""
        if seed < 0:
            raise ValueError(f"seed {seed} is negative; give 0 or more")
        self.rows = rows
        self.seed = seed
        self.shuffle = shuffle

    def __len__(self) -> int:
        """Return the number of positions of an epoch."""
        return len(self.rows)

    def __iter__(self) -> Iterator[int]:
        """Yield the positions of the current epoch."""
        epoch, size = self.rows.epoch, len(self.rows)
        order = row_order(self.seed, epoch, size) if self.shuffle else range(size)
        return (epoch * size + int(row) for row in order)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch.

        Raises:
            ValueError: If it is negative.
        """
        self.rows.set_epoch(epoch)


def row_order(seed: int, epoch: int, size: int) -> list[int]:
    """Return the permutation of `range(size)` that belongs to (seed, epoch)."""
    key = np.array([seed, epoch], dtype=np.uint64)
    generator = np.random.Generator(np.random.Philox(counter=PERMUTATION_COUNTER, key=key))
    order: list[int] = generator.permutation(size).tolist()
    return order
