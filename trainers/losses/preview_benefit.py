"""Trains the router to foresee how much a token gains from the delta."""

import math

import torch.nn.functional as F
from torch import Tensor

from ..loss_term import LossSum, LossTerm


class PreviewBenefitLoss(LossTerm):
    """Regression of the router score on the benefit, plus a classifier of the selection.

    With scores s_t of labelled tokens, `u_t = sg(CE_base,t - CE_full,t)` the nats that the delta
    saves, m_t the selection of the step and tau the threshold used at inference:
    `sum_t Huber(s_t - u_t) + w * BCE(sigmoid(s_t - tau), m_t)`, in fp32.
    The first part ranks tokens by what they gain. The second puts the selected ones above the
    threshold, so that inference can compare with tau and needs no top-k over the batch.

    Only the scores get a gradient.

    Args:
        selection_weight: w >= 0.
        huber_delta: error in nats above which the regression is linear, > 0. Benefits have heavy
            tails: a few tokens gain or lose many nats.

    Raises:
        ValueError: If an argument is out of range.

    Source: Mixture-of-Depths, Raposo et al., https://arxiv.org/abs/2404.02258, trains a classifier
    of its top-k; Huber (1964), https://doi.org/10.1214/aoms/1177703732.
    """

    name = "preview_benefit"
    unit = "token"

    def __init__(self, selection_weight: float = 0.1, huber_delta: float = 1.0) -> None:
        super().__init__()
        if not math.isfinite(selection_weight) or selection_weight < 0:
            raise ValueError(
                f"selection_weight is {selection_weight}, it must be a finite number from 0 up"
            )
        if not math.isfinite(huber_delta) or huber_delta <= 0:
            raise ValueError(
                f"huber_delta is {huber_delta}, it must be a finite number above 0 (nats)"
            )
        self.selection_weight = selection_weight
        self.huber_delta = huber_delta

    def forward(
        self,
        scores: Tensor,
        base_losses: Tensor,
        full_losses: Tensor,
        selected: Tensor,
        threshold: Tensor | float = 0.0,
    ) -> LossSum:
        """Sum over the labelled tokens.

        Args:
            scores: `(num_labelled,)` router scores.
            base_losses: `(num_labelled,)` cross-entropy without the delta; detached here.
            full_losses: `(num_labelled,)` cross-entropy with it; detached here.
            selected: `(num_labelled,)` boolean, the tokens that the step gave the delta.
            threshold: scalar tau; no gradient reaches it.

        Returns:
            The sum and `num_labelled`.

        Raises:
            ValueError: If the shapes differ.
        """
        if scores.dim() != 1 or any(
            tensor.shape != scores.shape for tensor in (base_losses, full_losses, selected)
        ):
            raise ValueError(
                f"preview_benefit: scores {tuple(scores.shape)}, base losses "
                f"{tuple(base_losses.shape)}, full losses {tuple(full_losses.shape)} and selected "
                f"{tuple(selected.shape)} must all be (num_labelled,)"
            )
        tau = threshold.detach() if isinstance(threshold, Tensor) else threshold
        scores = scores.float()
        benefit = base_losses.detach().float() - full_losses.detach().float()
        regression = F.huber_loss(scores, benefit, reduction="sum", delta=self.huber_delta)
        selection = F.binary_cross_entropy_with_logits(
            scores - tau, selected.float(), reduction="sum"
        )
        return LossSum(regression + self.selection_weight * selection, len(scores))

    def extra_repr(self) -> str:
        """Show the arguments in `repr`."""
        return f"selection_weight={self.selection_weight}, huber_delta={self.huber_delta}"
