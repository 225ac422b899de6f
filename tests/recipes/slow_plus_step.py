"""A step of Delta-Matryoshka++ written out: one model call per pass, one formula per loss term."""

import math
from typing import Any, NamedTuple

import torch
from nestling.configuration.delta_budget import DeltaBudget
from nestling.trainers.delta_encoder_trainer import DeltaEncoderTrainer
from nestling.trainers.step_plan import StepPlan
from torch import Tensor

RATIO = 0.2  # share of the tokens that get the delta in a routed pass
TEMPERATURE = 2.0  # of the distillation
MARGIN = 0.25  # nats by which an upgrade should win
TAPS = (0.5, 0.75, 1.0)  # layers 1, 2 and 3 of 4, counted from 0
CHANNELS = 24  # of 48, in the base slice of each MLP
ALL, NONE = 1.0, 0.0


class Pass(NamedTuple):
    """What a call leaves at the labelled tokens and, from `layers` on, at all of them."""

    states: Tensor
    logits: Tensor
    losses: Tensor
    layers: list[Tensor]
    scores: Tensor | None


class SlowStep:
    """The passes of one micro-batch and the terms over them.

    Args:
        trainer: its model is run, nothing of its own code.
        batch: the micro-batch.
        plan: budgets, and which further passes there are.
        threshold: routing threshold.
        largest_share: share of the largest budget in the masked-LM term.
    """

    def __init__(
        self,
        trainer: DeltaEncoderTrainer,
        batch: dict[str, Tensor],
        plan: StepPlan,
        threshold: float,
        largest_share: float | None,
    ) -> None:
        self.model, self.batch, self.plan = trainer.model, batch, plan
        self.threshold, self.largest_share = threshold, largest_share
        self.is_real = batch["attention_mask"] > 0
        self.is_labelled = batch["labels"] != -100
        self.labels = batch["labels"][self.is_labelled]
        self.by_budget = {budget: self.run(budget, ALL) for budget in plan.budgets}
        self.passes = list(self.by_budget.values())
        self.largest = self.by_budget[max(plan.budgets, key=lambda b: (b.width, b.heads, b.depth))]
        if plan.routed is not None:
            self.routed = self.run(plan.routed[0], RATIO)
            self.base = self.run(plan.routed[0], NONE)
            self.passes += [self.routed, self.base]

    def run(self, budget: DeltaBudget, share: float) -> Pass:
        """Call the model for one budget with its delta on a share of the tokens."""
        trunk, layers, scores = self.model.model, [], []
        hooks = [
            trunk.preview.register_forward_hook(lambda *found: scores.append(found[2])),
            *(
                layer.register_forward_hook(lambda *found: layers.append(found[2][0]))
                for layer in trunk.layers
            ),
        ]
        trunk.config.delta_token_ratio = share
        output = self.model(
            self.batch["input_ids"], self.batch["attention_mask"], budget=budget,
            output_hidden_states=True,
        )  # fmt: skip
        for hook in hooks:
            hook.remove()
        logits = output.logits[self.is_labelled]
        losses = -logits.log_softmax(-1).gather(1, self.labels[:, None])[:, 0]
        states = output.hidden_states[-1][self.is_labelled]
        return Pass(states, logits, losses, layers, scores[0] if scores else None)

    def chosen(self) -> Tensor:
        """Mark the `ceil(RATIO n)` best of the n real tokens of each row."""
        chosen = torch.zeros_like(self.is_real)
        for row, scores in enumerate(self.routed.scores):
            real = self.is_real[row].nonzero().flatten().tolist()
            best = sorted(real, key=lambda token: -scores[token].item())
            chosen[row, best[: math.ceil(RATIO * len(real) - 1e-6)]] = True
        return chosen

    def masked_lm(self) -> Tensor:
        first, others = self.largest_share, len(self.passes) - 1
        if first is None:
            first = 1 / len(self.passes)
        sums = [found.losses.sum() for found in self.passes]
        return first * sums[0] + (1 - first) / others * sum(sums[1:])

    def distillation(self) -> Tensor:
        goal = (self.largest.logits.detach() / TEMPERATURE).softmax(-1)
        students = [(found.logits / TEMPERATURE).softmax(-1) for found in self.passes[1:]]
        divergences = [(goal * (goal / student).log()).sum() for student in students]
        return TEMPERATURE**2 * sum(divergences) / len(students)

    def delta_residual(self) -> Tensor:
        larger, smaller = (self.by_budget[budget].states for budget in self.plan.upgrade)
        upgrade = larger - smaller.detach()
        missing = (self.largest.states - smaller).detach()
        floor = missing.shape[1]
        apart = (upgrade - missing).square().sum(1) / (missing.square().sum(1) + floor)
        return apart.sum()

    def monotone_upgrade(self) -> Tensor:
        larger, smaller = (self.by_budget[budget].losses for budget in self.plan.upgrade)
        return (larger - smaller.detach() + MARGIN).clamp(min=0).sum()

    def cross_scale_features(self) -> Tensor:
        (largest, teacher), *students = self.by_budget.items()
        distance: Any = 0.0
        for budget, student in students:
            for tap in TAPS:
                ours = student.layers[max(1, int(tap * budget.depth + 0.5)) - 1]
                theirs = teacher.layers[max(1, int(tap * largest.depth + 0.5)) - 1].detach()
                for row, real in enumerate(self.is_real):
                    left, right = _statistics(ours[row][real]), _statistics(theirs[row][real])
                    distance = distance + (left - right).square().sum() / ours.shape[-1]
        return distance / len(TAPS) / len(students)

    def preview_benefit(self) -> Tensor:
        scores = self.routed.scores[self.is_labelled]
        benefit = (self.base.losses - self.largest.losses).detach()
        total: Any = 0.0
        for score, gain, is_chosen in zip(
            scores, benefit, self.chosen()[self.is_labelled], strict=True
        ):
            error = (score - gain).abs()
            total = total + (0.5 * error.square() if error <= 1 else error - 0.5)
            above = torch.sigmoid(score - self.threshold)
            total = total - 0.1 * (above if is_chosen else 1 - above).log()
        return total

    def budget_penalty(self) -> Tensor:
        above = torch.sigmoid((self.routed.scores[self.is_real] - self.threshold) / 0.1)
        return (above.mean() - RATIO).square()

    def coefficient_sparsity(self) -> Tensor:
        return sum(block.coefficients.abs().sum() for block in self._dictionaries())

    def atom_orthogonality(self) -> Tensor:
        means = []
        for block in self._dictionaries():
            atoms = (block.atoms_out @ block.atoms_in).flatten(1)
            unit = atoms / (atoms.square().sum(1, keepdim=True) + 1e-6).sqrt()
            cosines = [a @ b for i, a in enumerate(unit) for j, b in enumerate(unit) if i != j]
            means.append(torch.stack(cosines).square().mean())
        return torch.stack(means).mean()

    def packing_regularizer(self) -> Tensor:
        trunk, excess = self.model.model, []
        for index, layer in enumerate(trunk.layers):
            base, delta = layer.mlp.up.weight[:CHANNELS], layer.mlp.up.weight[CHANNELS:]
            if trunk.deltas is not None:
                block = trunk.deltas.blocks["up"]
                atoms = block.atoms_out @ block.atoms_in
                delta = (block.coefficients[index][:, None, None] * atoms).sum(0)
            sizes = [torch.linalg.matrix_norm(matrix, 2) for matrix in (delta, base)]
            excess.append((sizes[0] - sizes[1]).clamp(min=0))
        return torch.stack(excess).mean()

    def _dictionaries(self) -> list[Any]:
        blocks = list(self.model.model.deltas.blocks.values())
        assert len(blocks) == 5
        return blocks

    def counts(self) -> dict[str, int]:
        """Units of each term."""
        rows, tokens = len(self.is_real), len(self.labels)
        by_token = ("masked_lm", "distillation", "delta_residual", "monotone_upgrade")
        return {
            **dict.fromkeys((*by_token, "preview_benefit"), tokens),
            "cross_scale_features": rows,
        }


def _statistics(states: Tensor) -> Tensor:
    """Mean and deviation of each normalised channel of (tokens, n), one after the other."""
    mean, variance = states.mean(1, keepdim=True), states.var(1, keepdim=True, unbiased=False)
    normal = (states - mean) / (variance + 1e-5).sqrt()
    deviation = (normal.var(0, unbiased=False) + 1e-6).sqrt()
    return torch.cat([normal.mean(0), deviation])


def slow_quantile(scores: list[float], share: float) -> float:
    """The score that `share` of the scores exceed, between neighbours in proportion."""
    ordered, place = sorted(scores), (1 - share) * (len(scores) - 1)
    low = int(place)
    return ordered[low] + (place - low) * (ordered[low + 1] - ordered[low])
