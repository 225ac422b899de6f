"""Depth dropout, oversampling and phases: pure functions with the stated expectations."""

import math
from collections import Counter
from itertools import product

import pytest
from nestling.configuration.delta_budget import DeltaBudget
from nestling.trainers.budget_sampling import SandwichSampler
from nestling.trainers.phased_sampling import (
    AlternatingSampler,
    DepthDropoutSampler,
    LargestFirstSampler,
    PhasedSampler,
    expected_depth,
    smaller_half,
)
from nestling.trainers.schedules import Constant, CosineInterpolation
from nestling.trainers.survival_schedule import SurvivalSchedule
from nestling.trainers.training_phases import TrainingPhases

LATTICE = [DeltaBudget(w, h, d) for w, h, d in product((0.5, 0.75, 1.0), (6, 9, 12), (6, 9, 12))]
COSTS = [budget.depth * (budget.width * 10 + budget.heads) for budget in LATTICE]
SMALLEST, LARGEST = LATTICE[0], LATTICE[-1]
TOTAL = 1000


def sandwich(budgets: list[DeltaBudget], mode: str = "sandwich") -> SandwichSampler[DeltaBudget]:
    costs = [COSTS[LATTICE.index(budget)] for budget in budgets]
    return SandwichSampler(budgets, costs, 4, 0, mode, trunk_of=lambda budget: budget.trunk)


def phased(seed: int = 0) -> PhasedSampler:
    """The samplers of a recipe."""
    phases = TrainingPhases()
    whole, small = sandwich(LATTICE), sandwich(smaller_half(LATTICE, COSTS))
    alpha = phases.survival_alpha()
    oversampled = AlternatingSampler(whole, small)
    return PhasedSampler(
        phases,
        {
            "oversample_smallest": DepthDropoutSampler(oversampled, 6, alpha, seed),
            "sandwich": DepthDropoutSampler(whole, 6, alpha, seed),
            "fixed": sandwich([SMALLEST, LATTICE[13], LARGEST], "fixed"),
        },
    )


def test_depths_in_between_follow_the_survival_schedule() -> None:
    """Mean and frequencies of the draws; the ends keep their depth, no budget comes twice."""
    # One budget in between, in a trunk of its own: what is drawn is never dropped as a repeat.
    chain = [SMALLEST, DeltaBudget(0.75, 9, 9), LARGEST]
    sampler = DepthDropoutSampler(sandwich(chain), 6, Constant(0.5))
    draws = [sampler.sample(step, TOTAL) for step in range(6000)]
    assert all(draw[:2] == (LARGEST, SMALLEST) and len(draw) == 3 for draw in draws)
    depths = Counter(draw[2].depth for draw in draws)
    schedule = SurvivalSchedule(12, 6, 0.5)
    mean = sum(depth * count for depth, count in depths.items()) / 6000
    assert mean == pytest.approx(schedule.expected_depth(), abs=0.08)  # 3 standard errors
    assert sampler.expected_depth(7, TOTAL) == schedule.expected_depth()
    for depth in range(6, 13):
        survived = math.prod(schedule.keep_probability(layer) for layer in range(6, depth))
        chance = survived * (1 - schedule.keep_probability(depth) if depth < 12 else 1)
        error = (chance * (1 - chance) / 6000) ** 0.5
        assert depths[depth] / 6000 == pytest.approx(chance, abs=4 * error)
    whole = DepthDropoutSampler(sandwich(LATTICE), 6, Constant(0.5))
    for step in range(500):
        budgets = whole.sample(step, TOTAL)
        assert budgets[:2] == (LARGEST, SMALLEST) and len(set(budgets)) == len(budgets)


def test_alpha_is_that_of_the_step_and_zero_leaves_depths_alone() -> None:
    """Depths grow while alpha falls to 0."""
    sampler = DepthDropoutSampler(sandwich(LATTICE), 6, CosineInterpolation(1.0, 0.01))

    def mean_depth(steps: range) -> float:
        depths = [b.depth for step in steps for b in sampler.sample(step, TOTAL)[2:]]
        return sum(depths) / len(depths)

    assert mean_depth(range(200)) < 8 < 11 < mean_depth(range(900, 1000))
    still = DepthDropoutSampler(sandwich(LATTICE), 6, Constant(0.0))
    assert [still.sample(step, TOTAL) for step in range(60)] == [
        sandwich(LATTICE).sample(step) for step in range(60)
    ]


