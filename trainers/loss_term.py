"""Loss terms: small modules that return a sum and a count, never a mean.

A mean over one micro-batch cannot be combined with the next one: micro-batches hold different
numbers of labelled tokens. So a term returns the sum over its units and how many there were, and
the trainer divides once by the units of the whole accumulation window over all ranks.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn

from .schedules import Schedule

Unit = Literal["token", "sequence", "step"]
UNITS: tuple[str, ...] = get_args(Unit)


class LossSum(NamedTuple):
    """What a loss term returns for one micro-batch.

    Attributes:
        total: Scalar tensor, the sum of the loss over the units.
        count: Number of units summed, as an int or a scalar integer tensor (a tensor spares a
            device synchronisation where the count was computed on the device).
    """

    total: Tensor
    count: Tensor | int  # type: ignore[assignment]  # hides tuple.count, which nobody needs


class LossTerm(nn.Module):
    """Base class of all loss terms: pure tensors in, `LossSum` out.

    Attributes:
        name: Key under which the term is weighted and logged.
        unit: What the sum runs over: `token` (labelled positions), `sequence` (rows) or `step`
            (one per micro-batch, for terms that are already a mean over the micro-batch).
        batch_coupled: True where the value of one row depends on the other rows of the
            micro-batch, so that the total does depend on the micro-batch size.
    """

    name: ClassVar[str]
    unit: ClassVar[Unit]
    batch_coupled: ClassVar[bool] = False

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Check that the subclass declares its name and a known unit."""
        super().__init_subclass__(**kwargs)
        declared = {key for base in cls.__mro__ for key in base.__dict__}
        if "name" not in declared or "unit" not in declared or cls.unit not in UNITS:
            raise TypeError(
                f"{cls.__name__} must set the class attributes name (a string) and "
                f"unit (one of {', '.join(UNITS)})"
            )


@dataclass(frozen=True)
class WeightedTerm:
    """A loss term and the schedule of its weight.

    Args:
        term: The loss term.
        weight: `weight(step, total_steps) -> float`, see `schedules`.
    """

    term: LossTerm
    weight: Schedule


def mean_over_models(losses: Sequence[LossSum]) -> LossSum:
    """Average one term over several sub-models that saw the same units.

    The total is `(1/M) * sum_m total_m`. The count stays that of one sub-model: the units (say,
    labelled tokens) are the same ones each time, so they are counted once.

    Args:
        losses: One `LossSum` per sub-model, all over the same units.

    Raises:
        ValueError: If `losses` is empty.
    """
    if not losses:
        raise ValueError("mean_over_models got no losses: pass at least one sub-model")
    return weighted_over_models(losses, [1 / len(losses)] * len(losses))


def weighted_over_models(losses: Sequence[LossSum], shares: Sequence[float]) -> LossSum:
    """Average one term over several sub-models with a share for each: `sum_m share_m * total_m`.

    Args:
        losses: One `LossSum` per sub-model, all over the same units.
        shares: Shares that sum to 1, in the same order.

    Raises:
        ValueError: If there are not as many shares as losses, or none.
    """
    if not losses or len(losses) != len(shares):
        raise ValueError(
            f"got {len(losses)} losses and {len(shares)} shares; give one or more losses and a "
            "share for each"
        )
    weights = torch.tensor(shares, dtype=torch.float32, device=losses[0].total.device)
    total = (torch.stack([loss.total for loss in losses]) * weights).sum()
    return LossSum(total, losses[0].count)


def shares_of_models(count: int, largest: float | None) -> list[float]:
    """Return the share of each sub-model of a step, the largest first.

    Args:
        count: Sub-models of the step.
        largest: Share of the largest one in (0, 1), the others divide the rest evenly; None gives
            all the same. A sub-model alone has share 1.
    """
    if largest is None or count == 1:
        return [1 / count] * count
    return [largest, *[(1 - largest) / (count - 1)] * (count - 1)]
