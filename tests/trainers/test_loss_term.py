"""Declarations of loss terms and the mean over sub-models."""

import pytest
import torch
from nestling.trainers.loss_term import (
    LossSum,
    LossTerm,
    mean_over_models,
    shares_of_models,
    weighted_over_models,
)


def test_a_term_must_declare_name_and_unit() -> None:
    """At class creation, not in the middle of a run."""
    with pytest.raises(TypeError, match="Nameless must set"):
        type("Nameless", (LossTerm,), {"unit": "token"})
    with pytest.raises(TypeError, match="token, sequence, step"):
        type("Odd", (LossTerm,), {"name": "odd", "unit": "word"})
    assert type("Fine", (LossTerm,), {"name": "fine", "unit": "step"}).batch_coupled is False


def test_mean_over_models_averages_totals_and_counts_once() -> None:
    """Losses are averaged, not summed."""
    losses = [LossSum(torch.tensor(value), 4) for value in (2.0, 4.0, 9.0)]
    total, count = mean_over_models(losses)
    assert total.item() == pytest.approx(5.0) and count == 4
    with pytest.raises(ValueError, match="at least one"):
        mean_over_models([])


def test_shares_weigh_the_largest_model() -> None:
    """One share for the largest, the rest divided evenly; alone it counts whole."""
    assert shares_of_models(4, None) == [0.25] * 4
    assert shares_of_models(5, 0.6) == pytest.approx([0.6, 0.1, 0.1, 0.1, 0.1])
    assert shares_of_models(1, 0.6) == [1.0]
    losses = [LossSum(torch.tensor(value), 4) for value in (2.0, 4.0, 9.0)]
    total, count = weighted_over_models(losses, shares_of_models(3, 0.5))
    assert total.item() == pytest.approx(0.5 * 2 + 0.25 * 4 + 0.25 * 9) and count == 4
    with pytest.raises(ValueError, match="3 losses and 2 shares"):
        weighted_over_models(losses, [0.5, 0.5])
