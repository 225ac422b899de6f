"""Does a larger budget really predict better? Violations, their significance, and safe aliases.

Everything works on summed cross-entropies per row. All budgets must have seen the same rows with
the same masks, so the comparison is paired.
"""

from collections.abc import Sequence
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

# Rows of the resampling matrix held at once: bounds memory on large evaluation sets.
_CHUNK = 64
# A lattice has hundreds of nested pairs: at a lower level chance reverses some on other rows.
ALIAS_CONFIDENCE = 0.99


class Violation(NamedTuple):
    """A pair of nested budgets in the wrong order.

    Attributes:
        smaller: Index of the contained budget.
        larger: Index of the containing budget, whose loss is higher.
        excess: `CE(larger) - CE(smaller)`, > 0, in nats per token.
        interval: Bootstrap confidence interval of the excess.
    """

    smaller: int
    larger: int
    excess: float
    interval: tuple[float, float]

    @property
    def is_significant(self) -> bool:
        """Whether the interval lies above 0. Not corrected for the number of pairs."""
        return self.interval[0] > 0.0


class MonotonicityReport(NamedTuple):
    """Violations among the nested pairs, tolerance 0."""

    pairs: int
    violations: tuple[Violation, ...]

    @property
    def raw_violations(self) -> int:
        """Number of pairs whose larger budget has the higher loss."""
        return len(self.violations)

    @property
    def significant_violations(self) -> int:
        """Number of violations that resampling of the rows does not explain."""
        return sum(violation.is_significant for violation in self.violations)


def nested_pairs(budgets: Sequence[Any]) -> list[tuple[int, int]]:
    """Return the index pairs `(i, j)` with `budgets[i]` contained in `budgets[j]`, `i != j`."""
    return [
        (i, j)
        for i, small in enumerate(budgets)
        for j, large in enumerate(budgets)
        if i != j and small != large and small <= large
    ]


def bootstrap_means(
    row_losses: Array, row_tokens: Array, samples: int, seed: int
) -> Array:
    """Resample rows with replacement and return the mean loss per token of each resample.

    The same rows are drawn for all budgets. The mean is the ratio of the summed losses to the
    summed tokens of the drawn rows.

    Args:
        row_losses: `(budgets, rows)` summed cross-entropies.
        row_tokens: `(rows,)` predicted tokens.
        samples: Resamples, >= 1.
        seed: Seed of the draws.

    Returns:
        `(samples, budgets)`.

    Raises:
        ValueError: If shapes do not fit or nothing was predicted.
    """
    _check(row_losses, row_tokens)
    if samples < 1:
        raise ValueError(f"bootstrap samples are {samples}, give 1 or more (1000 is common)")
    generator = np.random.default_rng(seed)
    # Rows without a predicted token carry no information and could make a resample empty.
    kept = row_tokens > 0
    losses, tokens = row_losses[:, kept], row_tokens[kept]
    rows = tokens.size
    means = np.empty((samples, losses.shape[0]))
    for start in range(0, samples, _CHUNK):
        count = min(_CHUNK, samples - start)
        drawn = generator.integers(rows, size=(count, rows))
        weights = np.stack([np.bincount(draw, minlength=rows) for draw in drawn])
        means[start : start + count] = (weights @ losses.T) / (weights @ tokens)[:, None]
    return means


def confidence_interval(values: Array, level: float = 0.95) -> tuple[float, float]:
    """Return the percentile interval of bootstrap values `(samples,)`."""
    tail = (1.0 - level) / 2.0
    low, high = np.quantile(values, [tail, 1.0 - tail])
    return float(low), float(high)


