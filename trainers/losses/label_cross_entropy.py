"""Cross-entropy of class labels, of rows or of tokens."""

from torch import Tensor

from ..loss_term import LossSum, LossTerm
from .masked_lm import cross_entropy_sum


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
        return cross_entropy_sum(self.name, logits, labels)
