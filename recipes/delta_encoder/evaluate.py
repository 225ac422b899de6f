"""Measure a nested encoder: quality, calibration, cost and order of every budget.

All budgets predict the same masked tokens of the same rows, so they compare pairwise.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ...configuration.budget import select_budgets
from ...configuration.delta_budget import DeltaBudget
from ...configuration.delta_settings import choose_tokens_by_share, delta_share
from ...hub_cards.delta_pack import describe_delta
from ...modeling.delta_encoder_heads import DeltaEncoderForMaskedLM
from ..cli_errors import ModelFolderError
from ..evaluation.budget_scoring import predict_masked, without_labels
from ..evaluation.evaluation_table import Row
from ..evaluation.measure_budgets import Batch, measure_budgets
from .budget_latency import measure_latency

if TYPE_CHECKING:
    from .evaluation_inputs import EvaluationInputs

BudgetRequest = DeltaBudget | str | tuple[Any, ...]


def run_full_evaluation(
    model: DeltaEncoderForMaskedLM,
    loader: Iterable[Batch],
    budgets: Sequence[BudgetRequest] | None = None,
    *,
    sequence_length: int | None = None,
    latency: bool = True,
    **settings: Any,
) -> dict[str, Any]:
    """Evaluate every budget on the same masked tokens; see `measure_budgets`.

    Where the configuration has a ``delta_token_ratio`` below 1, the delta runs on that share of
    the tokens: in the predictions, the FLOPs and the latency.

    Args:
        model: a masked LM of the family.
        loader: batches with fixed masks; read once.
        budgets: `DeltaBudget`, texts, names (``smallest``…) or tuples (0.5, 4, 4); None takes all
            budgets of the configuration.
        sequence_length: tokens of a sequence for FLOPs and latency; None takes 128, or the
            longest sequence of a model that is shorter.
        latency: time the sliced models on this CPU, at the same work as the FLOPs.
        **settings: the rest of `measure_budgets`.

    Returns:
        What `measure_budgets` returns; of a model with a base slice also ``delta``, the bytes of
        what lies outside it, and ``delta_token_ratio`` where that is below 1.

    Raises:
        BudgetError: for a budget the model cannot be cut to.
        DataError: if there is nothing to predict.
        ModelFolderError: if a budget's loss is not finite, or if the model chooses tokens by a
            threshold, with which no FLOPs can be stated.
    """
    if model.config.delta_token_threshold is not None:
        raise ModelFolderError(
            f"delta_token_threshold {model.config.delta_token_threshold} makes the cost depend on "
            "the text; measure a share instead: --delta-token-ratio R with R in [0, 1]"
        )
    share = delta_share(model.config)
    length = sequence_length or min(128, model.config.max_position_embeddings)

    def time_budgets(chosen: Sequence[DeltaBudget], predicted: int) -> Any:
        return measure_latency(model, chosen, length, predicted)

    evaluation = measure_budgets(
        model,
        loader,
        resolve_budgets(budgets, model.config),
        predict=predict_masked if share == 1.0 else predict_routed,
        sequence_length=length,
        time_budgets=time_budgets if latency else None,
        work={"delta_ratio": share},
        **settings,
    )
    if share < 1.0:
        evaluation["delta_token_ratio"] = share
    if (delta := describe_delta(model)) is not None:
        evaluation["delta"] = delta
    return evaluation


def predict_routed(
    model: DeltaEncoderForMaskedLM, inputs: dict[str, Tensor], budgets: Sequence[DeltaBudget]
) -> tuple[Sequence[Tensor], Tensor]:
    """Run a masked LM with the delta on the tokens that its configuration asks for.

    Each budget is a pass of its own: `predict_masked` runs the delta on all tokens.
    """
    rest, is_predicted, labels = without_labels(inputs)
    logits = []
    for budget in budgets:
        states = model.model(**rest, budget=budget).last_hidden_state
        logits.append(model.decoder(model.head(states[is_predicted])))
    return logits, labels


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
    *,
    delta_token_ratio: float | None = None,
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
        delta_token_ratio: share of the tokens that get the delta; None asks the configuration of
            the model, which says all unless it was changed.

    Returns:
        The rows of the table on the console.

    Raises:
        ModelFolderError: if the folder holds no model or no recipe.
        DataError: if the data cannot be used.
        ValueError: for a ratio outside [0, 1], or for a model that cannot choose tokens.
    """
    from ..evaluation.evaluation_files import write_evaluation
    from .evaluation_inputs import open_run

    run = open_run(model_dir, overrides)
    if delta_token_ratio is not None:
        choose_tokens_by_share(run.model.config, delta_token_ratio)
    return write_evaluation(evaluate_run(run, budgets), output)


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
