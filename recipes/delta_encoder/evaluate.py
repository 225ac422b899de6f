"""Measure a nested encoder: quality, calibration, cost and order of every budget.

All budgets predict the same masked tokens of the same rows, so they compare pairwise.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...configuration.budget import select_budgets
from ...configuration.delta_budget import DeltaBudget
from ...configuration.delta_settings import (
    choose_tokens_by_share,
    choose_tokens_by_threshold,
    delta_share,
)
from ...hub_cards.delta_pack import describe_delta, load_pack_as_stored, pack_identity
from ...modeling.delta_encoder_heads import DeltaEncoderForMaskedLM
from ..cli_errors import UsageError
from ..evaluation.budget_scoring import predict_masked
from ..evaluation.evaluation_table import Row
from ..evaluation.measure_budgets import Batch, measure_budgets
from .budget_latency import measure_latency
from .routed_prediction import CountedPrediction, predict_routed

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
    the tokens: in the predictions, the FLOPs and the latency. With a ``delta_token_threshold`` the
    share is counted on the evaluation rows, for each budget, and FLOPs and latency are those of it.

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
        what lies outside it, ``delta_token_ratio`` where that is below 1, and with a threshold
        ``delta_token_threshold`` and, of each budget with a delta, ``delta_token_share``.

    Raises:
        BudgetError: for a budget the model cannot be cut to.
        DataError: if there is nothing to predict.
        ModelFolderError: if a budget's loss is not finite.
    """
    share, threshold = delta_share(model.config), model.config.delta_token_threshold
    length = sequence_length or min(128, model.config.max_position_embeddings)
    counted = None if threshold is None else CountedPrediction(threshold)

    def work_of(budget: DeltaBudget) -> dict[str, float]:
        own = share if counted is None else counted.share(budget)
        return {"delta_ratio": 1.0 if own is None else own}

    def time_budgets(chosen: Sequence[DeltaBudget], predicted: int) -> Any:
        shares = {} if counted is None else {budget: counted.share(budget) for budget in chosen}
        return measure_latency(model, chosen, length, predicted, shares=shares)

    chosen = resolve_budgets(budgets, model.config)
    evaluation = measure_budgets(
        model,
        loader,
        chosen,
        predict=counted or (predict_masked if share == 1.0 else predict_routed),
        calibration_predict=None if counted is None else predict_routed,
        sequence_length=length,
        time_budgets=time_budgets if latency else None,
        work_of=work_of,
        **settings,
    )
    if share < 1.0:
        evaluation["delta_token_ratio"] = share
    if counted is not None:
        evaluation["delta_token_threshold"] = threshold
        for budget, entry in zip(chosen, evaluation["budgets"], strict=True):
            entry["delta_token_share"] = counted.share(budget)
    if (delta := describe_delta(model)) is not None:
        evaluation["delta"] = delta
    return evaluation


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
    delta_token_threshold: float | str | None = None,
    delta_pack: Path | None = None,
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
        delta_token_threshold: instead, the score above which a token gets the delta, or
            ``"learned"`` for the one that training noted.
        delta_pack: upgrade pack whose delta is measured in place of the model's own; the result
            then has its name and hash in ``delta_pack``.

    Returns:
        The rows of the table on the console.

    Raises:
        ModelFolderError: if the folder holds no model or no recipe.
        DataError: if the data cannot be used.
        DeltaPackError: if the pack cannot be read or does not fit the model.
        ValueError: for a ratio outside [0, 1], or for a model that cannot choose tokens.
        UsageError: for both a ratio and a threshold, or a threshold that no budget asks for.
    """
    from ..evaluation.evaluation_files import write_evaluation
    from .evaluation_inputs import open_run, stored_dtype

    # A file that is no pack fails before data are prepared.
    identity = None if delta_pack is None else pack_identity(delta_pack)
    run = open_run(model_dir, overrides)
    if delta_pack is not None:
        load_pack_as_stored(run.model, delta_pack, stored_dtype(model_dir))
    asked = list(budgets or run.recipe.evaluation.budgets)
    _choose_tokens(run.model.config, asked, delta_token_ratio, delta_token_threshold)
    evaluation = evaluate_run(run, budgets)
    if identity is not None:
        evaluation["delta_pack"] = identity
    return write_evaluation(evaluation, output)


def _choose_tokens(
    config: Any, budgets: Sequence[str], ratio: float | None, threshold: float | str | None
) -> None:
    """Set which tokens get the delta, as asked for; refuse a threshold that changes nothing."""
    if ratio is not None and threshold is not None:
        raise UsageError(
            f"delta_token_ratio {ratio} and delta_token_threshold {threshold} are both given; give "
            "one of them"
        )
    if ratio is not None:
        choose_tokens_by_share(config, ratio)
    if threshold is None:
        return
    choose_tokens_by_threshold(config, threshold)
    if not any(budget.has_routed_delta(config) for budget in resolve_budgets(budgets, config)):
        raise UsageError(
            f"delta_token_threshold {threshold} does nothing at {', '.join(budgets)}: there is no "
            f"delta left to route; leave it out, or add {DeltaBudget.full(config)}"
        )


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
        alias_confidence=settings.alias_confidence,
        seed=run.recipe.seed,
        calibration_loader=run.calibration_loader,
    )
    evaluation["data"].update(run.data)
    return evaluation
