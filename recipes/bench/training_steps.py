"""One training step as an action to time: forward, loss and backward, without the optimizer.

The optimizer is left out because it costs the same whatever the step computed.
"""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from ...configuration.delta_budget import DeltaBudget
from ...modeling.delta_encoder_heads import DeltaEncoderForMaskedLM
from ...trainers.loss_term import mean_over_models
from ...trainers.losses.distillation import DistillationLoss
from ...trainers.losses.masked_lm import MaskedLmLoss

Batch = dict[str, Tensor]


def precision(bf16: bool) -> AbstractContextManager[Any]:
    """Return the autocast context of a step on the CPU."""
    return torch.autocast("cpu", dtype=torch.bfloat16) if bf16 else nullcontext()


def full_model_step(model: DeltaEncoderForMaskedLM, batch: Batch, bf16: bool) -> float:
    """Train the whole model only; returns the loss."""
    model.zero_grad(set_to_none=True)
    with precision(bf16):
        loss = model(**batch).loss
    loss.backward()
    return float(loss.detach())


def elastic_step(
    model: DeltaEncoderForMaskedLM, batch: Batch, budgets: Sequence[DeltaBudget], bf16: bool
) -> float:
    """Train several budgets with in-place distillation, as `DeltaEncoderTrainer` does.

    Args:
        model: a masked LM.
        batch: inputs and labels.
        budgets: the largest first; it is the teacher.
        bf16: compute in bfloat16.

    Returns:
        The mean masked-LM loss of the budgets.
    """
    model.zero_grad(set_to_none=True)
    with precision(bf16):
        outputs = model(**batch, budgets=tuple(budgets))
        logits = outputs.budget_logits
        masked_lm, distillation = MaskedLmLoss(), DistillationLoss()
        loss = mean_over_models([masked_lm(z, outputs.labels) for z in logits])
        targets = distillation.soften(logits[0])
        divergence = mean_over_models([distillation.against(z, targets) for z in logits[1:]])
        total = loss.total / loss.count + divergence.total / divergence.count
    torch.autograd.backward(total)
    return float(loss.total.detach() / loss.count)


def passes_step(
    model: DeltaEncoderForMaskedLM,
    batch: Batch,
    budgets: Sequence[DeltaBudget],
    passes: Mapping[str, Any],
) -> float:
    """Train several budgets by masked LM alone, with further passes, in fp32.

    Args:
        model: a masked LM.
        batch: inputs and labels.
        budgets: the largest first.
        passes: ``routed`` or ``upgrade`` of the model's forward.

    Returns:
        The mean masked-LM loss of all passes.
    """
    model.zero_grad(set_to_none=True)
    outputs = model(**batch, budgets=tuple(budgets), **passes)
    masked_lm = MaskedLmLoss()
    loss = mean_over_models([masked_lm(z, outputs.labels) for z in outputs.budget_logits])
    total = loss.total / loss.count
    torch.autograd.backward(total)
    return float(total.detach())
