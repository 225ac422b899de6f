"""Contract, part 3: a budget runs, is cut out, and costs what its formulas say."""

from typing import Any

import pytest
import torch
from family_cases import (
    CASES,
    LANGUAGE_CASES,
    TRUNKS,
    VARIANTS,
    Case,
    compute,
    ends,
    named_tensors,
    padded_batch,
    token_ids,
)
from nestling.configuration.budget import Budget, BudgetError, select_budgets
from nestling.modeling.families import resolve
from torch.utils.flop_counter import FlopCounterMode

by_case = pytest.mark.parametrize("case", [*CASES, *VARIANTS], ids=str)
by_trunk = pytest.mark.parametrize("case", TRUNKS, ids=str)
by_language_model = pytest.mark.parametrize("case", [*LANGUAGE_CASES, *VARIANTS], ids=str)
# What a routed pass costs depends on the tokens; the tests of the model count it.
COUNTED = [*TRUNKS, *(case for case in VARIANTS if case.variant != "routed")]


def _snapshot(model: Any) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in named_tensors(model)}


@by_trunk
def test_budgets_are_those_of_the_table(case: Case) -> None:
    config = case.config()
    budget_class = resolve(case.family.budget)
    assert config.budget_class is budget_class
    assert len(config.budget_list()) >= 3
    for budget in config.budget_list():
        assert isinstance(budget, budget_class)
        assert isinstance(budget, Budget)
        assert budget_class.parse(str(budget)) == budget
    assert len({b.folder_name for b in config.budget_list()}) == len(config.budget_list())


@by_case
def test_slice_equals_the_budget_for_every_budget(case: Case) -> None:
    model = case.model()
    batch = padded_batch(model.config)
    full = compute(model, batch)
    different = 0
    for budget in model.config.budget_list():
        called = compute(model, batch, budget=budget)
        model.set_budget(budget)
        chosen = compute(model, batch)
        smaller = model.slice(budget)
        model.set_budget(None)
        assert torch.equal(called, chosen), budget
        assert type(smaller) is type(model)
        torch.testing.assert_close(compute(smaller, batch), called, atol=1e-5, rtol=1e-5)
        different += called.shape != full.shape or not torch.allclose(called, full, atol=1e-3)
    assert different >= len(model.config.budget_list()) - 1, "budgets that change nothing"


@by_case
def test_slices_save_and_load_as_full_models(case: Case, tmp_path: Any) -> None:
    model = case.model()
    batch = padded_batch(model.config)
    for budget in ends(model.config):
        folder = tmp_path / budget.folder_name
        smaller = model.slice(budget)
        smaller.save_pretrained(folder)
        again = case.model_class.from_pretrained(folder).eval()
        assert torch.equal(compute(again, batch), compute(smaller, batch))
        assert len(again.config.budget_list()) == 1


@by_case
def test_slice_of_a_slice(case: Case) -> None:
    """A slice is a full model: cut to its own largest budget it is itself."""
    model = case.model()
    batch = padded_batch(model.config)
    once = model.slice(ends(model.config)[0])
    twice = once.slice(ends(once.config)[1])
    first, second = dict(named_tensors(once)), dict(named_tensors(twice))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert torch.equal(compute(once, batch), compute(twice, batch))


@by_case
def test_a_slice_shares_nothing_with_its_source(case: Case) -> None:
    model = case.model()
    before = _snapshot(model)
    smaller = model.slice(ends(model.config)[1])
    with torch.no_grad():
        for parameter in smaller.parameters():
            parameter.zero_()
    assert all(torch.equal(tensor, before[name]) for name, tensor in named_tensors(model))
    model.train()
    assert model.slice(ends(model.config)[0]).training
    assert not model.eval().slice(ends(model.config)[0]).training


@by_language_model
def test_a_slice_keeps_its_tying(case: Case) -> None:
    model = case.model()
    for budget in ends(model.config):
        smaller = model.slice(budget)
        assert smaller.get_output_embeddings().weight is smaller.get_input_embeddings().weight


