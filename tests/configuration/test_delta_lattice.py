"""Lattices from axes, and the budget that all of a list contain."""

from itertools import product

import pytest
from nestling.configuration import BudgetError, DeltaBudget
from nestling.configuration.delta_lattice import build_lattice, default_lattice, meet_of


def test_default_steps_of_few_heads_and_layers() -> None:
    assert {b.depth for b in default_lattice(heads=1, layers=12)} == {6, 9, 12}
    assert len(default_lattice(heads=1, layers=1)) == 3


def test_lattices_are_built_from_axes() -> None:
    lattice = build_lattice([1.0, 0.5], [2], [1, 3], extra=["0.5:2:1", "0.25:1:1"])
    assert list(map(str, lattice)) == ["0.5:2:1", "0.5:2:3", "1.0:2:1", "1.0:2:3", "0.25:1:1"]
    for axes, name in (([], "width"), ([1], "head"), ([2], "depth")):
        arguments = [[1.0], [1], [1]]
        arguments[("width", "head", "depth").index(name)] = []
        with pytest.raises(BudgetError, match=f"{name}_budgets is empty; list at least one value"):
            build_lattice(*arguments)
        assert axes is not None


@pytest.mark.parametrize(
    ("texts", "meet"),
    [
        (["0.5:3:2"], "0.5:3:2"),
        (["0.5:6:6", "0.666667:8:19:512"], "0.5:6:6:512"),
        (["0.5,0.75,1.0:4:3", "0.75:2:2:64", "1.0:4:4:32"], "0.5,0.75:2:2:32"),
    ],
)
def test_the_meet_is_the_largest_budget_inside_all(texts: list[str], meet: str) -> None:
    """Against a search through every budget with these values on its axes."""
    budgets = [DeltaBudget.parse(text) for text in texts]
    assert str(meet_of(budgets)) == meet
    widths = {width for budget in budgets for width in budget.layer_widths()}
    candidates = [
        DeltaBudget(width, heads, depth, hidden)
        for depth in {budget.depth for budget in budgets}
        for width in product(widths, repeat=depth)
        for heads in {budget.heads for budget in budgets}
        for hidden in {budget.hidden for budget in budgets}
        if depth < 5
    ]
    inside = [one for one in candidates if all(one <= budget for budget in budgets)]
    assert all(one <= meet_of(budgets) for one in inside)
    assert all(meet_of(budgets) <= budget for budget in budgets)
