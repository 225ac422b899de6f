"""Sandwich sampling over a 27-budget lattice."""

from dataclasses import dataclass
from itertools import product

import pytest
from nestling.trainers.budget_sampling import SandwichSampler


@dataclass(frozen=True)
class Box:
    """A budget with three axes."""

    width: int
    heads: int
    depth: int

    def __le__(self, other: "Box") -> bool:
        """Compare on every axis."""
        mine, theirs = (self.width, self.heads, self.depth), (other.width, other.heads, other.depth)
        return all(a <= b for a, b in zip(mine, theirs, strict=True))


LATTICE = [Box(*sizes) for sizes in product((2, 3, 4), (1, 2, 3), (3, 6, 9))]
FLOPS = [box.depth * (box.width * 10 + box.heads * 7) for box in LATTICE]
LARGEST, SMALLEST = Box(4, 3, 9), Box(2, 1, 3)


def test_largest_first_smallest_second_all_distinct() -> None:
    """At every step."""
    sampler = SandwichSampler(LATTICE, FLOPS, budgets_per_step=4)
    for step in range(100):
        budgets = sampler.sample(step)
        assert budgets[:2] == (LARGEST, SMALLEST)
        assert len(set(budgets)) == 4


def test_pure_function_of_seed_and_step() -> None:
    """Any order of calls, any order of the input; another seed differs."""
    steps = list(range(60))
    first = [SandwichSampler(LATTICE, FLOPS, seed=3).sample(step) for step in steps]
    turned = SandwichSampler(LATTICE[::-1], FLOPS[::-1], seed=3)
    keyed = {step: turned.sample(step) for step in reversed(steps)}
    assert [keyed[step] for step in steps] == first
    assert [SandwichSampler(LATTICE, FLOPS, seed=4).sample(step) for step in steps] != first


@pytest.mark.parametrize(("per_step", "within"), [(3, 25), (4, 13), (5, 9), (27, 1)])
def test_every_budget_is_reached(per_step: int, within: int) -> None:
    """In as many first steps as the longest stratum has budgets; in any 2m - 1 steps later."""
    sampler = SandwichSampler(LATTICE, FLOPS, budgets_per_step=per_step)
    for start, steps in ((0, within), (41, 2 * within - 1), (1000, 2 * within - 1)):
        seen = {box for step in range(start, start + steps) for box in sampler.sample(step)}
        assert seen == set(LATTICE)


def test_the_middle_is_stratified_by_flops() -> None:
    """One draw from the cheap half, one from the dear half."""
    sampler = SandwichSampler(LATTICE, FLOPS, budgets_per_step=4)
    cost = dict(zip(LATTICE, FLOPS, strict=True))
    middle = sorted(cost[box] for box in LATTICE if box not in (LARGEST, SMALLEST))
    draws = [sampler.sample(step)[2:] for step in range(50)]
    assert max(cost[low] for low, _ in draws) <= min(cost[high] for _, high in draws)
    assert {cost[box] for pair in draws for box in pair} == set(middle)


def test_few_budgets() -> None:
    """One budget, one per step, and more asked for than there are."""
    assert SandwichSampler(LATTICE, FLOPS, budgets_per_step=1).sample(0) == (LARGEST,)
    assert SandwichSampler(LATTICE, FLOPS, budgets_per_step=2).sample(5) == (LARGEST, SMALLEST)
    assert SandwichSampler([LARGEST], [1.0]).sample(0) == (LARGEST,)
    assert set(SandwichSampler(LATTICE, FLOPS, budgets_per_step=99).sample(0)) == set(LATTICE)


def test_fixed_mode() -> None:
    """All budgets, largest first, at every step; they need no common smallest one."""
    chosen = [Box(2, 3, 3), Box(4, 1, 3), LARGEST]
    sampler = SandwichSampler(chosen, [5.0, 4.0, 9.0], mode="fixed")
    assert sampler.sample(0) == sampler.sample(17) == (LARGEST, Box(2, 3, 3), Box(4, 1, 3))


@pytest.mark.parametrize(
    ("budgets", "flops", "options", "message"),
    [
        ([], [], {}, "got 0 budgets"),
        (LATTICE, FLOPS[:-1], {}, "27 budgets and 26 FLOP"),
        ([LARGEST, LARGEST], [1, 1], {}, "listed twice"),
        ([Box(2, 3, 3), Box(4, 1, 3)], [1, 2], {}, "no largest budget"),
        ([Box(2, 3, 3), Box(4, 1, 3), LARGEST], [1, 2, 3], {}, "no smallest budget"),
        (LATTICE, FLOPS, {"budgets_per_step": 0}, "budgets_per_step is 0"),
        (LATTICE, FLOPS, {"mode": "random"}, "mode is 'random'"),
    ],
)
def test_arguments_are_checked(budgets: list, flops: list, options: dict, message: str) -> None:
    """Each error says what is wrong."""
    with pytest.raises(ValueError, match=message):
        SandwichSampler(budgets, flops, **options)


def test_with_trunks_the_middle_shares_one_pass() -> None:
    """Two budgets beside the ends, equal but for depth, so a step runs three trunks at most."""
    sampler = SandwichSampler(LATTICE, FLOPS, 4, trunk_of=lambda box: (box.width, box.heads))
    for step in range(60):
        largest, smallest, *middle = sampler.sample(step)
        assert (largest, smallest) == (LARGEST, SMALLEST)
        assert len({(box.width, box.heads) for box in middle}) == 1
        assert len(set(middle)) == 2 and not {largest, smallest} & set(middle)


def test_with_trunks_every_budget_is_reached_equally_often_per_trunk() -> None:
    """Nine trunks: 27 rounds of nine steps give each budget of a full trunk the same share."""
    sampler = SandwichSampler(LATTICE, FLOPS, 4, trunk_of=lambda box: (box.width, box.heads))
    drawn = [box for step in range(9 * 27) for box in sampler.sample(step)[2:]]
    assert set(drawn) == set(LATTICE) - {LARGEST, SMALLEST}
    inner = {drawn.count(box) for box in LATTICE if box.width == 3}
    assert inner == {18}
    assert {box for step in range(18) for box in sampler.sample(step)} == set(LATTICE)
