"""Prefix depth dropout: exact depths, and draws that agree with them."""

import random
from collections import Counter
from itertools import product

import pytest
from nestling.trainers.survival_schedule import SurvivalSchedule


def slow_depths(layers: int, floor: int, alpha: float) -> dict[int, float]:
    """Enumerate every pattern of surviving layers and stop at the first failure."""
    keep = [1 - alpha * layer / (layers - 1) for layer in range(layers)]
    depths = dict.fromkeys(range(floor, layers + 1), 0.0)
    for pattern in product((True, False), repeat=layers - floor):
        chance, depth = 1.0, layers
        for offset, survives in enumerate(pattern):
            probability = keep[floor + offset]
            chance *= probability if survives else 1 - probability
            if not survives and depth == layers:
                depth = floor + offset
        depths[depth] += chance
    return depths


@pytest.mark.parametrize(("layers", "floor", "alpha"), [(12, 3, 0.5), (6, 1, 1.0), (5, 5, 0.7)])
def test_expected_depth_equals_the_enumeration(layers: int, floor: int, alpha: float) -> None:
    schedule = SurvivalSchedule(layers, floor, alpha)
    chances = slow_depths(layers, floor, alpha)
    mean = sum(depth * chance for depth, chance in chances.items())
    assert schedule.expected_depth() == pytest.approx(mean, abs=1e-12)


def test_expected_depth_is_not_the_sum_of_marginals() -> None:
    """Twelve layers, floor 3, alpha 0.5: 6.14 layers on average, where marginals promise 9.14."""
    schedule = SurvivalSchedule(12, 3, 0.5)
    marginals = 3 + sum(schedule.keep_probability(layer) for layer in range(3, 12))
    assert marginals == pytest.approx(9.14, abs=0.005)
    assert schedule.expected_depth() == pytest.approx(6.1415, abs=1e-4)
    rng = random.Random(0)
    draws = [schedule.sample(rng) for _ in range(20_000)]
    assert sum(draws) / len(draws) == pytest.approx(6.1415, abs=0.06)  # 3 standard errors


def test_draws_have_the_stated_probabilities() -> None:
    """Each depth within four standard errors."""
    schedule = SurvivalSchedule(6, 2, 0.8)
    rng = random.Random(1)
    counts = Counter(schedule.sample(rng) for _ in range(20_000))
    for depth, chance in slow_depths(6, 2, 0.8).items():
        error = (chance * (1 - chance) / 20_000) ** 0.5
        assert counts[depth] / 20_000 == pytest.approx(chance, abs=4 * error)
    assert set(counts) <= set(range(2, 7))


def test_equal_seeds_give_equal_depths() -> None:
    schedule = SurvivalSchedule(12, 3, 0.5)
    ranks = [[schedule.sample(random.Random(f"7/{step}")) for step in range(50)] for _ in range(2)]
    assert ranks[0] == ranks[1] and len(set(ranks[0])) > 3


def test_alpha_zero_and_one_layer_run_everything() -> None:
    assert SurvivalSchedule(4, 1, 0.0).expected_depth() == 4
    assert SurvivalSchedule(4, 1, 0.0).sample(random.Random(0)) == 4
    assert SurvivalSchedule(1, 1, 1.0).expected_depth() == 1
    assert SurvivalSchedule(5, 5, 1.0).sample(random.Random(0)) == 5


def test_arguments_are_checked() -> None:
    with pytest.raises(ValueError, match=r"floor is 0, it must lie in 1\.\.12"):
        SurvivalSchedule(12, 0)
    with pytest.raises(ValueError, match="floor is 13"):
        SurvivalSchedule(12, 13)
    with pytest.raises(ValueError, match=r"alpha is 1\.1"):
        SurvivalSchedule(12, 3, 1.1)
    with pytest.raises(ValueError, match="layers is 0"):
        SurvivalSchedule(0)
