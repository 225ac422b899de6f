"""Stochastic depth: whole rows skip a layer, deeper layers more often, the teacher's pass never."""

import pytest
import torch
from delta_models import lively_model, packed_rows, some_labels
from nestling.configuration import DeltaBudget
from torch import Tensor


def test_it_is_off_outside_of_training() -> None:
    ids, documents = packed_rows()
    with torch.no_grad():
        expected = lively_model()(ids, documents).logits
        assert torch.equal(lively_model(drop_path=0.9)(ids, documents).logits, expected)


def test_the_rate_rises_with_depth_and_the_mean_is_kept() -> None:
    model = lively_model(drop_path=0.6).model.train()
    torch.manual_seed(0)
    states = torch.ones(20_000, 2, 3)
    assert model._kept(states, 0) is None
    for index, rate in ((1, 0.2), (2, 0.4), (3, 0.6)):
        kept = model._kept(states, index)
        assert kept is not None and kept.shape == (20_000, 1, 1)
        assert (kept == 0).float().mean().item() == pytest.approx(rate, abs=0.015)
        assert kept.mean().item() == pytest.approx(1.0, abs=0.03)


def test_a_dropped_row_passes_a_layer_unchanged(monkeypatch: pytest.MonkeyPatch) -> None:
    model = lively_model(drop_path=0.5).model.train()
    ids, documents = packed_rows()
    drawn: list[Tensor] = []

    def draw(*size: int, device: torch.device) -> Tensor:
        drawn.append(torch.tensor([0.9, 0.0, 0.9]).view(size))
        return drawn[-1]

    monkeypatch.setattr(torch, "rand", draw)
    with torch.no_grad():
        states = model(ids, documents, output_hidden_states=True).hidden_states
    assert len(drawn) == 3
    for before, after in ((1, 2), (2, 3)):
        assert torch.equal(states[before][1], states[after][1])
        assert not torch.equal(states[before][0], states[after][0])
        assert not torch.equal(states[before][2], states[after][2])


def test_the_first_budget_teaches_and_runs_whole() -> None:
    """So do the budgets that share its pass, the routed passes, the upgrade and where it starts."""
    model = lively_model(drop_path=0.8, token_routing=True)
    ids, documents = packed_rows()
    full, small = DeltaBudget.full(model.config), DeltaBudget.parse("0.5:2:4")
    arguments = {
        "labels": some_labels(ids, documents),
        "budgets": (full, DeltaBudget.parse("1.0:4:3"), small),
        "routed": (full, 0.35),
        "upgrade": (full, small),
    }
    with torch.no_grad():
        expected = model(ids, documents, **arguments).budget_logits
        torch.manual_seed(0)
        found = model.train()(ids, documents, **arguments).budget_logits
    same = [torch.equal(a, b) for a, b in zip(found, expected, strict=True)]
    assert same == [True, True, True, True, True, True]
    arguments["budgets"] = (full, DeltaBudget.parse("0.5:3:4"), small)
    with torch.no_grad():
        found = model(ids, documents, **arguments).budget_logits
        expected = model.train(False)(ids, documents, **arguments).budget_logits
    same = [torch.equal(a, b) for a, b in zip(found, expected, strict=True)]
    assert same == [True, False, True, True, True, True]


def test_a_teacher_can_be_run_whole() -> None:
    """As fine-tuning does with the largest budget of a step."""
    model = lively_model(drop_path=0.8)
    ids, documents = packed_rows()
    with torch.no_grad():
        expected = model(ids, documents).logits
        model.train()
        torch.manual_seed(0)
        assert torch.equal(model(ids, documents, drop_paths=False).logits, expected)
        assert not torch.equal(model(ids, documents).logits, expected)
