"""Alignment: the assignment is optimal, and units that were moved are found again."""

from itertools import permutations

import pytest
import torch
from growing_models import LARGER, logits, random_model, scattered, small_config
from nestling.modeling.hierarchical_growth import grow, small_budget
from nestling.modeling.importance_ordering import reorder_units
from nestling.modeling.unit_alignment import (
    JointMoments,
    align_by_activations,
    align_by_weights,
    assign,
    leading_order,
)
from scipy.optimize import linear_sum_assignment
from torch import Tensor


def _batches(number: int = 2) -> list[dict[str, Tensor]]:
    ids = torch.randint(8, 96, (number, 4, 24), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[:, 0, 17:] = 0
    return [
        {"input_ids": ids[index], "attention_mask": mask[index], "labels": ids[index]}
        for index in range(number)
    ]


@pytest.mark.parametrize("shape", [(1, 1), (1, 5), (5, 5), (4, 7)])
def test_the_assignment_is_the_best_of_all(shape: tuple[int, int]) -> None:
    rows, columns = shape
    for seed in range(5):
        similarity = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
        best = max(
            sum(float(similarity[r, c]) for r, c in enumerate(chosen))
            for chosen in permutations(range(columns), rows)
        )
        found = assign(similarity)
        assert len(set(found.tolist())) == rows
        assert float(similarity[torch.arange(rows), found].sum()) == pytest.approx(best, abs=1e-5)


@pytest.mark.parametrize("ties", [False, True], ids=["distinct", "ties"])
def test_the_assignment_agrees_with_scipy(ties: bool) -> None:
    similarity = torch.randn(60, 90, generator=torch.Generator().manual_seed(0))
    if ties:
        similarity = similarity.round()
    rows, columns = linear_sum_assignment(similarity.numpy(), maximize=True)
    best = float(similarity[rows, columns].sum())
    assert float(similarity[torch.arange(60), assign(similarity)].sum()) == pytest.approx(best)


def test_impossible_assignments_are_refused() -> None:
    with pytest.raises(ValueError, match="3 rows cannot have a column each of 2"):
        assign(torch.zeros(3, 2))
    with pytest.raises(ValueError, match="not finite"):
        assign(torch.tensor([[0.0, float("nan")]]))


def test_unmatched_columns_follow_in_their_order() -> None:
    similarity = torch.zeros(2, 5)
    similarity[0, 3] = similarity[1, 1] = 1.0
    assert leading_order(similarity).tolist() == [3, 1, 0, 2, 4]


def test_moments_are_those_of_all_batches_together() -> None:
    """Also where means are large beside the deviations, as outlier channels of encoders are."""
    generator = torch.Generator().manual_seed(0)
    first, second = (torch.randn(50, size, generator=generator) for size in (3, 4))
    first, second = first + 300.0, second + 0.5 * first[:, :1]
    moments = JointMoments(3, 4, torch.device("cpu"))
    for start, stop in ((0, 7), (7, 7), (7, 50)):
        moments.add(first[start:stop], second[start:stop])
    expected = torch.corrcoef(torch.cat((first, second), dim=1).double().T)[:3, 3:].float()
    torch.testing.assert_close(moments.correlation(), expected, atol=1e-4, rtol=0)


def test_a_constant_feature_goes_with_nothing() -> None:
    moments = JointMoments(1, 1, torch.device("cpu"))
    moments.add(torch.full((5, 1), 2.0), torch.arange(5.0)[:, None])
    assert moments.correlation().item() == 0.0


def test_an_alignment_leaves_the_function_unchanged() -> None:
    """Between models that have nothing in common: whatever it finds is a permutation."""
    small, target = random_model(small_config()), random_model(small_config(**LARGER), seed=1)
    before = logits(target)
    weights = {name: tensor.clone() for name, tensor in target.state_dict().items()}
    for order in (align_by_weights(small, target), align_by_activations(small, target, _batches())):
        for name, tensor in target.state_dict().items():
            assert torch.equal(tensor, weights[name]), name
        for units in (*order.heads, *order.channels, order.hidden):
            assert sorted(units.tolist()) == list(range(len(units)))
        again = random_model(small_config(**LARGER), seed=1)
        reorder_units(again, *order)
        torch.testing.assert_close(logits(again), before, atol=1e-4, rtol=1e-4)
        moved = again.model.layers[0].mlp.up.weight
        assert not torch.equal(moved, weights["model.layers.0.mlp.up.weight"])


@pytest.mark.parametrize("by", ["weights", "activations"])
def test_scattered_units_are_found_again(by: str) -> None:
    """The small model's units are hidden all over a larger one; every one must come to its place.

    The larger model is trained no further, so that the truth is known. Its new channels change the
    statistics of the norms, so activations are like the small model's, not equal to them.
    """
    small = random_model(small_config())
    config = small_config(**LARGER)
    target = grow(small, config)
    scattered(target, seed=3)
    budget = small_budget(small.config, config)
    assert not torch.allclose(logits(target, budget=budget), logits(small), atol=0.1)
    order = (
        align_by_weights(small, target)
        if by == "weights"
        else align_by_activations(small, target, _batches())
    )
    reorder_units(target, *order)
    torch.testing.assert_close(logits(target, budget=budget), logits(small), atol=1e-5, rtol=0)


def test_heads_match_whatever_the_basis_inside_them() -> None:
    """Values and outputs rotated inside a head compute the same, so they must still be found."""
    small = random_model(small_config())
    target = random_model(small_config())
    generator = torch.Generator().manual_seed(5)
    layer, size = target.model.layers[1], 8
    with torch.no_grad():
        qkv = layer.attention.query_key_value.weight.view(-1, 3, size, target.config.hidden_size)
        output = layer.attention.output.weight.view(target.config.hidden_size, -1, size)
        for head in range(target.config.num_attention_heads):
            rotation = torch.linalg.qr(torch.randn(size, size, generator=generator)).Q
            qkv[head, 2] = rotation @ qkv[head, 2]
            output[:, head] = output[:, head] @ rotation.T
    torch.testing.assert_close(logits(target), logits(small), atol=1e-4, rtol=1e-4)
    order = torch.tensor([2, 0, 3, 1])
    reorder_units(target, [order] * 3, [torch.arange(48)] * 3, torch.arange(32))
    for found in (align_by_weights(small, target), align_by_activations(small, target, _batches())):
        assert torch.equal(order[found.heads[1]], torch.arange(4))


def test_padding_does_not_count() -> None:
    small, target = random_model(small_config()), random_model(small_config(**LARGER), seed=1)
    batches = _batches()
    others = [
        {**batch, "input_ids": batch["input_ids"].where(batch["attention_mask"] > 0, 5)}
        for batch in batches
    ]
    orders = [align_by_activations(small, target, given) for given in (batches, others)]
    assert torch.equal(orders[0].hidden, orders[1].hidden)
    for mine, theirs in zip(orders[0].channels, orders[1].channels, strict=True):
        assert torch.equal(mine, theirs)


def test_the_mode_and_the_budget_are_kept_and_a_token_is_needed() -> None:
    small, target = random_model(small_config()), random_model(small_config(**LARGER), seed=1)
    expected = align_by_activations(small, target, _batches())
    small.train()
    target.set_budget("0.5:2:2")
    actual = align_by_activations(small, target, _batches())
    assert torch.equal(actual.hidden, expected.hidden)
    assert small.training
    assert not target.training
    with pytest.raises(ValueError, match="batches are empty"):
        align_by_activations(small, target, [])
