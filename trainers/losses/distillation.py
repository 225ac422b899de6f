"""Knowledge distillation on logits (Hinton et al., 2015)."""

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..loss_term import LossSum, LossTerm


class SoftTargets(NamedTuple):
    """A teacher's softened distribution.

    Attributes:
        probabilities: `(num_labelled, vocab)` in fp32.
        log_probabilities: their logarithm.
    """

    probabilities: Tensor
    log_probabilities: Tensor


# Rates at which a model drops activations in training.
DROPOUTS = ("embedding_dropout", "attention_dropout", "mlp_dropout", "classifier_dropout")


def require_quiet_teacher(config: Any) -> None:
    """Check that a training pass may serve as teacher: dropout would make its targets noise.

    Args:
        config: configuration of the model that teaches its own smaller budgets.

    Raises:
        ValueError: If a dropout rate is not 0.
    """
    active = {name: rate for name in DROPOUTS if (rate := getattr(config, name, None))}
    if active:
        rates = " and ".join(f"{name} is {rate}" for name, rate in active.items())
        raise ValueError(
            f"{rates}, but in-place distillation takes its teacher from the training pass; set "
            "them to 0 in the configuration, use another teacher, or drop the distillation term"
        )


class DistillationLoss(LossTerm):
    """KL divergence from the student to the softened teacher, summed over labelled tokens.

    Formula: `tau^2 * sum_t KL(softmax(z_teacher_t / tau) || softmax(z_student_t / tau))` in fp32.
    The factor `tau^2` keeps the size of the gradient independent of the temperature. The teacher
    is detached here, so no caller can train it by accident.

    Args:
        temperature: `tau` > 0.

    Raises:
        ValueError: If the temperature is not a positive finite number.

    Source: Hinton, Vinyals, Dean, https://arxiv.org/abs/1503.02531, section 2.
    """

    name = "distillation"
    unit = "token"

    def __init__(self, temperature: float = 2.0) -> None:
        super().__init__()
        if not math.isfinite(temperature) or temperature <= 0:
            raise ValueError(
                f"distillation temperature is {temperature}, it must be a finite number above 0; "
                "common values are 1 to 4"
            )
        self.temperature = temperature

    def forward(self, student_logits: Tensor, teacher_logits: Tensor) -> LossSum:
        """Sum the divergence over the rows.

        Args:
            student_logits: `(num_labelled, vocab)`.
            teacher_logits: `(num_labelled, vocab)`, the same positions in the same order.

        Returns:
            The sum and `num_labelled`.

        Raises:
            ValueError: If the shapes differ.
        """
        if student_logits.shape != teacher_logits.shape or student_logits.dim() != 2:
            raise ValueError(
                f"distillation: student logits {tuple(student_logits.shape)} and teacher logits "
                f"{tuple(teacher_logits.shape)} must have one shape (num_labelled, vocab)"
            )
        return self.against(student_logits, self.soften(teacher_logits))

    def soften(self, teacher_logits: Tensor) -> SoftTargets:
        """Return the teacher's distribution, to be used for several students of a step."""
        with torch.no_grad():
            log_probabilities = F.log_softmax(teacher_logits.float() / self.temperature, dim=-1)
            return SoftTargets(log_probabilities.exp(), log_probabilities)

    def against(self, student_logits: Tensor, targets: SoftTargets) -> LossSum:
        """Sum the divergence of one student from softened targets.

        The logarithms are subtracted before summing: cross-entropy minus entropy would cancel.
        """
        student = F.log_softmax(student_logits.float() / self.temperature, dim=-1)
        divergence = (targets.probabilities * (targets.log_probabilities - student)).sum()
        return LossSum(self.temperature**2 * divergence, student_logits.shape[0])

    def extra_repr(self) -> str:
        """Show the temperature in `repr`."""
        return f"temperature={self.temperature}"
