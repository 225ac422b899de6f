"""Trains the nested encoder: several budgets per step and the terms that relate them."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from .budget_sampling import BudgetSampler
from .delta_weights import WEIGHT_TERMS, weight_losses
from .document_unpacking import unpack_documents
from .hooked_trainer import HookedTrainer
from .loss_term import LossSum, WeightedTerm, mean_over_models
from .losses.budget_penalty import ThresholdController, score_quantile
from .losses.masked_lm import IGNORED_LABEL, token_losses
from .step_plan import StepPlan, StepPlanner
from .training_arguments import NestlingTrainingArguments

PREDICTION_TERMS = (
    "masked_lm",
    "distillation",
    "delta_residual",
    "monotone_upgrade",
    "cross_scale_features",
    "preview_benefit",
    "budget_penalty",
)


class DeltaEncoderTrainer(HookedTrainer):
    """Masked LM over the sampled budgets, and the terms of Delta-Matryoshka++.

    Loss of a step with budgets b_1 (largest), b_2 (smallest) … b_M:
    `w_mlm(s) * mean_m CE(b_m) + w_kd(s) * mean_{m in students} tau^2 KL(teacher || b_m)` and the
    other terms, each with its weight. In place (`teacher=None`) the teacher is b_1, detached, and
    the students are b_2 ... b_M; with an external teacher every budget is a student. A routed pass
    is one more budget. An upgrade pass counts in `delta_residual` and `monotone_upgrade` only: in
    it the smallest budget gets no gradient, so neither can make that one worse.

    Args:
        model: A model whose forward takes `budgets=(...)` and returns `budget_logits`.
        args: Training arguments.
        planner: Passes of a step, or a sampler of budgets where nothing but budgets is run.
        terms: Terms with their weight schedules, `masked_lm` and any others of this package.
        teacher: A masked LM with the same vocabulary. It sees each packed document on a row of
            its own, so any architecture will do. It runs in eval mode without gradient.
        kwargs: Further arguments of `HookedTrainer`.

    Raises:
        ValueError: If a term is unknown, in-place distillation has no student, or the teacher has
            another vocabulary.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        args: NestlingTrainingArguments,
        *,
        planner: StepPlanner | BudgetSampler[Any],
        terms: Sequence[WeightedTerm],
        teacher: PreTrainedModel | None = None,
        **kwargs: Any,
    ) -> None:
        self.planner = planner if isinstance(planner, StepPlanner) else StepPlanner(planner)
        self.threshold = ThresholdController()
        names = {weighted.term.name for weighted in terms}
        if "budget_penalty" in names or "preview_benefit" in names:
            stateful = {**(kwargs.pop("stateful", None) or {}), "threshold": self.threshold}
            kwargs["stateful"] = stateful
        super().__init__(model=model, args=args, terms=terms, **kwargs)
        unknown = sorted(set(self.terms) - {*PREDICTION_TERMS, *WEIGHT_TERMS})
        if unknown:
            raise ValueError(
                f"DeltaEncoderTrainer does not know the loss terms {', '.join(unknown)}; it runs "
                f"{', '.join((*PREDICTION_TERMS, *WEIGHT_TERMS))}"
            )
        alone = len(self.planner.sampler.sample(0)) < 2
        if "distillation" in self.terms and teacher is None and alone:
            raise ValueError(
                "in-place distillation needs 2 or more budgets per step, the sampler gives 1; "
                "raise budgets_per_step, drop the distillation term or pass a teacher"
            )
        self.teacher = None if teacher is None else self._prepare_teacher(teacher)

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

    def term_weights(self, step: int) -> dict[str, float]:
        """Return the weight of each term; 0 where the step has no pass for it."""
        weights = super().term_weights(step)
        silent = self.planner.plan(step, weights).silent_terms()
        return {name: 0.0 if name in silent else value for name, value in weights.items()}

    def step_losses(self, model: nn.Module, batch: dict[str, Any], step: int) -> dict[str, LossSum]:
        """Run all passes of the step in one forward and sum the terms."""
        weights = self.term_weights(step)
        plan = self.planner.plan(step, weights)
        output = model(
            **batch,
            budgets=plan.budgets,
            tap_layers=plan.tap_layers,
            routed=plan.routed,
            upgrade=plan.upgrade,
        )
        targets = output.labels
        count = len(plan.budgets) + (plan.routed is not None)
        logits = output.budget_logits[:count]
        losses: dict[str, LossSum] = {}
        if "masked_lm" in self.terms:
            term = self.terms["masked_lm"].term
            losses["masked_lm"] = mean_over_models([term(z, targets) for z in logits])
        if weights.get("distillation"):
            losses["distillation"] = self._distil(batch, logits)
        if plan.upgrade is not None:
            losses.update(self._upgrade_losses(weights, output, targets))
        if weights.get("cross_scale_features"):
            compare = self.terms["cross_scale_features"].term
            teacher, *students = output.taps
            mask = _real_tokens(batch)
            losses["cross_scale_features"] = mean_over_models(
                [compare(taps, teacher, mask) for taps in students]
            )
        if plan.routed is not None:
            losses.update(self._routing_losses(weights, plan, output, batch))
        losses.update(weight_losses(self.terms, weights, self.model))
        return losses

    def _distil(self, batch: dict[str, Any], logits: Sequence[Tensor]) -> LossSum:
        term: Any = self.terms["distillation"].term
        teacher, students = logits[0], logits[1:]
        if self.teacher is not None:
            teacher, students = self._teacher_logits(self.teacher, batch), logits
        targets = term.soften(teacher)
        return mean_over_models([term.against(student, targets) for student in students])

    def _upgrade_losses(
        self, weights: dict[str, float], output: Any, targets: Tensor
    ) -> dict[str, LossSum]:
        """Return the terms of the upgrade pass, which comes last in the output."""
        losses: dict[str, LossSum] = {}
        if weights.get("delta_residual"):
            largest, smallest = output.states[0], output.states[1]
            term = self.terms["delta_residual"].term
            losses["delta_residual"] = term(output.states[-1], smallest, largest)
        if weights.get("monotone_upgrade"):
            reached = token_losses(output.budget_logits[1].detach(), targets)
            term = self.terms["monotone_upgrade"].term
            losses["monotone_upgrade"] = term(output.budget_logits[-1], reached, targets)
        return losses

    def _routing_losses(
        self, weights: dict[str, float], plan: StepPlan, output: Any, batch: dict[str, Any]
    ) -> dict[str, LossSum]:
        """Return the terms of the preview network, and let the threshold follow its scores."""
        assert plan.base is not None and plan.routed is not None
        mask = _real_tokens(batch)
        quantile = score_quantile(output.scores.detach(), mask, plan.routed[1])
        threshold = self.threshold.update(self.accelerator.reduce(quantile, reduction="mean"))
        losses: dict[str, LossSum] = {}
        if weights.get("preview_benefit"):
            where = batch["labels"] != IGNORED_LABEL
            with torch.no_grad():
                base = token_losses(output.budget_logits[plan.base], output.labels)
                full = token_losses(output.budget_logits[0], output.labels)
            term = self.terms["preview_benefit"].term
            losses["preview_benefit"] = term(
                output.scores[where], base, full, output.chosen[where], threshold
            )
        if weights.get("budget_penalty"):
            term = self.terms["budget_penalty"].term
            losses["budget_penalty"] = term(output.scores, threshold, mask)
        return losses

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


def _real_tokens(batch: dict[str, Any]) -> Tensor:
    """Return (batch, tokens), above 0 where a token is real."""
    mask: Tensor | None = batch.get("attention_mask")
    return torch.ones_like(batch["input_ids"]) if mask is None else mask
