"""Masked language modelling loss (Devlin et al., 2019, section 3.1)."""

import torch.nn.functional as F
from torch import Tensor

from ..loss_term import LossSum, LossTerm

IGNORED_LABEL = -100


def token_losses(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the cross-entropy of each token, with gradient.

    Args:
        logits: `(num_labelled, vocab)`.
        labels: `(num_labelled,)` token ids; -100 gives a loss of 0.

    Returns:
        `(num_labelled,)` in fp32, in nats.

    Raises:
        ValueError: If the shapes do not fit.
    """
    if logits.dim() != 2 or logits.shape[:1] != labels.shape:
        raise ValueError(
            f"token_losses: logits {tuple(logits.shape)} and labels {tuple(labels.shape)} must be "
            "(num_labelled, vocab) and (num_labelled,)"
        )
    return F.cross_entropy(logits.float(), labels, ignore_index=IGNORED_LABEL, reduction="none")


def cross_entropy_sum(name: str, logits: Tensor, labels: Tensor) -> LossSum:
    """Sum the cross-entropy over the labels that are not -100, in fp32, and count them.

    Args:
        name: of the loss term, for the error.
        logits: `(..., classes)`.
        labels: Classes of the leading shape.

    Raises:
        ValueError: If the shapes do not fit.
    """
    if logits.shape[:-1] != labels.shape:
        raise ValueError(
            f"{name}: logits {tuple(logits.shape)} do not fit labels {tuple(labels.shape)}; "
            "labels must have the shape of logits without the last dimension"
        )
    total = F.cross_entropy(
        logits.float().flatten(0, -2),
        labels.flatten(),
        ignore_index=IGNORED_LABEL,
        reduction="sum",
    )
    return LossSum(total, labels.ne(IGNORED_LABEL).sum())


class MaskedLmLoss(LossTerm):
    """Cross-entropy summed over the labelled positions.

    Formula: `sum_{t: y_t != -100} -log softmax(z_t)[y_t]`, computed in fp32.

    Source: BERT, https://arxiv.org/abs/1810.04805.
    """

    name = "masked_lm"
    unit = "token"

    def forward(self, logits: Tensor, labels: Tensor) -> LossSum:
        """Sum the cross-entropy.

        Args:
            logits: `(..., vocab)`, any leading shape: `(num_labelled, vocab)` where the head ran
                on labelled positions only, or `(batch, seq, vocab)`.
            labels: Token ids of the leading shape, -100 where nothing is predicted.

        Returns:
            The sum and the number of labelled positions.

        Raises:
            ValueError: If the shapes do not fit.
        """
        return cross_entropy_sum(self.name, logits, labels)
