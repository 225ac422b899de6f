from statistics import NormalDist

import numpy as np
import pytest
from nestling.configuration.configuration_delta_encoder import default_lattice
from nestling.configuration.delta_budget import DeltaBudget
from nestling.trainers.metrics.monotonicity import (
    bootstrap_means,
    confidence_interval,
    find_violations,
    monotone_safe_alias,
    nested_pairs,
)

LADDER = [DeltaBudget(0.5, 2, 2), DeltaBudget(0.5, 4, 2), DeltaBudget(1.0, 4, 4)]
INCOMPARABLE = [DeltaBudget(0.5, 4, 2), DeltaBudget(0.5, 2, 4)]


def test_pairs_follow_the_partial_order():
    assert nested_pairs(LADDER) == [(0, 1), (0, 2), (1, 2)]
    assert nested_pairs(INCOMPARABLE) == []
    # On the 3 x 3 x 3 lattice: 6^3 ordered triples minus the 27 equal ones.
    assert len(nested_pairs(default_lattice(4, 4))) == 216 - 27


def test_tolerance_is_zero():
    losses = np.array([[1.0, 1.0], [1.0, 1.0 + 1e-9], [1.0, 1.0]])
    report = find_violations(losses, np.ones(2), nested_pairs(LADDER))
    assert [(v.smaller, v.larger) for v in report.violations] == [(0, 1)]
    assert report.raw_violations == 1


def test_significance_needs_consistent_rows():
    noise = np.random.default_rng(1).normal(size=200)
    base = np.full(200, 5.0) + noise
    clearly_worse = base + 0.1  # the same on every row: paired, hence certain
    mixed = base + np.random.default_rng(2).normal(scale=3.0, size=200)
    mixed += (base.sum() + 0.5 - mixed.sum()) / 200  # barely worse on average
    tokens = np.full(200, 10.0)
    for worse, significant in ((clearly_worse, 1), (mixed, 0)):
        report = find_violations(np.stack([base, worse]), tokens, [(0, 1)])
        assert report.raw_violations == 1
        assert report.significant_violations == significant


def test_losses_are_weighted_by_tokens():
    # Row means would say budget 1 is worse (1 + 0 > 0.5 + 0.1); tokens say it is better.
    losses = np.array([[0.5, 10.0], [1.0, 0.0]])
    report = find_violations(losses, np.array([1.0, 100.0]), [(0, 1)])
    assert report.raw_violations == 0


def test_bootstrap_is_seeded_and_centred():
    generator = np.random.default_rng(0)
    tokens = generator.integers(1, 20, size=300).astype(float)
    losses = generator.gamma(2.0, size=(2, 300)) * tokens
    means = bootstrap_means(losses, tokens, samples=500, seed=3)
    assert np.array_equal(means, bootstrap_means(losses, tokens, samples=500, seed=3))
    assert not np.array_equal(means, bootstrap_means(losses, tokens, samples=500, seed=4))
    exact = losses.sum(axis=1) / tokens.sum()
    for column in range(2):
        low, high = confidence_interval(means[:, column])
        assert low < exact[column] < high
    # Standard error of a ratio estimator, by the delta method.
    residual = losses[0] - exact[0] * tokens
    expected = residual.std() / np.sqrt(300) / tokens.mean()
    assert means[:, 0].std() == pytest.approx(expected, rel=0.15)


def test_rows_without_predictions_change_nothing():
    losses, tokens = np.array([[1.0, 0.0, 3.0]]), np.array([1.0, 0.0, 1.0])
    means = bootstrap_means(losses, tokens, samples=64, seed=0)
    assert np.isfinite(means).all()
    assert np.array_equal(means, bootstrap_means(losses[:, [0, 2]], tokens[[0, 2]], 64, 0))


@pytest.mark.parametrize("confidence", [0.5, 0.99])
def test_alias_has_no_violation_for_any_losses(confidence):
    lattice = default_lattice(4, 4)
    pairs = nested_pairs(lattice)
    for seed in range(20):
        losses = np.random.default_rng(seed).normal(size=(len(lattice), 5))
        losses += np.random.default_rng(seed).normal(size=(len(lattice), 1))
        tokens = np.arange(1.0, 6.0)
        alias = monotone_safe_alias(lattice, losses, tokens, confidence)
        assert all(lattice[a] <= lattice[i] for i, a in enumerate(alias))
        assert find_violations(losses[alias], tokens, pairs).raw_violations == 0
        if confidence == 0.5:  # the means decide: no budget is served by a worse one
            assert (losses[alias].sum(axis=1) <= losses.sum(axis=1)).all()


