"""Sums over ranks count every row once, and an evaluation leaves the random states alone."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from nestling.trainers.budget_evaluation import evaluate_budgets, without_repeated_rows


def rank(index: int, *, remainder: int, is_last: bool = True, processes: int = 2) -> Any:
    """What accelerate says in the middle of an iteration."""
    state = SimpleNamespace(end_of_dataloader=is_last, remainder=remainder)
    return SimpleNamespace(
        gradient_state=state, num_processes=processes, process_index=index
    )


@pytest.mark.parametrize(
    ("remainder", "kept"), [(8, [4, 4]), (0, [4, 4]), (6, [4, 2]), (3, [3, 0]), (4, [4, 0])]
)
def test_rows_of_the_last_round_count_once(remainder: int, kept: list[int]) -> None:
    batch = {"input_ids": torch.arange(8).view(4, 2), "labels": torch.arange(4)}
    for index, count in enumerate(kept):
        own = without_repeated_rows(rank(index, remainder=remainder), batch)
        assert (own is None) == (count == 0)
        if own is not None:
            assert torch.equal(own["input_ids"], batch["input_ids"][:count])
            assert torch.equal(own["labels"], batch["labels"][:count])


def test_other_rounds_and_single_processes_are_whole() -> None:
    batch = {"labels": torch.arange(4)}
    for accelerator in (
        rank(1, remainder=3, is_last=False), rank(0, remainder=3, processes=1)
    ):  # fmt: skip
        assert without_repeated_rows(accelerator, batch) is batch


def test_an_evaluation_draws_nothing_from_the_run() -> None:
    """A loader draws its seed from the global generator; training must not notice."""
    rows = [{"labels": torch.tensor(index)} for index in range(4)]
    trainer = SimpleNamespace(
        model=torch.nn.Linear(1, 1),
        args=SimpleNamespace(device=torch.device("cpu")),
        accelerator=SimpleNamespace(
            num_processes=1, autocast=lambda: torch.autocast("cpu", enabled=False),
            gradient_state=None, reduce=lambda sums, reduction: sums,
        ),
        get_eval_dataloader=lambda rows: torch.utils.data.DataLoader(rows, batch_size=2),
        _prepare_inputs=lambda batch: batch,
        log=lambda metrics: None,
        callback_handler=SimpleNamespace(on_evaluate=lambda *given: None),
        state=None,
        control=None,
    )  # fmt: skip
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    metrics = evaluate_budgets(
        trainer, ["all"], rows, "eval", lambda model, batch: ([batch["labels"].sum()], 2)
    )
    assert torch.equal(torch.rand(3), expected)
    assert metrics == {"eval_loss": 1.5, "eval_loss/all": 1.5}
