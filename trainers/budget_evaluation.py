"""Mean cross-entropy of several budgets over a data set, inside a trainer."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .random_state import RandomState

# (model, batch) -> summed loss of each budget, and the number of predicted tokens.
Measure = Callable[[Any, dict[str, Any]], tuple[Sequence[Tensor], Tensor | int]]


@torch.no_grad()
def evaluate_budgets(
    trainer: Any, budgets: Sequence[Any], eval_dataset: Any, prefix: str, measure: Measure
) -> dict[str, float]:
    """Measure, log and announce the loss of each budget.

    A loss is the cross-entropy over all predicted tokens of all ranks, not a mean of batch means.
    The random states are left as they were, so training does not depend on evaluations.

    Args:
        trainer: a `HookedTrainer`.
        budgets: what ``measure`` runs, in its order.
        eval_dataset: rows; None takes those of the trainer.
        prefix: of the names, such as ``eval``.
        measure: runs one batch.

    Returns:
        ``PREFIX_loss``, the mean over the budgets, and ``PREFIX_loss/BUDGET`` of each.
    """
    was_training, model = trainer.model.training, trainer.model.eval()
    random_state = RandomState.capture()
    sums = torch.zeros(len(budgets) + 1, device=trainer.args.device, dtype=torch.float32)
    for padded in trainer.get_eval_dataloader(eval_dataset):
        batch = without_repeated_rows(trainer.accelerator, padded)
        if batch is None:
            continue
        with trainer.accelerator.autocast():
            totals, tokens = measure(model, trainer._prepare_inputs(batch))
        counted = torch.as_tensor(tokens, device=sums.device)
        sums += torch.stack([*(total.float() for total in totals), counted.float()])
    model.train(was_training)
    random_state.restore()
    *totals, count = trainer.accelerator.reduce(sums, reduction="sum").tolist()
    losses = [total / max(1.0, count) for total in totals]
    named = zip(budgets, losses, strict=True)
    metrics = {f"{prefix}_loss": sum(losses) / len(losses)}
    metrics.update({f"{prefix}_loss/{budget}": loss for budget, loss in named})
    trainer.log(metrics)
    trainer.control = trainer.callback_handler.on_evaluate(
        trainer.args, trainer.state, trainer.control, metrics
    )
    return metrics


def without_repeated_rows(accelerator: Any, batch: dict[str, Any]) -> dict[str, Any] | None:
    """Return the rows of a batch that no other rank and no earlier batch has; None for none.

    accelerate gives every rank as many rows in the last round by repeating the first ones.

    Args:
        accelerator: that has prepared the loader, in the middle of an iteration.
        batch: name -> tensor, a row first.
    """
    state = accelerator.gradient_state
    if accelerator.num_processes == 1 or not state.end_of_dataloader or state.remainder <= 0:
        return batch
    rows = len(next(iter(batch.values())))
    kept = min(rows, max(0, state.remainder - accelerator.process_index * rows))
    return {name: value[:kept] for name, value in batch.items()} if kept else None
