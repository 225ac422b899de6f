"""Measure a nested encoder: quality, calibration, cost and order of every budget.

All budgets predict the same masked tokens of the same rows, so they compare pairwise.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ...configuration.budget import select_budgets
from ...configuration.delta_budget import DeltaBudget
from ...modeling.delta_encoder_heads import DeltaEncoderForMaskedLM
from ...trainers.metrics.monotonicity import bootstrap_means, monotone_safe_alias
from ..environment import environment_block
from ..evaluation_file import KIND, SCHEMA_VERSION
from .budget_latency import measure_latency
from .budget_scoring import score_budgets
from .evaluation_summary import (
    autc_of,
    cost_of,
    fitted_temperatures,
    lattice_anchors,
    monotonicity_of,
    named_budgets,
    quality_of,
)
from .evaluation_table import Row

if TYPE_CHECKING:
    from .evaluation_inputs import EvaluationInputs

Batch = dict[str, Tensor]
BudgetRequest = DeltaBudget | str | tuple[Any, ...]


def run_full_evaluation(
    model: DeltaEncoderForMaskedLM,
    loader: Iterable[Batch],
    budgets: Sequence[BudgetRequest] | None = None,
    *,
    sequence_length: int | None = None,
    latency: bool = True,
    bootstrap_samples: int = 1000,
    seed: int = 0,
    calibration_loader: Iterable[Batch] | None = None,
    autc_anchors: tuple[float, float] | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Evaluate every budget on the same masked tokens.

    FLOPs and latency are those of one sequence through the trunk, and through the head at the
    share of tokens the evaluation predicts: ``round(predicted / real tokens * sequence_length)``.

    Args:
        model: a masked LM of the family.
        loader: batches with fixed masks; read once.
        budgets: `DeltaBudget`, texts, names (``smallest``…) or tuples (0.5, 4, 4); None takes all
            budgets of the configuration.
        sequence_length: tokens of a sequence for FLOPs and latency; None takes 128, or the
            longest sequence of a model that is shorter.
        latency: time the sliced models on this CPU, at the same work as the FLOPs.
        bootstrap_samples: resamples of the rows for intervals and significance.
        seed: seed of the resamples.
        calibration_loader: held-out batches on which aliases are chosen and temperatures fitted.
            None chooses the aliases on ``loader`` and fits no temperature.
        autc_anchors: (F0, F1) of the study; None takes the FLOPs of the smallest and the largest
            budget of the configuration, whichever budgets are evaluated.
        progress: show a progress bar on standard error.

    Returns:
        The evaluation as plain JSON values: ``summary``, ``budgets`` and how they were measured.

    Raises:
        BudgetError: for a budget the model cannot be cut to.
        DataError: if there is nothing to predict.
        ModelFolderError: if a budget's loss is not finite.
    """
    config = model.config
    sequence_length = sequence_length or min(128, config.max_position_embeddings)
    chosen = resolve_budgets(budgets, config)
    calibrated = None
    if calibration_loader is not None:
        batches = _progress_bar(calibration_loader, "calibrate", chosen, progress)
        calibrated = score_budgets(model, batches, chosen, fit_temperature=True)
    scores = score_budgets(
        model,
        _progress_bar(loader, "evaluate", chosen, progress),
        chosen,
        temperatures=None if calibrated is None else fitted_temperatures(calibrated),
    )
    aliases = monotone_safe_alias(chosen, (calibrated or scores).losses.tolist())
    means = bootstrap_means(scores.row_losses, scores.row_tokens, bootstrap_samples, seed)
    predicted = round(scores.predicted_share * sequence_length)
    times = measure_latency(model, chosen, sequence_length, predicted) if latency else {}
    dtype = str(model.dtype).removeprefix("torch.")
    entries = [
        {
            **quality_of(scores, index, means),
            **cost_of(budget, config, dtype, sequence_length, predicted),
            "latency_ms": times.get(budget),
            "safe_alias": str(chosen[aliases[index]]),
        }
        for index, budget in enumerate(chosen)
    ]
    anchors = autc_anchors or lattice_anchors(config, sequence_length, predicted)
    return {
        "schema_version": SCHEMA_VERSION,
        "kind": KIND,
        "family": "delta_encoder",
        "environment": environment_block([seed]),
        "data": {
            "rows": int(scores.row_tokens.size),
            "predicted_tokens": int(scores.row_tokens.sum()),
            "predicted_share": round(scores.predicted_share, 6),
            "calibration_rows": 0 if calibrated is None else int(calibrated.row_tokens.size),
            "aliases_chosen_on": "evaluation rows" if calibrated is None else "calibration rows",
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


def resolve_budgets(requests: Sequence[BudgetRequest] | None, config: Any) -> list[DeltaBudget]:
    """Turn requests into distinct, checked budgets; None means all of the configuration.

    Raises:
        BudgetError: for a request that cannot be read or does not fit.
    """
    asked = ["all"] if requests is None else list(requests)
    plain = [DeltaBudget(*ask) if isinstance(ask, tuple) else ask for ask in asked]
    return select_budgets(plain or ["all"], config)


def evaluate_folder(
    model_dir: Path,
    output: Path,
    overrides: Sequence[str] = (),
    budgets: Sequence[str] | None = None,
) -> list[Row]:
    """Evaluate a saved model on the data of its recipe; write JSON, tables and plots.

    Part of the validation rows is held out to choose aliases and fit temperatures, as
    ``evaluation.calibration_fraction`` says. Beside ``output`` (FILE.json) come FILE.md, FILE.csv,
    FILE.png and FILE.svg.

    Args:
        model_dir: the model folder of a run, or the output_dir above it.
        output: the JSON file.
        overrides: changes to the saved recipe, such as ``data.path=…``.
        budgets: texts or names; None takes those of the recipe.

    Returns:
        The rows of the table on the console.

    Raises:
        ModelFolderError: if the folder holds no model or no recipe.
        DataError: if the data cannot be used.
    """
    from .evaluation_files import write_evaluation
    from .evaluation_inputs import open_run

    return write_evaluation(evaluate_run(open_run(model_dir, overrides), budgets), output)


def evaluate_run(
    run: "EvaluationInputs", budgets: Sequence[str] | None = None
) -> dict[str, Any]:
    """Evaluate an opened run by the settings of its recipe.

    Args:
        run: the model and its rows.
        budgets: texts or names; None takes those of the recipe.

    Returns:
        What `run_full_evaluation` returns, with the origin of the rows in ``data``.
    """
    settings = run.recipe.evaluation
    evaluation = run_full_evaluation(
        run.model,
        run.loader,
        list(budgets or settings.budgets),
        sequence_length=settings.sequence_length or run.recipe.data.max_length,
        latency=settings.latency,
        bootstrap_samples=settings.bootstrap_samples,
        seed=run.recipe.seed,
        calibration_loader=run.calibration_loader,
    )
    evaluation["data"].update(run.data)
    return evaluation


def _progress_bar(
    loader: Iterable[Batch], verb: str, budgets: Sequence[DeltaBudget], progress: bool
) -> Iterable[Batch]:
    from tqdm import tqdm

    title = f"{verb} {len(budgets)} budgets"
    bar: Iterable[Batch] = tqdm(loader, desc=title, unit="batch", disable=not progress)
    return bar
