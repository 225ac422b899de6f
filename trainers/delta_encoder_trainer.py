"""Trains the nested encoder: several budgets per step and the terms that relate them."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from .budget_evaluation import evaluate_budgets
from .budget_sampling import BudgetSampler
from .delta_weights import WEIGHT_TERMS, weight_losses
from .document_unpacking import unpack_documents
from .hook_state import Stateful
from .hooked_trainer import HookedTrainer
from .loss_term import (
    LossSum,
    WeightedTerm,
    mean_over_models,
    shares_of_models,
    weighted_over_models,
)
from .losses.budget_penalty import ThresholdController, score_quantile
from .losses.distillation import require_quiet_teacher
from .losses.masked_lm import IGNORED_LABEL, token_losses
from .phased_sampling import expected_depth
from .schedules import Schedule
from .step_plan import ROUTING_TERMS, StepPlan, StepPlanner
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
    `w_mlm(s) * sum_m p_m CE(b_m) + w_kd(s) * mean_{m in students} tau^2 KL(teacher || b_m)` and
    the other terms, each with its weight. The shares p_m are `largest_share` for b_1 and equal for
    the others. In place (`teacher=None`) the teacher is b_1, detached, and
    the students are b_2 ... b_M; with an external teacher every budget is a student. A routed pass
    counts as two more budgets, with the delta on a share of the tokens and on none, because both
    are ways in which the model is to be used. An upgrade pass counts in `delta_residual` and
    `monotone_upgrade` only: in it the smaller budget gets no gradient, so neither makes that one
    worse through its own gradient.

    `evaluate` gives `eval_loss`, the mean cross-entropy of `eval_budgets` over all labelled tokens.

    Args:
        model: A model whose forward takes `budgets=(...)` and returns `budget_logits`.
        args: Training arguments.
        planner: Passes of a step, or a sampler of budgets where nothing but budgets is run. A term
            whose pass the planner does not run at a step has weight 0 there, and the more where
            it does.
        terms: Terms with their weight schedules, `masked_lm` and any others of this package.
        teacher: A masked LM with the same vocabulary. It sees each packed document on a row of
            its own, so any architecture will do. It runs in eval mode without gradient.
        largest_share: Share of the largest budget in the masked-LM term at each step, in (0, 1);
            None gives every budget of a step the same.
        eval_budgets: Budgets that `evaluate` measures; none gives the loss of the whole model.
        kwargs: Further arguments of `HookedTrainer`.

    Raises:
        ValueError: If a term is unknown, in-place distillation has no student or a teacher with
            dropout, or the teacher has another vocabulary.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        args: NestlingTrainingArguments,
        *,
        planner: StepPlanner | BudgetSampler[Any],
        terms: Sequence[WeightedTerm],
        teacher: PreTrainedModel | None = None,
        largest_share: Schedule | None = None,
        eval_budgets: Sequence[Any] = (),
        **kwargs: Any,
    ) -> None:
        self.planner = planner if isinstance(planner, StepPlanner) else StepPlanner(planner)
        self.largest_share = largest_share
        self.eval_budgets = tuple(eval_budgets)
        self.threshold = ThresholdController()
        self._scores: list[Tensor] = []
        hooks = {**(kwargs.pop("stateful", None) or {}), **self._hooks_of(terms)}
        super().__init__(model=model, args=args, terms=terms, stateful=hooks, **kwargs)
        unknown = sorted(set(self.terms) - {*PREDICTION_TERMS, *WEIGHT_TERMS})
        if unknown:
            raise ValueError(
                f"DeltaEncoderTrainer does not know the loss terms {', '.join(unknown)}; it runs "
                f"{', '.join((*PREDICTION_TERMS, *WEIGHT_TERMS))}"
            )
        alone = len(self.planner.sampler.sample(0, 1)) < 2
        if "distillation" in self.terms and teacher is None and alone:
            raise ValueError(
                "in-place distillation needs 2 or more budgets per step, the sampler gives 1; "
                "raise budgets_per_step, drop the distillation term or pass a teacher"
            )
        if "distillation" in self.terms and teacher is None:
            require_quiet_teacher(self.model.config)
        self.teacher = None if teacher is None else self._prepare_teacher(teacher)

    def _hooks_of(self, terms: Sequence[WeightedTerm]) -> dict[str, Stateful]:
        """Return what remembers something between steps and belongs to a checkpoint."""
        by_name = {weighted.term.name: weighted.term for weighted in terms}
        hooks: dict[str, Stateful] = {}
        if any(name in by_name for name in ROUTING_TERMS):
            hooks["routing_threshold"] = self.threshold
        if "packing_regularizer" in by_name:
            hooks["packing_regularizer"] = by_name["packing_regularizer"]
        return hooks

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
        """Return the weight of each term in the passes that the step runs, see `StepPlan`."""
        weights = super().term_weights(step)
        plan = self.planner.plan(step, self.state.max_steps, weights)
        if self.teacher is None and len(plan.budgets) < 2 and "distillation" in weights:
            weights = {**weights, "distillation": 0.0}  # nobody to teach
        return plan.weights(weights)

    def step_losses(self, model: nn.Module, batch: dict[str, Any], step: int) -> dict[str, LossSum]:
        """Run all passes of the step in one forward and sum the terms."""
        weights = self.term_weights(step)
        plan = self.planner.plan(step, self.state.max_steps, weights)
        output = model(**batch, **plan.arguments())
        targets = output.labels
        count = len(plan.budgets) + (0 if plan.routed is None else 2)
        logits = output.budget_logits[:count]
        losses: dict[str, LossSum] = {}
        if "masked_lm" in self.terms:
            term = self.terms["masked_lm"].term
            shares = shares_of_models(len(logits), self._largest_share_at(step))
            losses["masked_lm"] = weighted_over_models([term(z, targets) for z in logits], shares)
        if weights.get("distillation"):
            losses["distillation"] = self._distil(batch, logits)
        if plan.upgrade is not None:
            losses.update(self._upgrade_losses(weights, plan, output))
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

    def _largest_share_at(self, step: int) -> float | None:
        if self.largest_share is None:
            return None
        return self.largest_share(step, self.state.max_steps)

    def _distil(self, batch: dict[str, Any], logits: Sequence[Tensor]) -> LossSum:
        term: Any = self.terms["distillation"].term
        teacher, students = logits[0], logits[1:]
        if self.teacher is not None:
            teacher, students = self._teacher_logits(self.teacher, batch), logits
        targets = term.soften(teacher)
        return mean_over_models([term.against(student, targets) for student in students])

    def _upgrade_losses(
        self, weights: dict[str, float], plan: StepPlan, output: Any
    ) -> dict[str, LossSum]:
        """Return the terms of the upgrade pass, which comes last in the output."""
        assert plan.upgrade is not None
        losses: dict[str, LossSum] = {}
        smaller = plan.budgets.index(plan.upgrade[1])
        if weights.get("delta_residual"):
            term = self.terms["delta_residual"].term
            states = output.states
            losses["delta_residual"] = term(states[-1], states[smaller], states[0])
        if weights.get("monotone_upgrade"):
            reached = token_losses(output.budget_logits[smaller].detach(), output.labels)
            term = self.terms["monotone_upgrade"].term
            losses["monotone_upgrade"] = term(output.budget_logits[-1], reached, output.labels)
        return losses

    def _routing_losses(
        self, weights: dict[str, float], plan: StepPlan, output: Any, batch: dict[str, Any]
    ) -> dict[str, LossSum]:
        """Return the terms of the preview network; the threshold follows its scores afterwards."""
        assert plan.routed is not None
        mask = _real_tokens(batch)
        self._scores.append(output.scores.detach()[mask > 0].float())
        # All micro-batches of a step see one threshold; before the first it is no benefit at all.
        threshold = self.threshold.threshold
        if threshold is None:
            threshold = output.scores.new_zeros(())
        losses: dict[str, LossSum] = {}
        if weights.get("preview_benefit"):
            where = batch["labels"] != IGNORED_LABEL
            with torch.no_grad():
                # The second of the routed passes has the delta on no token.
                base = token_losses(output.budget_logits[len(plan.budgets) + 1], output.labels)
                full = token_losses(output.budget_logits[0], output.labels)
            term = self.terms["preview_benefit"].term
            losses["preview_benefit"] = term(
                output.scores[where], base, full, output.chosen[where], threshold
            )
        if weights.get("budget_penalty"):
            term = self.terms["budget_penalty"].term
            losses["budget_penalty"] = term(output.scores, threshold, mask)
        return losses

    def _end_window(self) -> None:
        """Check and log the window, then move the routing threshold; just before the update."""
        super()._end_window()
        if self._scores and self.planner.token_ratio is not None:
            scores = self._of_all_ranks(torch.cat(self._scores))
            quantile = score_quantile(scores, torch.ones_like(scores), self.planner.token_ratio)
            self.threshold.update(quantile)
            self._scores.clear()

    def _of_all_ranks(self, values: Tensor) -> Tensor:
        """Join vectors of different lengths, so that all ranks see what one process would."""
        own = torch.tensor([len(values)], device=values.device)
        lengths = self.accelerator.gather(own).tolist()
        padded = self.accelerator.pad_across_processes(values)
        rows = self.accelerator.gather(padded).view(len(lengths), -1)
        return torch.cat([row[:length] for row, length in zip(rows, lengths, strict=True)])

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the expected depth of the last step's budgets in between, where depths are drawn."""
        if "loss" in logs and self.state.global_step:
            step = self.state.global_step - 1
            depth = expected_depth(self.planner.sampler, step, self.state.max_steps)
            if depth is not None:
                logs["expected_depth"] = depth
        super().log(logs, start_time)

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train; the routing threshold is written into the configuration, here and when saving."""
        result = super().train(*args, **kwargs)
        self._note_threshold()
        return result

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        self._note_threshold()
        super()._save_checkpoint(model, trial)

    def _note_threshold(self) -> None:
        if self.threshold.threshold is not None:
            self.model.config.learned_token_threshold = float(self.threshold.threshold)

    def evaluate(
        self,
        eval_dataset: Any = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """Measure `eval_budgets`: `eval_loss` is their mean, `eval_loss/BUDGET` that of one."""
        if not self.eval_budgets:
            return super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)

        def measure(model: Any, batch: dict[str, Any]) -> tuple[list[Tensor], int]:
            output = model(**batch, budgets=self.eval_budgets)
            sums = [token_losses(z, output.labels).sum() for z in output.budget_logits]
            return sums, len(output.labels)

        return evaluate_budgets(
            self, self.eval_budgets, eval_dataset, metric_key_prefix, measure
        )

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
