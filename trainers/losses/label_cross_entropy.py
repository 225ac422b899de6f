"""Cross-entropy of class labels, of rows or of tokens."""

import torch.nn.functional as F
from torch import Tensor

from ..loss_term import LossSum, LossTerm
from .masked_lm import IGNORED_LABEL


class LabelCrossEntropyLoss(LossTerm):
    """Cross-entropy summed over the labels that are not -100.

    Formula: `sum_{i: y_i != -100} -log softmax(z_i)[y_i]`, computed in fp32. A row of sequence
    classification counts as one label, a row of token classification as its labelled tokens, so
    that the division by the labels of the whole accumulation window is right for both.

    Source: BERT, https://arxiv.org/abs/1810.04805, section 4.
    """

    name = "label_cross_entropy"
    unit = "token"

    def forward(self, logits: Tensor, labels: Tensor) -> LossSum:
        """Sum the cross-entropy.

        Args:
            logits: `(..., classes)`: `(batch, classes)`, `(batch, seq, classes)`, or the labelled
                positions alone.
            labels: Classes of the leading shape, -100 where there is none.

        Returns:
            The sum and the number of labels.

        Raises:
            ValueError: If the shapes do not fit.
        """
        if logits.shape[:-1] != labels.shape:
            raise ValueError(
                f"label_cross_entropy: logits {tuple(logits.shape)} do not fit labels "
                f"{tuple(labels.shape)}; labels must have the shape of logits without the last "
                "dimension"
            )
        total = F.cross_entropy(
            logits.float().flatten(0, -2),
            labels.flatten(),
            ignore_index=IGNORED_LABEL,
            reduction="sum",
        )
        return LossSum(total, labels.ne(IGNORED_LABEL).sum())
