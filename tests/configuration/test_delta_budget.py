"""Text form, folder names, partial order and sizes of the Delta-Matryoshka budget."""

import random
from itertools import product
from typing import Any

import pytest
from nestling.configuration import BudgetError, DeltaBudget, DeltaEncoderConfig
from nestling.configuration.budget import (
    Budget,
    ends_of,
    format_ratio,
    middle_of,
    ratio_digits,
    select_budgets,
)
from nestling.modeling.families import FAMILIES


def _config(**overrides: Any) -> DeltaEncoderConfig:
    return DeltaEncoderConfig(**{**FAMILIES["delta_encoder"].tiny, **overrides})


def _random_budgets(count: int, seed: int, sizes: int = 12) -> list[DeltaBudget]:
    chance = random.Random(seed)

    def ratio() -> float:
        return round(chance.choice([chance.uniform(0.000001, 1.0), 0.5, 1.0, 0.125]), 6)

    budgets = []
    for _ in range(count):
        depth = chance.randint(1, sizes)
        per_layer = depth > 1 and chance.random() < 0.4
        budgets.append(
            DeltaBudget(
                width=tuple(ratio() for _ in range(depth)) if per_layer else ratio(),
                heads=chance.randint(1, sizes),
                depth=depth,
                hidden=chance.choice([None, chance.randint(1, 1024)]),
            )
        )
    return budgets


@pytest.mark.parametrize(
    ("text", "budget"),
    [
        ("0.5:6:6", DeltaBudget(0.5, 6, 6)),
        ("1.0:12:12", DeltaBudget(1.0, 12, 12)),
        ("0.5:6:6:256", DeltaBudget(0.5, 6, 6, 256)),
        ("0.5,0.5,1.0:4:3", DeltaBudget((0.5, 0.5, 1.0), 4, 3)),
        ("0.125:1:1", DeltaBudget(0.125, 1, 1)),
    ],
)
def test_text_form(text: str, budget: DeltaBudget) -> None:
    assert DeltaBudget.parse(text) == budget
    assert DeltaBudget.parse(f"  {text} ") == budget
    assert str(budget) == text
    assert isinstance(budget, Budget)


def test_random_budgets_survive_print_and_parse() -> None:
    for budget in _random_budgets(500, seed=0):
        assert DeltaBudget.parse(str(budget)) == budget, budget


@pytest.mark.parametrize(
    "budget",
    [
        DeltaBudget(1 / 3, 2, 2),
        DeltaBudget((0.5,), 2, 1),
        DeltaBudget((2 / 3, 1.0), 2, 2),
        DeltaBudget(1, 2, 2),
    ],
    ids=["a third", "one layer", "two thirds", "whole"],
)
def test_budgets_made_in_python_survive_print_and_parse(budget: DeltaBudget) -> None:
    assert DeltaBudget.parse(str(budget)) == budget


def test_a_width_too_small_to_print_is_refused() -> None:
    with pytest.raises(BudgetError, match=r"1e-09.*must be"):
        DeltaBudget(1e-9, 2, 2)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has 1 parts; write width:heads:depth"),
        ("0.5:6", "has 2 parts; write width:heads:depth"),
        ("0.5:6:6:8:9", "has 5 parts"),
        ("x:6:6", r"width 'x' in budget 'x:6:6' must be a number in \(0, 1\], such as 0.5"),
        ("0.5,:6:2", r"width ''.*must be a number in \(0, 1\]"),
        ("0:6:6", r"width '0'.*must be a number in \(0, 1\]"),
        ("1.5:6:6", r"width '1.5'.*must be a number in \(0, 1\]"),
        ("nan:6:6", r"width 'nan'.*must be a number in \(0, 1\]"),
        ("inf:6:6", r"width 'inf'.*must be a number in \(0, 1\]"),
        ("-0.5:6:6", r"width '-0.5'.*must be a number in \(0, 1\]"),
        ("0.5:0:6", "heads '0'.*must be a whole number >= 1"),
        ("0.5:6:-1", "depth '-1'.*must be a whole number >= 1"),
        ("0.5:6:2.0", r"depth '2\.0'.*must be a whole number >= 1"),
        ("0.5:6:6:0", "hidden '0'.*must be a whole number >= 1"),
        ("0.5:6:6:", "hidden ''.*must be a whole number >= 1"),
        ("0.5,1.0:6:3", "2 widths for 3 layers; give one width for each kept layer"),
    ],
)
def test_unreadable_text_is_explained(text: str, message: str) -> None:
    with pytest.raises(BudgetError, match=message):
        DeltaBudget.parse(text)


