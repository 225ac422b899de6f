"""Sandwich sampling over a 27-budget lattice."""

from collections import Counter
from dataclasses import astuple, dataclass
from itertools import product

import pytest
from nestling.trainers.budget_sampling import RandomSampler, SandwichSampler


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


def trunk_of(box: Box) -> tuple[int, int]:
    """Boxes that differ only in depth."""
    return (box.width, box.heads)


def sandwich(budgets: list[Box], budgets_per_step: int = 4, seed: int = 0) -> SandwichSampler[Box]:
    """A sampler whose FLOPs follow from the axes."""
    flops = [box.depth * (box.width * 10 + box.heads * 7) for box in budgets]
    return SandwichSampler(budgets, flops, budgets_per_step, seed, trunk_of=trunk_of)


def middle_counts(sampler: SandwichSampler[Box], steps: range) -> Counter[Box]:
    """How often each budget beside the ends is drawn."""
    return Counter(box for step in steps for box in sampler.sample(step)[2:])


# Beside the lattice: trunks of one depth each, and one of them holds the smallest budget.
EXTRA = [*LATTICE, Box(1, 1, 3), Box(5, 4, 9), Box(3, 4, 6), Box(4, 4, 6)]
# Nothing but trunks of one depth.
CHAIN = [Box(size, size, size) for size in range(1, 9)]


@pytest.mark.parametrize("lattice", [LATTICE, EXTRA, CHAIN], ids=["full", "extra", "chain"])
@pytest.mark.parametrize("per_step", [3, 4, 5, 6])
def test_every_step_has_the_ends_and_as_many_budgets_as_asked(
    lattice: list[Box], per_step: int
) -> None:
    """Whatever the trunks: the ends first, none twice, never fewer."""
    sampler = sandwich(lattice, per_step)
    ends = (max(lattice, key=astuple), min(lattice, key=astuple))
    for step in range(5 * len(lattice)):
        budgets = sampler.sample(step)
        assert budgets[:2] == ends
        assert len(set(budgets)) == len(budgets) == per_step


@pytest.mark.parametrize("lattice", [LATTICE, EXTRA, CHAIN], ids=["full", "extra", "chain"])
@pytest.mark.parametrize("per_step", [3, 4, 5, 6])
def test_budgets_in_between_are_drawn_equally_often(lattice: list[Box], per_step: int) -> None:
    """Exactly, in every round of as many steps as there are; nearly, wherever one stops."""
    sampler = sandwich(lattice, per_step)
    middle = set(lattice) - set(sampler.sample(0)[:2])
    each = per_step - 2
    for round_ in range(6):
        steps = range(round_ * len(middle), (round_ + 1) * len(middle))
        assert middle_counts(sampler, steps) == dict.fromkeys(middle, each)
    counts = Counter(dict.fromkeys(middle, 0))
    for step in range(10 * len(middle) + len(middle) // 2):
        counts.update(sampler.sample(step)[2:])
        assert max(counts.values()) - min(counts.values()) <= each
    assert max(counts.values()) / min(counts.values()) <= 11 / 10


def test_the_middle_shares_one_pass() -> None:
    """Two budgets beside the ends, equal but for depth, so a step runs three trunks at most."""
    sampler = sandwich(LATTICE)
    for step in range(100):
        assert len({trunk_of(box) for box in sampler.sample(step)[2:]}) == 1


def test_only_trunks_too_short_for_a_step_are_mixed() -> None:
    """Each of the two trunks of one depth joins one other, or both each other."""
    sampler = sandwich(EXTRA)
    short = {Box(3, 4, 6), Box(4, 4, 6)}
    for step in range(200):
        middle = set(sampler.sample(step)[2:])
        assert len({trunk_of(box) for box in middle}) == (2 if middle & short else 1)


def test_pure_function_of_seed_and_step() -> None:
    """Any order of calls, any order of the input; another seed and another round differ."""
    steps = list(range(60))
    first = [sandwich(EXTRA, seed=3).sample(step) for step in steps]
    turned = sandwich(EXTRA[::-1], seed=3)
    keyed = {step: turned.sample(step) for step in reversed(steps)}
    assert [keyed[step] for step in steps] == first
    assert [sandwich(EXTRA, seed=4).sample(step) for step in steps] != first
    assert first[:29] != first[29:58]


def test_few_budgets() -> None:
    """One budget, one per step, and more asked for than there are."""
    assert sandwich(LATTICE, 1).sample(0) == (LARGEST,)
    assert sandwich(LATTICE, 2).sample(5) == (LARGEST, SMALLEST)
    assert sandwich([LARGEST]).sample(0) == (LARGEST,)
    assert sandwich([SMALLEST, LARGEST]).sample(3) == (LARGEST, SMALLEST)
    assert set(sandwich(LATTICE, 99).sample(0)) == set(LATTICE)


def test_fixed_mode() -> None:
    """All budgets, largest first, at every step; they need no common smallest one."""
    chosen = [Box(2, 3, 3), Box(4, 1, 3), LARGEST]
    sampler = SandwichSampler(chosen, [5.0, 4.0, 9.0], mode="fixed", trunk_of=trunk_of)
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
        SandwichSampler(budgets, flops, **options, trunk_of=trunk_of)


def test_random_budgets_are_drawn_evenly_and_largest_first() -> None:
    """A pure function of seed and step, without the sandwich."""
    sampler = RandomSampler(LATTICE, FLOPS, budgets_per_step=2, seed=3)
    cost = dict(zip(LATTICE, FLOPS, strict=True))
    draws = [sampler.sample(step, 100) for step in range(2700)]
    for first, second in draws:
        assert first != second and cost[first] >= cost[second]
    counts = Counter(box for draw in draws for box in draw)
    assert set(counts) == set(LATTICE)
    # 200 expected each; five standard deviations of a binomial.
    assert all(abs(count - 200) < 5 * 200**0.5 for count in counts.values())
    again = RandomSampler(LATTICE, FLOPS, budgets_per_step=2, seed=3)
    assert [again.sample(step, 7) for step in range(50)] == draws[:50]
    other = RandomSampler(LATTICE, FLOPS, budgets_per_step=2, seed=4)
    assert [other.sample(step) for step in range(50)] != draws[:50]


def test_random_budgets_refuse_what_cannot_be_drawn() -> None:
    """None, or twice the same; asking for more than there are takes all."""
    with pytest.raises(ValueError, match="budgets_per_step is 0"):
        RandomSampler(LATTICE, FLOPS, 0)
    assert set(RandomSampler(LATTICE, FLOPS, 40).sample(0)) == set(LATTICE)
    with pytest.raises(ValueError, match="1 budgets and 2 FLOP numbers"):
        RandomSampler([SMALLEST], [1.0, 2.0])
    with pytest.raises(ValueError, match="listed twice"):
        RandomSampler([SMALLEST, SMALLEST], [1.0, 1.0])
