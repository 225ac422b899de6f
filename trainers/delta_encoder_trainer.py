"""Trains the nested encoder: several budgets per step, distilled from the largest or a teacher."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from .budget_sampling import BudgetSampler
from .document_unpacking import unpack_documents
from .hooked_trainer import HookedTrainer
from .loss_term import LossSum, WeightedTerm, mean_over_models
from .losses.distillation import DistillationLoss
from .losses.masked_lm import IGNORED_LABEL, MaskedLmLoss
from .training_arguments import NestlingTrainingArguments


class DeltaEncoderTrainer(HookedTrainer):
    """Masked LM over the sampled budgets plus distillation.

    Loss of a step with budgets b_1 (largest) ... b_M:
    `w_mlm(s) * mean_m CE(b_m) + w_kd(s) * mean_{m in students} tau^2 KL(teacher || b_m)`.
    In place (`teacher=None`) the teacher is b_1, detached, and the students are b_2 ... b_M. With
    an external teacher every budget is a student.

    Args:
        model: A model whose forward takes `budgets=(...)` and returns `budget_logits`.
        args: Training arguments.
        budget_sampler: Budgets of a step, the largest first; equal on all ranks.
        terms: `masked_lm` and, if wanted, `distillation`, each with its weight schedule.
        teacher: A masked LM with the same vocabulary. It sees each packed document on a row of
            its own, so any architecture will do. It runs in eval mode without gradient.
        kwargs: Further arguments of `HookedTrainer`.

    Raises:
        ValueError: If a term is none of the two, in-place distillation has no student, or the
            teacher has another vocabulary.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        args: NestlingTrainingArguments,
        *,
        budget_sampler: BudgetSampler[Any],
        terms: Sequence[WeightedTerm],
        teacher: PreTrainedModel | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(model=model, args=args, terms=terms, **kwargs)
        self.budget_sampler = budget_sampler
        self._masked_lm, self._distillation = self._pick_terms()
        if self._distillation and teacher is None and len(budget_sampler.sample(0)) < 2:
            raise ValueError(
                "in-place distillation needs 2 or more budgets per step, the sampler gives 1; "
                "raise budgets_per_step, drop the distillation term or pass a teacher"
            )
        self.teacher = None if teacher is None else self._prepare_teacher(teacher)

    def _pick_terms(self) -> tuple[MaskedLmLoss | None, DistillationLoss | None]:
        masked_lm, distillation = None, None
        for name, weighted in self.terms.items():
            if isinstance(weighted.term, MaskedLmLoss):
                masked_lm = weighted.term
            elif isinstance(weighted.term, DistillationLoss):
                distillation = weighted.term
            else:
                raise ValueError(
                    f"DeltaEncoderTrainer does not know the loss term {name}; it runs masked_lm "
                    "and distillation"
                )
        return masked_lm, distillation

    def _prepare_teacher(self, teacher: PreTrainedModel) -> nn.Module:
        student_size, teacher_size = self.model.config.vocab_size, teacher.config.vocab_size
        if student_size != teacher_size:
            raise ValueError(
                f"the teacher has a vocabulary of {teacher_size} tokens, the model of "
                f"{student_size}; distillation needs the same tokenizer on both sides"
            )
        teacher.train(False)
        frozen: nn.Module = teacher.requires_grad_(False)
        return frozen.to(self.args.device)

    def step_losses(self, model: nn.Module, batch: dict[str, Any], step: int) -> dict[str, LossSum]:
        """Run all budgets of the step in one forward and sum the terms."""
        budgets = self.budget_sampler.sample(step)
        logits = model(**batch, budgets=budgets).budget_logits  # M x (num_labelled, vocab)
        labels = batch["labels"]
        targets = labels[labels != IGNORED_LABEL]
        losses = {}
        if self._masked_lm is not None:
            losses["masked_lm"] = mean_over_models([self._masked_lm(z, targets) for z in logits])
        if self._distillation is not None and self.term_weights(step)["distillation"] != 0:
            teacher, students = self._teacher_and_students(batch, logits)
            targets = self._distillation.soften(teacher)
            losses["distillation"] = mean_over_models(
                [self._distillation.against(student, targets) for student in students]
            )
        return losses

    def _teacher_and_students(
        self, batch: dict[str, Any], logits: Sequence[Tensor]
    ) -> tuple[Tensor, Sequence[Tensor]]:
        if self.teacher is None:
            return logits[0], logits[1:]
        return self._teacher_logits(self.teacher, batch), logits

    @torch.no_grad()
    def _teacher_logits(self, teacher: nn.Module, batch: dict[str, Any]) -> Tensor:
        """Run the teacher on unpacked documents: `(num_labelled, vocab)` in the batch's order."""
        documents = unpack_documents(
            batch["input_ids"], batch["attention_mask"], self.model.config.pad_token_id
        )
        with self.accelerator.autocast():
            output = teacher(input_ids=documents.input_ids, attention_mask=documents.attention_mask)
        is_labelled = batch["labels"] != IGNORED_LABEL
        logits: Tensor = output.logits  # (documents, longest, vocab)
        return logits[documents.row[is_labelled], documents.column[is_labelled]]