@pytest.mark.parametrize("value", [4332, 0.5, None, ["0.5:6:6"], True])
def test_the_yaml_trap_is_explained(value: object) -> None:
    with pytest.raises(BudgetError, match=r"quote budgets in YAML .*reads 1:12:12 as 4332"):
        DeltaBudget.parse(value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0.0, 1, 1), r"width 0.0 must be in \(0, 1\]"),
        (((0.5, 2.0), 1, 2), r"width \(0.5, 2.0\) must be in \(0, 1\]"),
        (((), 1, 1), r"width \(\) must be in"),
        ((float("nan"), 1, 1), "width nan must be in"),
        ((0.5, 0, 1), "heads 0 must be a whole number >= 1"),
        ((0.5, 1, True), "depth True must be a whole number >= 1"),
        ((0.5, 1, 2.0), "depth 2.0 must be a whole number >= 1"),
        ((0.5, 1, 1, 0), "hidden 0 must be a whole number >= 1"),
        (((0.5, 0.5), 1, 3), "2 widths for 3 layers"),
    ],
)
def test_impossible_values_are_refused_where_they_are_written(
    arguments: tuple[Any, ...], message: str
) -> None:
    with pytest.raises(BudgetError, match=message):
        DeltaBudget(*arguments)


def test_ratios_print_without_loss() -> None:
    printed = {0.5: "0.5", 1.0: "1.0", 0.125: "0.125", 0.000001: "0.000001", 0.1: "0.1"}
    assert {ratio: format_ratio(ratio) for ratio in printed} == printed
    digits = {0.5: "050", 1.0: "100", 0.125: "0125", 0.05: "005", 0.005: "0005", 0.1: "010"}
    assert {ratio: ratio_digits(ratio) for ratio in digits} == digits


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("0.5:6:6", "w050-h06-d06"),
        ("0.125:1:12", "w0125-h01-d12"),
        ("1.0:12:22:256", "w100-h12-d22-n256"),
        ("0.5:100:6:16", "w050-h100-d06-n016"),
        ("0.5,0.5,1.0:4:3", "w050x2_100x1-h04-d03"),
    ],
)
def test_folder_names(text: str, name: str) -> None:
    assert DeltaBudget.parse(text).folder_name == name


def test_folder_names_never_collide() -> None:
    ratios = [0.05, 0.005, 0.5, 0.125, 0.12, 0.25, 0.1, 0.01, 1.0, 0.100001]
    pairs = [(a, b) for a in ratios for b in ratios if a != b]
    widths: list[Any] = [*ratios, *pairs, (0.5, 0.5, 1.0), (0.5, 1.0, 0.5), (1.0, 0.5, 0.5)]
    budgets = {
        DeltaBudget(width, heads, len(width) if isinstance(width, tuple) else depth, hidden)
        for width, heads, depth, hidden in product(
            widths, (1, 10, 11, 111), (1, 2, 11), (None, 1, 11, 256)
        )
    }
    budgets |= set(_random_budgets(500, seed=1))
    names = [budget.folder_name for budget in budgets]
    assert len(set(names)) == len(names)
    assert all(set(name) <= set("wxhdn0123456789_-") for name in names)


def test_order_is_a_partial_order() -> None:
    budgets = _random_budgets(120, seed=2, sizes=3) + [
        DeltaBudget(w, h, d, n) for w, h, d, n in product((0.5, 1.0), (1, 2), (1, 2), (None, 8, 16))
    ]
    below = {(i, j) for i, a in enumerate(budgets) for j, b in enumerate(budgets) if a <= b}
    for i, a in enumerate(budgets):
        assert (i, i) in below
        for j, b in enumerate(budgets):
            if (i, j) in below and (j, i) in below:
                assert a == b
            assert (a < b) == ((i, j) in below and a != b)
    above: dict[int, set[int]] = {}
    for i, j in below:
        above.setdefault(i, set()).add(j)
    assert all(above[j] <= above[i] for i, j in below)
    assert 0 < len(below) - len(budgets) < len(budgets) ** 2 / 2


def test_equal_layers_are_one_budget_however_they_are_written() -> None:
    """Otherwise two budgets contain each other, differ, and one model gets two folders."""
    listed, single = DeltaBudget.parse("0.5,0.5:4:2"), DeltaBudget.parse("0.5:4:2")
    assert listed <= single <= listed
    assert listed == single
    assert not listed < single
    assert listed.folder_name == single.folder_name


@pytest.mark.parametrize(
    ("small", "large", "contained"),
    [
        ("0.5:2:2", "0.5:2:2", True),
        ("0.5:2:2", "0.5:3:2", True),
        ("0.5:3:2", "0.5:2:3", False),
        ("0.5:2:2:16", "0.5:2:2", True),
        ("0.5:2:2", "0.5:2:2:16", False),
        ("0.5:2:2:16", "0.5:2:2:20", True),
        ("0.5:2:2", "0.5,0.6,0.1:2:3", True),
        ("0.5:2:3", "0.5,0.6,0.1:2:3", False),
        ("0.2,0.6:2:2", "0.5:2:2", False),
    ],
)
def test_order_examples(small: str, large: str, contained: bool) -> None:
    assert (DeltaBudget.parse(small) <= DeltaBudget.parse(large)) is contained


def test_order_does_not_compare_with_text() -> None:
    with pytest.raises(TypeError):
        _ = DeltaBudget(0.5, 2, 2) <= "0.5:2:2"


