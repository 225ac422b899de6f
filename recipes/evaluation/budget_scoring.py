"""Predictions of all budgets on the same tokens, reduced to sums while they stream by."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...modeling.input_checks import IGNORED_LABEL
from ...trainers.metrics.calibration import CalibrationBins
from ...trainers.metrics.temperature import TemperatureFit
from ..cli_errors import DataError, ModelFolderError

INPUTS = ("input_ids", "attention_mask", "position_ids", "labels")
# (model, inputs, budgets) -> logits of each budget at the labelled tokens, and their labels.
Predict = Callable[[Any, dict[str, Tensor], Sequence[Any]], tuple[Sequence[Tensor], Tensor]]


@dataclass
class BudgetScore:
    """Running sums of one budget.

    Attributes:
        row_losses: summed cross-entropy of each row.
        correct: right predictions.
        bins: calibration at temperature 1.
        temperature: divides the logits for ``scaled_bins`` and ``scaled_loss``; None skips them.
        scaled_bins: calibration at ``temperature``.
        scaled_loss: summed cross-entropy at ``temperature``.
        fit: collects what a temperature is fitted to; None where none is wanted.
    """

    row_losses: list[NDArray[np.float64]] = field(default_factory=list)
    correct: int = 0
    bins: CalibrationBins = field(default_factory=CalibrationBins)
    temperature: float | None = None
    scaled_bins: CalibrationBins = field(default_factory=CalibrationBins)
    scaled_loss: float = 0.0
    fit: TemperatureFit | None = None

    def update(self, budget: Any, logits: Tensor, labels: Tensor, rows: Tensor) -> None:
        """Add the predictions of one batch.

        Args:
            budget: named in the error.
            logits: (labelled tokens, vocabulary).
            labels: (labelled tokens,).
            rows: (labelled tokens,) the row of each token, numbered 0, 1, 2… without gaps.

        Raises:
            ModelFolderError: if a loss is not a finite number.
        """
        logits = logits.float()
        losses, hits, confidences = _predictions(logits, labels)
        if not bool(torch.isfinite(losses).all()):
            raise ModelFolderError(
                f"budget {budget} gives a loss that is not finite (NaN or infinite); the weights "
                "are damaged or training diverged: evaluate an earlier checkpoint"
            )
        summed = np.bincount(rows.cpu().numpy(), weights=losses.double().cpu().numpy())
        self.row_losses.append(summed.astype(np.float64))
        self.correct += int(hits.sum())
        self.bins.update(confidences.cpu().numpy(), hits.cpu().numpy())
        if self.fit is not None:
            self.fit.update(logits, labels)
        if self.temperature is not None:
            losses, hits, confidences = _predictions(logits / self.temperature, labels)
            self.scaled_loss += float(losses.double().sum())
            self.scaled_bins.update(confidences.cpu().numpy(), hits.cpu().numpy())


class Scores(NamedTuple):
    """Scores of all budgets on one data set.

    Attributes:
        budgets: the budgets, in the order of everything else.
        row_losses: (budgets, rows) summed cross-entropy.
        row_tokens: (rows,) predicted tokens.
        real_tokens: tokens of all rows, padding excluded.
        by_budget: the running sums.
    """

    budgets: tuple[Any, ...]
    row_losses: NDArray[np.float64]
    row_tokens: NDArray[np.float64]
    real_tokens: int
    by_budget: tuple[BudgetScore, ...]

    @property
    def losses(self) -> NDArray[np.float64]:
        """Mean cross-entropy per token of each budget, (budgets,)."""
        return self.row_losses.sum(axis=1) / self.row_tokens.sum()

    @property
    def predicted_share(self) -> float:
        """Predicted tokens over real tokens: how much of a sequence the head runs on."""
        return float(self.row_tokens.sum()) / self.real_tokens


def group_by_trunk(budgets: Sequence[Any]) -> list[tuple[Any, ...]]:
    """Group the budgets that differ only in depth: one pass through the layers serves a group."""
    groups: dict[Any, list[Any]] = {}
    for budget in budgets:
        groups.setdefault(budget.trunk, []).append(budget)
    return [tuple(group) for group in groups.values()]


def without_labels(inputs: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """Return the other inputs, which tokens have a label, and those labels."""
    rest = {name: value for name, value in inputs.items() if name != "labels"}
    is_predicted = inputs["labels"] != IGNORED_LABEL
    return rest, is_predicted, inputs["labels"][is_predicted]


def predict_next(
    model: Any, inputs: dict[str, Tensor], budgets: Sequence[Any]
) -> tuple[Sequence[Tensor], Tensor]:
    """Run a decoder; its labels already are the next tokens."""
    rest, is_predicted, labels = without_labels(inputs)
    outputs = model(**rest, budgets=budgets)
    return [logits[is_predicted] for logits in outputs.budget_logits], labels


def predict_masked(
    model: Any, inputs: dict[str, Tensor], budgets: Sequence[Any]
) -> tuple[Sequence[Tensor], Tensor]:
    """Run a masked LM, whose head runs on labelled tokens only."""
    outputs = model(**inputs, budgets=budgets)
    return outputs.budget_logits, outputs.labels


@torch.inference_mode()
def score_budgets(
    model: Any,
    batches: Iterable[dict[str, Tensor]],
    budgets: Sequence[Any],
    *,
    temperatures: Sequence[float] | None = None,
    fit_temperature: bool = False,
    predict: Predict = predict_masked,
) -> Scores:
    """Run every budget over the same batches.

    Labels come with the batches, so all budgets predict the same tokens from the same input.
    Groups run one after the other, so only the logits of one group are in memory.

    Args:
        model: a model of several budgets; it is put in eval mode and back.
        batches: ``input_ids``, ``labels`` and, where tokens are padding, ``attention_mask``.
        budgets: distinct budgets that fit the model.
        temperatures: one per budget, to measure calibration with scaled logits as well.
        fit_temperature: collect what `TemperatureFit.best` needs.
        predict: runs the model on a batch.

    Raises:
        DataError: if there is no batch or no labelled token.
        ModelFolderError: if a budget gives NaN.
    """
    scores = {
        budget: BudgetScore(
            temperature=None if temperatures is None else temperatures[index],
            fit=TemperatureFit() if fit_temperature else None,
        )
        for index, budget in enumerate(budgets)
    }
    row_tokens: list[NDArray[np.float64]] = []
    real_tokens = 0
    was_training = model.training
    model.train(False)
    try:
        for batch in batches:
            row_tokens.append(_score_batch(model, batch, scores, predict))
            real_tokens += _real_tokens(batch)
    finally:
        model.train(was_training)
    tokens = np.concatenate(row_tokens) if row_tokens else np.zeros(0)
    if not tokens.sum():
        raise DataError(
            f"the evaluation data have {tokens.size} rows and no token to predict; "
            "give more validation data, or for a masked LM raise mlm_probability"
        )
    losses = np.stack([np.concatenate(score.row_losses) for score in scores.values()])
    return Scores(tuple(scores), losses, tokens, real_tokens, tuple(scores.values()))


def _score_batch(
    model: Any,
    batch: dict[str, Tensor],
    scores: dict[Any, BudgetScore],
    predict: Predict,
) -> NDArray[np.float64]:
    """Add one batch to the scores; return the labelled tokens of each of its rows."""
    inputs = {name: batch[name].to(model.device) for name in INPUTS if name in batch}
    is_labelled = inputs["labels"] != IGNORED_LABEL
    # Rows without a label are left out everywhere: they carry nothing to resample.
    rows = is_labelled.any(dim=1).cumsum(0).sub(1)[is_labelled.nonzero()[:, 0]]
    if rows.numel():
        for group in group_by_trunk(list(scores)):
            each, labels = predict(model, inputs, group)
            for budget, logits in zip(group, each, strict=True):
                scores[budget].update(budget, logits, labels, rows)
    return np.bincount(rows.cpu().numpy()).astype(np.float64)


def _real_tokens(batch: dict[str, Tensor]) -> int:
    mask = batch.get("attention_mask")
    return batch["labels"].numel() if mask is None else int(mask.count_nonzero())


def _predictions(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return loss, hit and confidence of each token, with one pass over the vocabulary each."""
    normaliser = torch.logsumexp(logits, dim=-1)
    highest, predicted = logits.max(dim=-1)
    losses = normaliser - logits.gather(-1, labels[:, None]).squeeze(-1)
    return losses, predicted == labels, (highest - normaliser).exp()