def test_the_expected_depth_is_that_of_the_step() -> None:
    """In phases, behind steps of the largest budget alone, and none where no depth is drawn."""
    alpha = TrainingPhases().survival_alpha()
    for step in (0, 200, 500):
        wanted = SurvivalSchedule(12, 6, alpha(step, TOTAL)).expected_depth()
        assert expected_depth(phased(), step, TOTAL) == wanted
    assert expected_depth(phased(), 900, TOTAL) is None  # the fixed list of calibration
    dropout = DepthDropoutSampler(sandwich(LATTICE), 6, CosineInterpolation(1.0, 0.0))
    late = LargestFirstSampler(dropout, 0.5)
    assert expected_depth(late, 499, TOTAL) is None
    for step in (500, 750):
        assert expected_depth(late, step, TOTAL) == expected_depth(dropout, step - 500, 500)
    assert expected_depth(LargestFirstSampler(sandwich(LATTICE), 0.5), 600, TOTAL) is None
    off = DepthDropoutSampler(sandwich(LATTICE), 6, Constant(0.0))
    assert expected_depth(off, 3, TOTAL) is None
    assert expected_depth(sandwich(LATTICE), 3, TOTAL) is None


def test_a_width_per_layer_keeps_its_depth() -> None:
    mixed = DeltaBudget((0.5,) * 3 + (0.75,) * 4, 6, 7)
    ends = [SMALLEST, LARGEST]
    inner = SandwichSampler([*ends, mixed], [1.0, 9.0, 4.0], trunk_of=lambda budget: budget.trunk)
    sampler = DepthDropoutSampler(inner, 6, Constant(1.0))
    assert all(sampler.sample(step, TOTAL)[2] == mixed for step in range(20))


def test_the_smaller_half_of_the_trunks() -> None:
    """Five of nine trunks with all their depths, and the largest budget."""
    half = smaller_half(LATTICE, COSTS)
    trunks = {budget.trunk for budget in half} - {LARGEST.trunk}
    assert len(trunks) == 5 and SMALLEST.trunk in trunks
    assert len(half) == 5 * 3 + 1 and LARGEST in half
    dearest = max(COSTS[LATTICE.index(budget)] for budget in half if budget != LARGEST)
    others = [c for b, c in zip(LATTICE, COSTS, strict=True) if b not in half and b.depth == 12]
    assert dearest <= min(others)


def test_packing_draws_the_smaller_half_more_often() -> None:
    """Of the budgets in between about (1 + 5/9) / 2; equally often in residualization."""
    half = {budget.trunk for budget in smaller_half(LATTICE, COSTS)} - {LARGEST.trunk}

    def share(steps: range) -> float:
        drawn = [b for step in steps for b in phased().sample(step, TOTAL)[2:]]
        return sum(budget.trunk in half for budget in drawn) / len(drawn)

    assert share(range(330)) == pytest.approx((1 + 5 / 9) / 2, abs=0.05)
    assert share(range(330, 660)) == pytest.approx(5 / 9, abs=0.05)


def test_calibration_runs_a_fixed_list() -> None:
    fixed = (LARGEST, LATTICE[13], SMALLEST)
    assert {phased().sample(step, TOTAL) for step in range(660, TOTAL)} == {fixed}


def test_pure_function_of_seed_step_and_length() -> None:
    """Any order of calls; equal on all ranks and after a resume, which build anew."""
    steps = list(range(0, TOTAL, 7))
    first = [phased().sample(step, TOTAL) for step in steps]
    backwards = phased()
    keyed = {step: backwards.sample(step, TOTAL) for step in reversed(steps)}
    assert [keyed[step] for step in steps] == first
    assert [phased(seed=1).sample(step, TOTAL) for step in steps] != first
    # Where a phase begins depends on the length of the run.
    assert len(phased().sample(70, 100)) == 3 and phased().sample(70, 100) == first[-1]


def test_every_mode_needs_a_sampler() -> None:
    with pytest.raises(ValueError, match="fixed"):
        PhasedSampler(TrainingPhases(), {"sandwich": sandwich(LATTICE),
                                         "oversample_smallest": sandwich(LATTICE)})  # fmt: skip


def test_the_largest_runs_alone_first() -> None:
    """Then the draws are those of a run that begins there."""
    whole = sandwich(LATTICE)
    sampler = LargestFirstSampler(whole, 0.3)
    draws = [sampler.sample(step, 10) for step in range(10)]
    assert draws[:3] == [(LARGEST,)] * 3
    assert draws[3:] == [whole.sample(step) for step in range(7)]
    assert LargestFirstSampler(whole, 0.0).sample(0, 10) == whole.sample(0)
    with pytest.raises(ValueError, match=r"\[0, 1\)"):
        LargestFirstSampler(whole, 1.0)