def find_violations(
    row_losses: Array,
    row_tokens: Array,
    pairs: Sequence[tuple[int, int]],
    means: Array | None = None,
    level: float = 0.95,
) -> MonotonicityReport:
    """Find the nested pairs whose larger budget has the higher mean loss per token.

    Args:
        row_losses: `(budgets, rows)` summed cross-entropies.
        row_tokens: `(rows,)` predicted tokens.
        pairs: From `nested_pairs`.
        means: From `bootstrap_means` on the same arrays; None draws 1000 resamples with seed 0.
        level: Level of the two-sided interval.

    Raises:
        ValueError: If shapes do not fit or nothing was predicted.
    """
    _check(row_losses, row_tokens)
    if means is None:
        means = bootstrap_means(row_losses, row_tokens, samples=1000, seed=0)
    loss = row_losses.sum(axis=1) / row_tokens.sum()
    violations = tuple(
        Violation(
            small,
            large,
            float(loss[large] - loss[small]),
            confidence_interval(means[:, large] - means[:, small], level),
        )
        for small, large in pairs
        if loss[large] > loss[small]
    )
    return MonotonicityReport(len(pairs), violations)


def monotone_safe_alias(
    budgets: Sequence[Any],
    row_losses: Array,
    row_tokens: Array,
    confidence: float = ALIAS_CONFIDENCE,
) -> list[int]:
    """Map every budget to itself where it surely beats all it contains, else to the best of those.

    With A(b) = {alias(b') : b' < b}, the smallest budgets first:

        alias(b) = b                            if loss(b) - loss(a) + z se < 0 for all a in A(b)
                   argmin over A(b) of loss(a)  otherwise

    The aliased losses have no violation on the set the losses come from: alias(b) is never worse
    there than any of A(b). That is exact, not statistical. On other data it is an estimate, which
    the margin z se makes a safe one: a pair that rows cannot tell apart is served by one budget,
    the contained one, whose loss equals itself on any data.

    Args:
        budgets: Distinct, partially ordered budgets.
        row_losses: `(budgets, rows)` summed cross-entropies of the calibration rows.
        row_tokens: `(rows,)` predicted tokens.
        confidence: One-sided confidence of each comparison, in [0.5, 1): z is its normal quantile,
            se the standard error of the difference of ratios, paired by row (delta method). At 0.5
            the means alone decide.

    Returns:
        The index of the alias of each budget.

    Raises:
        ValueError: If shapes do not fit, nothing was predicted, a loss is not a number or the
            confidence is out of range.
    """
    _check(row_losses, row_tokens)
    if len(budgets) != len(row_losses):
        raise ValueError(
            f"got {len(budgets)} budgets and losses of {len(row_losses)}; give one row for each"
        )
    if not np.isfinite(row_losses).all():
        raise ValueError("calibration losses must be finite numbers")
    if not 0.5 <= confidence < 1.0:
        raise ValueError(f"confidence is {confidence}, give one in [0.5, 1)")
    quantile = NormalDist().inv_cdf(confidence)
    loss = row_losses.sum(axis=1) / row_tokens.sum()
    contained: list[list[int]] = [[] for _ in budgets]
    for small, large in nested_pairs(budgets):
        contained[large].append(small)
    alias = list(range(len(budgets)))
    # A budget contains more than any that it contains, so their aliases are known.
    for index in sorted(alias, key=lambda i: len(contained[i])):
        others = sorted({alias[small] for small in contained[index]}, key=lambda i: (loss[i], i))
        if not all(
            loss[index] - loss[other]
            + quantile * _standard_error(row_losses[index] - row_losses[other], row_tokens) < 0.0
            for other in others
        ):  # fmt: skip
            alias[index] = others[0]
    return alias


def _standard_error(differences: Array, tokens: Array) -> float:
    """Return the standard error of `sum(differences) / sum(tokens)` over rows `(rows,)`."""
    kept = tokens > 0
    rows = int(kept.sum())
    if rows < 2:
        return 0.0  # One row says nothing about others; its order is all there is.
    residuals = (differences - differences.sum() / tokens.sum() * tokens)[kept]
    return float(np.sqrt(rows / (rows - 1) * (residuals**2).sum()) / tokens.sum())


def _check(row_losses: Array, row_tokens: Array) -> None:
    if row_losses.ndim != 2 or row_tokens.shape != row_losses.shape[1:]:
        raise ValueError(
            f"row_losses {row_losses.shape} must be (budgets, rows) and row_tokens "
            f"{row_tokens.shape} (rows,)"
        )
    if not row_tokens.sum() > 0:
        raise ValueError("no row has a predicted token, so there is no loss to compare")