@by_case
def test_choosing_and_cutting_leave_weights_and_random_state_alone(case: Case) -> None:
    model = case.model()
    before, state = _snapshot(model), torch.get_rng_state()
    smallest, largest = ends(model.config)
    for budget in (smallest, str(largest), None):
        model.set_budget(budget)
    model.slice(smallest)
    model.slice(str(largest))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(tensor, before[name]) for name, tensor in named_tensors(model))


@by_case
def test_set_budget_takes_text_and_none(case: Case) -> None:
    model = case.model()
    batch = padded_batch(model.config)
    smallest, _ = ends(model.config)
    full = compute(model, batch)
    model.set_budget(str(smallest))
    assert model.active_budget == smallest
    assert torch.equal(compute(model, batch), compute(model, batch, budget=smallest))
    model.set_budget(None)
    assert model.active_budget is None
    assert torch.equal(compute(model, batch), full)


@by_case
def test_an_impossible_budget_names_the_nearest(case: Case) -> None:
    """The smallest slice cannot run the largest budget of its source."""
    model = case.model()
    smallest, largest = ends(model.config)
    small = model.slice(smallest)
    nearest = ends(small.config)[1]
    batch = padded_batch(model.config)
    for attempt in (
        lambda: small.set_budget(str(largest)),
        lambda: small.slice(largest),
        lambda: compute(small, batch, budget=largest),
    ):
        with pytest.raises(BudgetError, match=f"{largest} .*nearest possible budget is {nearest}"):
            attempt()
    assert small.active_budget is None
    with pytest.raises(BudgetError, match="nonsense"):
        model.set_budget("nonsense")


@by_trunk
def test_cost_rises_along_the_order(case: Case) -> None:
    config = case.config()
    budgets = config.budget_list()
    pairs = [(a, b) for a in budgets for b in budgets if a <= b and a != b]
    assert pairs
    for small, large in pairs:
        assert small.parameters(config) < large.parameters(config), (small, large)
        assert small.flops(config, 16) < large.flops(config, 16), (small, large)


@by_language_model
def test_parameter_formula_counts_every_budget(case: Case) -> None:
    model = case.model()
    for budget in model.config.budget_list():
        counted = sum(parameter.numel() for parameter in model.slice(budget).parameters())
        assert budget.parameters(model.config) == counted, budget


@pytest.mark.parametrize("case", COUNTED, ids=str)
def test_flop_formula_counts_every_budget(case: Case) -> None:
    """Of the nested model itself: what a budget leaves out must not be computed.

    Variants may add work once a pass, whatever the batch; their slices may not.
    """
    model = case.model_class._from_config(case.config(), attn_implementation="eager").eval()
    ids = token_ids(model.config, rows=3, tokens=16)
    for budget in model.config.budget_list():
        for runner, chosen in ((model, budget), (model.slice(budget), None)):
            once = {
                rows: _measured_flops(runner, ids[:rows], chosen)
                - budget.flops(model.config, 16, batch_size=rows)
                for rows in (1, 3)
            }
            assert once[1] == once[3], budget
            assert once[1] == 0 or (case.variant is not None and runner is model), budget


def _measured_flops(model: Any, ids: torch.Tensor, budget: Any) -> int:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model.base_model(input_ids=ids, budget=budget)
    return int(counter.get_total_flops())


@by_trunk
def test_named_budgets_resolve(case: Case) -> None:
    config = case.config()
    trained = config.budget_list()
    smallest, middle, largest = select_budgets(["smallest", "middle", "largest"], config)
    assert all(smallest <= budget <= largest for budget in trained)
    cost = {budget: budget.flops(config, 128) for budget in trained}
    assert cost[smallest] < cost[middle] < cost[largest]
    assert select_budgets(["all"], config) == trained
    assert select_budgets([str(largest), largest, "largest"], config) == [largest]