@pytest.mark.parametrize(
    ("text", "message", "nearest"),
    [
        ("0.5:9:2", r"heads 9 is not in 1\.\.4", "0.5:4:2"),
        ("0.5:2:9", r"depth 9 is not in 1\.\.4", "0.5:2:4"),
        ("0.5:2:2:99", r"hidden 99 is not in 1\.\.32", "0.5:2:2:32"),
        ("0.5:9:9:99", r"heads 9 .*; depth 9 .*; hidden 99 ", "0.5:4:4:32"),
        ("0.1,0.2,0.3,0.4,0.5:2:5", r"depth 5 is not in 1\.\.4", "0.1,0.2,0.3,0.4:2:4"),
    ],
)
def test_a_budget_that_does_not_fit_names_the_nearest(
    text: str, message: str, nearest: str
) -> None:
    budget, config = DeltaBudget.parse(text), _config()
    with pytest.raises(BudgetError, match=f"{message}.*nearest possible budget is {nearest}$"):
        budget.check(config)
    closest = budget.nearest(config)
    closest.check(config)
    assert str(closest) == nearest
    assert closest.nearest(config) == closest


def test_sizes_are_the_floor_of_the_share() -> None:
    config = _config(intermediate_size=[48, 50, 7, 3])
    assert DeltaBudget(0.5, 2, 4).shape(config) == (32, 2, 4, (24, 25, 3, 1))
    assert DeltaBudget(0.000001, 1, 1, 5).shape(config) == (5, 1, 1, (1,))
    wide = _config(intermediate_size=3072)
    for kept in (1, 2, 3, 768, 1023, 1024, 2047, 3071, 3072):
        ratio = DeltaBudget.parse(f"{kept / 3072:.6f}:1:1")
        assert abs(ratio.shape(wide).intermediate[0] - kept) <= 1
    thirds = _config(intermediate_size=1152)
    for text, channels in (("0.1", 115), ("0.7", 806), ("0.9", 1036), ("0.25", 288)):
        assert DeltaBudget.parse(f"{text}:1:1").shape(thirds).intermediate == (channels,)


def test_ends_need_one_smallest_and_one_largest() -> None:
    a, b, c = (DeltaBudget.parse(text) for text in ("0.5:1:1", "0.5:2:1", "0.5:1:2"))
    top = DeltaBudget.parse("0.5:2:2")
    assert ends_of([b, a, c, top]) == (a, top)
    assert ends_of([a]) == (a, a)
    with pytest.raises(BudgetError, match="no single smallest and largest; add the budget"):
        ends_of([a, b, c])


def test_middle_is_nearest_the_geometric_mean() -> None:
    config = _config()
    lattice = config.budget_list()
    middle = middle_of(lattice, config)
    cost = {budget: budget.flops(config, 128) for budget in lattice}
    product_ = 1.0
    for value in cost.values():
        product_ *= value ** (1 / len(cost))
    inner = [budget for budget in lattice if budget not in ends_of(lattice)]
    ratio = {b: max(cost[b] / product_, product_ / cost[b]) for b in inner}
    assert ratio[middle] == pytest.approx(min(ratio.values()))
    assert middle_of(lattice[:1], config) == lattice[0]


def test_all_hidden_channels_are_one_budget_however_they_are_written() -> None:
    """Otherwise one model is trained, measured and exported twice, under two names."""
    config = _config(budgets=["0.5:2:2", "1.0:4:4", "1.0:4:4:32", "0.5:2:2:32", "0.5:2:2:16"])
    assert list(map(str, config.budget_list())) == ["0.5:2:2", "1.0:4:4", "0.5:2:2:16"]
    assert list(map(str, select_budgets(["1.0:4:4:32", "1.0:4:4"], config))) == ["1.0:4:4"]
    assert select_budgets(["0.5,1.0:2:2:32"], config) == [DeltaBudget((0.5, 1.0), 2, 2)]
    assert DeltaBudget.parse("0.5:2:2:31").check(config) == DeltaBudget(0.5, 2, 2, 31)


def test_select_budgets_reads_all_forms() -> None:
    config = _config(budgets=["0.5:2:2", "0.5:4:4", "1.0:4:4"])
    small, middle, large = config.budget_list()
    names = ["largest", "smallest", "middle", "0.5:2:2", DeltaBudget(0.25, 1, 1), "1.0:4:4"]
    assert select_budgets(names, config) == [large, small, middle, DeltaBudget(0.25, 1, 1)]
    assert select_budgets(["all"], config) == [small, middle, large]
    assert select_budgets([], config) == []
    with pytest.raises(BudgetError, match=r"nearest possible budget is 0.5:4:4"):
        select_budgets(["0.5:5:5"], config)
    with pytest.raises(BudgetError, match="'tiny' has 1 parts"):
        select_budgets(["tiny"], config)
    with pytest.raises(BudgetError, match="quote budgets"):
        select_budgets([4332], config)
