"""Positions: the order of (seed, epoch), whatever loader, rank or resume reads them."""

import pytest
from accelerate import skip_first_batches
from accelerate.data_loader import prepare_data_loader
from nestling.trainers.stream_sampler import PositionedRows, PositionSampler, row_order
from torch.utils.data import DataLoader

ROWS = [{"input_ids": [number], "document_ids": [1]} for number in range(24)]


def make_sampler(seed: int = 5, **options) -> PositionSampler:
    return PositionSampler(PositionedRows(ROWS), seed, **options)


def epoch_positions(sampler: PositionSampler, epoch: int) -> list[int]:
    sampler.set_epoch(epoch)
    return list(sampler)


def make_loader(batch_size: int = 2) -> DataLoader:
    sampler = make_sampler()
    return DataLoader(
        sampler.rows,
        batch_size=batch_size,
        sampler=sampler,
        collate_fn=lambda examples: [example["position"] for example in examples],
    )


def test_an_epoch_visits_every_row_once() -> None:
    sampler = make_sampler()
    for epoch in (0, 1, 7):
        positions = epoch_positions(sampler, epoch)
        assert sorted(positions) == list(range(24 * epoch, 24 * epoch + 24))
        assert [position - 24 * epoch for position in positions] == row_order(5, epoch, 24)


def test_order_is_a_function_of_seed_and_epoch() -> None:
    orders = {tuple(row_order(seed, epoch, 24)) for seed in range(4) for epoch in range(4)}
    assert len(orders) == 16
    # A fixed value: checkpoints of other days and machines rely on it.
    assert row_order(0, 0, 8) == row_order(0, 0, 8) != list(range(8))


def test_stored_order() -> None:
    assert epoch_positions(make_sampler(shuffle=False), 2) == list(range(48, 72))


def test_rows_are_addressed_by_position() -> None:
    rows = PositionedRows(ROWS)
    assert len(rows) == 24
    assert rows[24 * 3 + 7] == {"input_ids": [7], "document_ids": [1], "position": 79}
    with pytest.raises(IndexError, match="negative"):
        rows[-1]


def test_bad_values() -> None:
    with pytest.raises(ValueError, match="0 rows"):
        PositionedRows([])
    with pytest.raises(ValueError, match="seed -1"):
        make_sampler(seed=-1)
    with pytest.raises(ValueError, match="epoch -1"):
        make_sampler().set_epoch(-1)


def read(loader: DataLoader, epoch: int) -> list[list[int]]:
    """Read an epoch as the Trainer does: tell the loader the epoch, then iterate."""
    loader.set_epoch(epoch)
    return list(loader)


def prepared(loader: DataLoader, ranks: int = 1, rank: int = 0) -> DataLoader:
    return prepare_data_loader(loader, num_processes=ranks, process_index=rank)


@pytest.mark.parametrize("epoch", [0, 1, 4])
def test_accelerate_loader(epoch: int) -> None:
    batches = read(prepared(make_loader()), epoch)
    assert sum(batches, []) == epoch_positions(make_sampler(), epoch)


@pytest.mark.parametrize("epoch", [0, 1, 4])
def test_two_processes_share_a_batch(epoch: int) -> None:
    wanted = read(prepared(make_loader(batch_size=4)), epoch)
    ranks = [read(prepared(make_loader(), 2, rank), epoch) for rank in (0, 1)]
    assert [first + second for first, second in zip(*ranks, strict=True)] == wanted


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("epoch", [0, 1, 4])
def test_resume_in_the_middle_of_an_epoch(epoch: int, ranks: int) -> None:
    for rank in range(ranks):
        wanted = read(prepared(make_loader(), ranks, rank), epoch)
        loader = prepared(make_loader(), ranks, rank)
        assert read(skip_first_batches(loader, 3), epoch) == wanted[3:]
        following = read(prepared(make_loader(), ranks, rank), epoch + 1)
        assert read(loader, epoch + 1) == following


def test_workers_do_not_change_the_order() -> None:
    sampler = make_sampler()
    sampler.set_epoch(1)
    loader = DataLoader(sampler.rows, batch_size=4, sampler=sampler, collate_fn=list, num_workers=2)
    positions = [example["position"] for batch in loader for example in batch]
    assert positions == epoch_positions(make_sampler(), 1)
