"""Monotone upgrade loss: a larger budget must not do worse on any token."""

import math

import torch.nn.functional as F
from torch import Tensor

from ..loss_term import LossSum, LossTerm
from .masked_lm import IGNORED_LABEL, token_losses


class MonotoneUpgradeLoss(LossTerm):
    """Hinge on the tokens where the larger of two nested budgets is worse than the smaller.

    Formula: `sum_t relu(CE_b+,t - sg(CE_b,t) + margin)` over labelled tokens, with the true labels,
    in fp32. The smaller budget is detached here: the only way to lower the loss is to make the
    larger budget better. Detaching the larger one instead would make the smaller one worse.

    This is a pressure during training, not a guarantee; that is given on a calibration set when a
    budget is mapped to the best one it contains.

    Args:
        margin: by how many nats the larger budget should beat the smaller, >= 0.

    Raises:
        ValueError: If the margin is negative or not finite.

    Source: the monotonic upgrade guarantee (MUG) of Delta-Matryoshka++, with the gradient turned
    to the larger budget and argmax labels replaced by the true ones.
    """

    name = "monotone_upgrade"
    unit = "token"

    def __init__(self, margin: float = 0.0) -> None:
        super().__init__()
        if not math.isfinite(margin) or margin < 0:
            raise ValueError(
                f"monotone_upgrade margin is {margin}, it must be a finite number from 0 up (nats)"
            )
        self.margin = margin

    def forward(self, larger_logits: Tensor, smaller_losses: Tensor, labels: Tensor) -> LossSum:
        """Sum the hinge over the labelled tokens.

        Args:
            larger_logits: `(num_labelled, vocab)` of the larger budget.
            smaller_losses: `(num_labelled,)` cross-entropy of the smaller budget per token, from
                `token_losses`; detached here.
            labels: `(num_labelled,)` token ids; -100 is left out.

        Returns:
            The sum and the number of labels that are not -100.

        Raises:
            ValueError: If the shapes do not fit.
        """
        if smaller_losses.shape != labels.shape:
            raise ValueError(
                f"monotone_upgrade: smaller losses {tuple(smaller_losses.shape)} and labels "
                f"{tuple(labels.shape)} must both be (num_labelled,); token_losses turns logits "
                "into losses"
            )
        is_labelled = labels.ne(IGNORED_LABEL)
        larger_losses = token_losses(larger_logits, labels)
        violation = F.relu(larger_losses - smaller_losses.detach().float() + self.margin)
        return LossSum((violation * is_labelled).sum(), is_labelled.sum())

    def extra_repr(self) -> str:
        """Show the margin in `repr`."""
        return f"margin={self.margin}"