def alias_of_means(means, confidence=0.99):
    """The same loss on all of four rows: every difference is certain."""
    return monotone_safe_alias(LADDER, np.outer(means, np.ones(4)), np.ones(4), confidence)


def test_alias_keeps_a_budget_that_nothing_beats():
    assert alias_of_means([3.0, 2.0, 1.0]) == [0, 1, 2]
    assert alias_of_means([1.0, 2.0, 0.5]) == [0, 0, 2]
    assert alias_of_means([1.0, 2.0, 1.0]) == [0, 0, 0]  # a tie goes to the cheaper one
    assert alias_of_means([1.0, 2.0, 1.5]) == [0, 0, 0]


def test_alias_needs_more_than_chance():
    """A gain of 0.5 +- se over 40 rows, se in closed form; its confidence is normal(0.5 / se)."""
    gains = 0.5 + np.array([2.0, -2.0] * 20)
    losses, tokens = np.stack([np.full(40, 9.0), 9.0 - gains]), np.ones(40)
    error = 2.0 / np.sqrt(39)
    certain = NormalDist().cdf(0.5 / error)
    pair = LADDER[:2]
    assert 0.9 < certain < 0.99
    assert monotone_safe_alias(pair, losses, tokens, certain - 1e-6) == [0, 1]
    assert monotone_safe_alias(pair, losses, tokens, certain + 1e-6) == [0, 0]
    assert monotone_safe_alias(pair, losses, tokens) == [0, 0]
    # rows without predictions count for nothing, a single row decides by its order
    padded = np.pad(losses, ((0, 0), (0, 60)))
    assert monotone_safe_alias(pair, padded, np.pad(tokens, (0, 60)), certain - 1e-6) == [0, 1]
    assert monotone_safe_alias(pair, losses[:, :1], tokens[:1]) == [0, 1]


def test_an_alias_of_a_sure_loser_is_beaten_by_what_contains_it():
    """The middle one is served by the first, so the last need only be sure of that one."""
    losses = np.array([[1.0] * 4, [1.5, 2.0, 1.5, 2.0], [0.9] * 4])
    assert monotone_safe_alias(LADDER, losses, np.ones(4)) == [0, 0, 2]


def test_aliases_hold_on_other_rows():
    """Every second step of a ladder gains nothing: means alone choose one that rows reverse."""
    ladder = [DeltaBudget(1.0, 4, depth) for depth in range(1, 9)]
    true = np.repeat([4.0, 3.5, 3.0, 2.5], 2)[:, None]
    pairs, tokens = nested_pairs(ladder), np.ones(200)
    left = {0.5: 0, 0.99: 0}
    for seed in range(50):
        draw = np.random.default_rng(seed)
        chosen, other = (true + draw.normal(scale=0.3, size=(8, 200)) for _ in range(2))
        for confidence in left:
            alias = monotone_safe_alias(ladder, chosen, tokens, confidence)
            left[confidence] += find_violations(other[alias], tokens, pairs).raw_violations
    assert left[0.5] > 30 and left[0.99] <= 3


def test_errors():
    ones = np.ones((3, 2))
    with pytest.raises(ValueError, match="one row for each"):
        monotone_safe_alias(LADDER, ones[:1], ones[0])
    with pytest.raises(ValueError, match="finite"):
        monotone_safe_alias(LADDER, ones * float("nan"), ones[0])
    with pytest.raises(ValueError, match=r"confidence is 1\.0, give one in \[0\.5, 1\)"):
        monotone_safe_alias(LADDER, ones, ones[0], 1.0)
    with pytest.raises(ValueError, match="no row"):
        find_violations(np.zeros((2, 3)), np.zeros(3), [])
    with pytest.raises(ValueError, match="must be"):
        find_violations(np.zeros((2, 3)), np.zeros(2), [])
    with pytest.raises(ValueError, match="samples"):
        bootstrap_means(np.ones((1, 1)), np.ones(1), samples=0, seed=0)
