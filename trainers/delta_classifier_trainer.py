"""Fine-tunes a classification head of the nested encoder at several budgets per step."""

from collections.abc import Sequence
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from .budget_sampling import BudgetSampler
from .hooked_trainer import HookedTrainer
from .loss_term import LossSum, WeightedTerm, mean_over_models
from .losses.distillation import DistillationLoss, require_quiet_teacher
from .losses.label_cross_entropy import LabelCrossEntropyLoss
from .losses.masked_lm import IGNORED_LABEL
from .training_arguments import NestlingTrainingArguments


class DeltaClassifierTrainer(HookedTrainer):
    """Cross-entropy of the labels at the sampled budgets plus distillation in place.

    Loss of a step with budgets b_1 (largest) ... b_M:
    `w_ce(s) * mean_m CE(b_m) + w_kd(s) * mean_{m >= 2} tau^2 KL(b_1, detached || b_m)`.

    Works for heads over rows (labels `(batch,)`) and over tokens (labels `(batch, seq)`, -100
    where there is none). Each budget is one forward: a head pools or normalises the states of
    every depth anew, and rows of a classification task are short.

    Args:
        model: A model whose forward takes `budget=` and returns `logits`.
        args: Training arguments.
        budget_sampler: Budgets of a step, the largest first; equal on all ranks.
        terms: `label_cross_entropy` and, if wanted, `distillation`, each with its schedule.
        kwargs: Further arguments of `HookedTrainer`.

    Raises:
        ValueError: If a term is none of the two, cross-entropy is missing, or distillation has no
            student or a teacher with dropout.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        args: NestlingTrainingArguments,
        *,
        budget_sampler: BudgetSampler[Any],
        terms: Sequence[WeightedTerm],
        **kwargs: Any,
    ) -> None:
        super().__init__(model=model, args=args, terms=terms, **kwargs)
        self.budget_sampler = budget_sampler
        self._cross_entropy, self._distillation = self._pick_terms()
        if self._distillation is not None and len(budget_sampler.sample(0, 1)) < 2:
            raise ValueError(
                "distillation in place needs 2 or more budgets per step, the sampler gives 1; "
                "raise budgets_per_step or drop the distillation term"
            )

        if self._distillation is not None:
            require_quiet_teacher(self.model.config)

    def _pick_terms(self) -> tuple[LabelCrossEntropyLoss, DistillationLoss | None]:
        cross_entropy, distillation = None, None
        for name, weighted in self.terms.items():
            if isinstance(weighted.term, LabelCrossEntropyLoss):
                cross_entropy = weighted.term
            elif isinstance(weighted.term, DistillationLoss):
                distillation = weighted.term
            else:
                raise ValueError(
                    f"DeltaClassifierTrainer does not know the loss term {name}; it runs "
                    "label_cross_entropy and distillation"
                )
        if cross_entropy is None:
            raise ValueError(
                f"the loss terms are {', '.join(self.terms)}; add label_cross_entropy: nothing "
                "else tells the largest budget the labels"
            )
        return cross_entropy, distillation

    def step_losses(self, model: nn.Module, batch: dict[str, Any], step: int) -> dict[str, LossSum]:
        """Run each budget of the step and sum the terms over the labelled rows or tokens."""
        labels = batch["labels"]
        inputs = {name: value for name, value in batch.items() if name != "labels"}
        is_labelled = labels != IGNORED_LABEL
        # The first one teaches the others, so no layer of it is skipped.
        logits = [
            model(**inputs, budget=budget, drop_paths=number > 0).logits[is_labelled]
            for number, budget in enumerate(
                self.budget_sampler.sample(step, self.state.max_steps)
            )
        ]  # (num_labelled, classes) each
        targets = labels[is_labelled]
        losses = {
            "label_cross_entropy": mean_over_models(
                [self._cross_entropy(each, targets) for each in logits]
            )
        }
        if self._distillation is not None and self.term_weights(step)["distillation"] != 0:
            teacher = self._distillation.soften(logits[0])
            losses["distillation"] = mean_over_models(
                [self._distillation.against(student, teacher) for student in logits[1:]]
            )
        return losses
