"""Measure a model that has budgets: quality, calibration, cost and order of every one.

All budgets predict the same tokens of the same rows, so they compare pairwise.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor

from ...trainers.metrics.monotonicity import (
    ALIAS_CONFIDENCE,
    bootstrap_means,
    monotone_safe_alias,
)
from ..environment import environment_block
from ..evaluation_file import KIND, SCHEMA_VERSION
from .budget_scoring import Predict, score_budgets
from .evaluation_summary import (
    autc_of,
    cost_of,
    fitted_temperatures,
    lattice_anchors,
    monotonicity_of,
    named_budgets,
    quality_of,
)

Batch = dict[str, Tensor]
# (budgets, predicted tokens of a sequence) -> milliseconds of each budget.
TimeBudgets = Callable[[Sequence[Any], int], Mapping[Any, dict[str, float]]]


def measure_budgets(
    model: Any,
    loader: Iterable[Batch],
    budgets: Sequence[Any],
    *,
    predict: Predict,
    sequence_length: int,
    time_budgets: TimeBudgets | None = None,
    bootstrap_samples: int = 1000,
    alias_confidence: float = ALIAS_CONFIDENCE,
    seed: int = 0,
    calibration_loader: Iterable[Batch] | None = None,
    autc_anchors: tuple[float, float] | None = None,
    calibration_predict: Predict | None = None,
    work_of: Callable[[Any], Mapping[str, Any]] | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Evaluate every budget on the same tokens.

    FLOPs and latency are those of one sequence through the trunk, and through the head at the
    share of tokens the evaluation predicts: ``round(predicted / real tokens * sequence_length)``.

    Args:
        model: a language model of one of our families.
        loader: batches with fixed labels; read once.
        budgets: distinct budgets that fit the model.
        predict: runs the model on a batch.
        sequence_length: tokens of a sequence for FLOPs and latency.
        time_budgets: times the sliced models; None leaves the time out.
        bootstrap_samples: resamples of the rows for intervals and significance.
        alias_confidence: how surely a budget must beat all it contains to be its own safe alias;
            see `monotone_safe_alias`.
        seed: seed of the resamples.
        calibration_loader: held-out batches on which aliases are chosen and temperatures fitted.
            None chooses the aliases on ``loader`` and fits no temperature.
        autc_anchors: (F0, F1) of the study; None takes the FLOPs of the smallest and the largest
            budget of the configuration, whichever budgets are evaluated.
        calibration_predict: runs the model on ``calibration_loader``; None means ``predict``.
        work_of: budget -> more that ``budget.flops`` of the family takes, where ``predict`` does
            less work; asked when the evaluation rows have been predicted.
        progress: show a progress bar on standard error.

    Returns:
        The evaluation as plain JSON values: ``summary``, ``budgets`` and how they were measured.

    Raises:
        DataError: if there is nothing to predict.
        ModelFolderError: if a budget's loss is not finite.
    """
    config, chosen = model.config, list(budgets)
    calibrated = None
    if calibration_loader is not None:
        batches = _progress_bar(calibration_loader, "calibrate", chosen, progress)
        calibrated = score_budgets(
            model, batches, chosen, fit_temperature=True, predict=calibration_predict or predict
        )
    scores = score_budgets(
        model,
        _progress_bar(loader, "evaluate", chosen, progress),
        chosen,
        temperatures=None if calibrated is None else fitted_temperatures(calibrated),
        predict=predict,
    )
    rows = calibrated or scores
    aliases = monotone_safe_alias(chosen, rows.row_losses, rows.row_tokens, alias_confidence)
    means = bootstrap_means(scores.row_losses, scores.row_tokens, bootstrap_samples, seed)
    predicted = round(scores.predicted_share * sequence_length)
    times = {} if time_budgets is None else time_budgets(chosen, predicted)
    dtype = str(model.dtype).removeprefix("torch.")
    works = [{} if work_of is None else work_of(budget) for budget in chosen]
    entries = [
        {
            **quality_of(scores, index, means),
            **cost_of(budget, config, dtype, sequence_length, predicted, **works[index]),
            "latency_ms": times.get(budget),
            "safe_alias": str(chosen[aliases[index]]),
        }
        for index, budget in enumerate(chosen)
    ]
    anchors = autc_anchors or lattice_anchors(config, sequence_length, predicted)
    return {
        "schema_version": SCHEMA_VERSION,
        "kind": KIND,
        "family": config.model_type,
        "environment": environment_block([seed]),
        "data": {
            "rows": int(scores.row_tokens.size),
            "predicted_tokens": int(scores.row_tokens.sum()),
            "predicted_share": round(scores.predicted_share, 6),
            "calibration_rows": 0 if calibrated is None else int(calibrated.row_tokens.size),
            "aliases_chosen_on": "evaluation rows" if calibrated is None else "calibration rows",
            "alias_confidence": alias_confidence,
        },
        "sequence_length": sequence_length,
        "predicted_tokens_per_sequence": predicted,
        "bootstrap_samples": bootstrap_samples,
        "budgets": entries,
        "summary": {
            "autc": autc_of(entries, anchors),
            "autc_anchors": list(anchors),
            "monotonicity": monotonicity_of(scores, means, aliases, calibrated),
            **named_budgets(config),
        },
    }


def _progress_bar(
    loader: Iterable[Batch], verb: str, budgets: Sequence[Any], progress: bool
) -> Iterable[Batch]:
    from tqdm import tqdm

    title = f"{verb} {len(budgets)} budgets"
    bar: Iterable[Batch] = tqdm(loader, desc=title, unit="batch", disable=not progress)
    return bar
