"""From scores to the numbers of the evaluation file."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...configuration.budget import ends_of, middle_of
from ...trainers.metrics.autc import area_under_tradeoff_curve
from ...trainers.metrics.monotonicity import confidence_interval, find_violations, nested_pairs
from ...trainers.metrics.perplexity import perplexity
from .budget_scoring import Scores

Means = NDArray[np.float64]


def quality_of(scores: Scores, index: int, means: Means) -> dict[str, Any]:
    """Return what budget number ``index`` predicts well or badly.

    Args:
        scores: scores of all budgets.
        index: which one.
        means: (samples, budgets) bootstrap means, for the interval.
    """
    budget, score = scores.budgets[index], scores.by_budget[index]
    tokens = int(scores.row_tokens.sum())
    total = float(scores.row_losses[index].sum())
    entry: dict[str, Any] = {
        "budget": str(budget),
        "folder": budget.folder_name,
        "cross_entropy": total / tokens,
        "cross_entropy_ci": list(confidence_interval(means[:, index])),
        "perplexity": perplexity(total, tokens),
        "accuracy": score.correct / tokens,
        "ece": score.bins.error(),
        # The mean negative log-likelihood of a language model is its cross-entropy.
        "nll": total / tokens,
    }
    if score.temperature is not None:
        entry["temperature"] = score.temperature
        entry["ece_after_temperature"] = score.scaled_bins.error()
        entry["nll_after_temperature"] = score.scaled_loss / tokens
    return entry


def cost_of(
    budget: Any,
    config: Any,
    dtype: str,
    sequence_length: int,
    predicted_tokens: int,
    **work: Any,
) -> dict[str, int]:
    """Return parameters, FLOPs and bytes of a language model at one budget.

    ``flops`` count one sequence through the trunk and the head on its predicted tokens, which a
    narrower hidden width makes cheaper as well; ``trunk_flops`` leave the head out.

    Args:
        budget: the budget.
        config: configuration of the nested model.
        dtype: stored dtype of the weights.
        sequence_length: tokens of the sequence.
        predicted_tokens: tokens of it that the head predicts.
        **work: more that ``budget.flops`` of the family takes.
    """
    whole = {**work, "predicted_tokens": predicted_tokens}
    return {
        "parameters": budget.parameters(config),
        "trunk_flops": budget.flops(config, sequence_length, **work),
        "flops": budget.flops(config, sequence_length, **whole),
        "bytes": budget.weight_bytes(config, dtype),
    }


def fitted_temperatures(calibrated: Scores) -> list[float]:
    """Return the temperature of each budget that fits the calibration data best."""
    return [score.fit.best() for score in calibrated.by_budget if score.fit is not None]


def lattice_anchors(
    config: Any, sequence_length: int, predicted_tokens: int
) -> tuple[float, float]:
    """Return the FLOPs, head included, of the cheapest and the dearest budget of ``config``."""
    flops = [
        budget.flops(config, sequence_length, predicted_tokens=predicted_tokens)
        for budget in config.budget_list()
    ]
    return float(min(flops)), float(max(flops))


def autc_of(entries: Sequence[dict[str, Any]], anchors: tuple[float, float]) -> float | None:
    """Return the AUTC of the entries; None for a model of one budget, which spans no curve."""
    if anchors[0] >= anchors[1]:
        return None
    return area_under_tradeoff_curve(
        [entry["flops"] for entry in entries], [entry["accuracy"] for entry in entries], anchors
    )


def monotonicity_of(
    scores: Scores, means: Means, aliases: Sequence[int], calibrated: Scores | None
) -> dict[str, int | None]:
    """Count nested pairs in the wrong order, as measured and after replacing aliases.

    Args:
        scores: scores of all budgets.
        means: (samples, budgets) bootstrap means.
        aliases: index of the safe alias of each budget.
        calibrated: scores on the rows the aliases were chosen on; None where those are the
            evaluation rows themselves.

    Returns:
        ``alias_violations`` on the evaluation rows; ``alias_violations_calibration`` on the
        calibration rows, which is 0 by construction, or None without such rows.
    """
    pairs = nested_pairs(scores.budgets)
    raw = find_violations(scores.row_losses, scores.row_tokens, pairs, means)
    order = list(aliases)
    safe = find_violations(scores.row_losses[order], scores.row_tokens, pairs, means[:, order])
    return {
        "pairs": raw.pairs,
        "raw_violations": raw.raw_violations,
        "significant_violations": raw.significant_violations,
        "alias_violations": safe.raw_violations,
        "alias_violations_calibration": None
        if calibrated is None
        else sum(
            bool(calibrated.losses[order[large]] > calibrated.losses[order[small]])
            for small, large in pairs
        ),
    }


def named_budgets(config: Any) -> dict[str, str]:
    """Return which budgets the names smallest, middle and largest stand for.

    The names belong to the model: neither the length nor the masks of an evaluation move them.
    """
    trained = config.budget_list()
    smallest, largest = ends_of(trained)
    middle = middle_of(trained, config)
    return {"smallest": str(smallest), "middle": str(middle), "largest": str(largest)}
