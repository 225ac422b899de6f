"""Budget penalty against a loop; the threshold finds the target share and resumes exactly."""

import json
import math
from pathlib import Path

import pytest
import torch
from nestling.trainers.hook_state import capture_hook_state, load_hook_state, save_hook_state
from nestling.trainers.losses.budget_penalty import (
    BudgetPenalty,
    ThresholdController,
    next_threshold,
    score_quantile,
)

MASK = torch.tensor([[1, 1, 1, 0], [1, 2, 2, 2]])


def scores(seed: int) -> torch.Tensor:
    return torch.randn(2, 4, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("kappa", [0.2, 1.0])
def test_equals_the_slow_mean_over_real_tokens(kappa: float) -> None:
    values = scores(0)
    soft = [
        1 / (1 + math.exp(-(values[row, token].item() - 0.3) / kappa))
        for row, token in MASK.nonzero().tolist()
    ]
    total, count = BudgetPenalty(0.35, kappa)(values, 0.3, MASK)
    assert total.item() == pytest.approx((sum(soft) / len(soft) - 0.35) ** 2, rel=1e-5)
    assert count == 1


@pytest.mark.parametrize(("target", "sign"), [(0.01, 1), (0.99, -1)])
def test_a_step_moves_the_share_to_the_target(target: float, sign: int) -> None:
    """Too many selected: scores fall, too few: they rise. Padding and the threshold stay."""
    values = scores(1).requires_grad_()
    threshold = torch.tensor(0.1, requires_grad=True)
    term = BudgetPenalty(target)
    before = term(values, threshold, MASK).total
    before.backward()
    assert (values.grad[MASK > 0] * sign > 0).all()
    assert values.grad[0, 3] == 0 and threshold.grad is None
    assert term(values.detach() - values.grad, threshold, MASK).total < before


def test_no_real_token_stays_finite() -> None:
    values = scores(2).requires_grad_()
    BudgetPenalty(0.5)(values, 0.0, torch.zeros_like(MASK)).total.backward()
    assert values.grad.abs().max() == 0


def test_the_quantile_counts_real_tokens_only() -> None:
    values = torch.tensor([[1.0, 2.0, 3.0, 99.0], [4.0, 5.0, 6.0, 7.0]])
    threshold = score_quantile(values, MASK, 3 / 7)
    assert int((values[MASK > 0] > threshold).sum()) == 3
    with pytest.raises(ValueError, match="no real token"):
        score_quantile(values, torch.zeros_like(MASK), 0.5)


@pytest.mark.parametrize("ratio", [0.01, 0.35, 0.5, 0.99])
def test_the_quantile_is_that_of_torch(ratio: float) -> None:
    for size in (1, 2, 101):
        values = torch.randn(size, generator=torch.Generator().manual_seed(size))
        torch.testing.assert_close(
            score_quantile(values, torch.ones(size), ratio), values.quantile(1 - ratio)
        )


def test_the_quantile_takes_the_scores_of_a_large_step() -> None:
    size = 2**24 + 2  # more than torch.quantile takes
    values = torch.arange(size, dtype=torch.float32)
    found = score_quantile(values, torch.ones(1, dtype=torch.bool).expand(size), 0.5)
    assert found.item() == pytest.approx(2**23, abs=2)


def test_the_rule_is_a_moving_average() -> None:
    assert next_threshold(None, torch.tensor(2.0), 0.9).item() == 2.0
    moved = next_threshold(torch.tensor(1.0), torch.tensor(2.0), 0.9)
    assert moved.item() == pytest.approx(1.1)


def test_the_share_above_the_threshold_tends_to_the_target() -> None:
    """Scores of N(3, 2): the exact threshold is known. It also follows when they drift."""
    generator = torch.Generator().manual_seed(3)
    normal = torch.distributions.Normal(3.0, 2.0)
    controller = ThresholdController(momentum=0.98)
    mask = torch.ones(8, 32)
    for shift in (0.0, -5.0):
        for _ in range(400):
            drawn = shift + 3 + 2 * torch.randn(8, 32, generator=generator)
            threshold = controller.update(score_quantile(drawn, mask, 0.35))
        assert (1 - normal.cdf(threshold - shift)).item() == pytest.approx(0.35, abs=0.01)


def test_the_controller_resumes_exactly(tmp_path: Path) -> None:
    """Through the files of a checkpoint, before the first update as well."""
    quantiles = torch.randn(6, generator=torch.Generator().manual_seed(4))
    for stop in (0, 3):
        through, first, second = (ThresholdController(0.9) for _ in range(3))
        for quantile in quantiles:
            through.update(quantile)
        for quantile in quantiles[:stop]:
            first.update(quantile)
        save_hook_state(tmp_path, capture_hook_state({"threshold": first}))
        json.loads((tmp_path / "hook_state.json").read_text())
        load_hook_state(tmp_path, {"threshold": second})
        for quantile in quantiles[stop:]:
            second.update(quantile)
        assert torch.equal(second.threshold, through.threshold)


def test_the_threshold_carries_no_gradient() -> None:
    """Neither from the scores nor from earlier steps."""
    values = scores(5).requires_grad_()
    controller = ThresholdController()
    assert not controller.update(score_quantile(values, MASK, 0.3)).requires_grad
    assert not controller.update(values.mean()).requires_grad


def test_arguments_are_checked() -> None:
    for ratio in (0.0, 1.0, math.nan):
        with pytest.raises(ValueError, match=f"target_ratio is {ratio}"):
            BudgetPenalty(ratio)
        with pytest.raises(ValueError, match=f"target_ratio is {ratio}"):
            score_quantile(scores(0), MASK, ratio)
    with pytest.raises(ValueError, match=r"temperature is 0\.0"):
        BudgetPenalty(0.5, 0.0)
    with pytest.raises(ValueError, match=r"momentum is 1\.0"):
        ThresholdController(1.0)
    with pytest.raises(ValueError, match=r"scores \(2, 4\) and attention mask \(2, 3\)"):
        BudgetPenalty(0.5)(scores(0), 0.0, MASK[:, :3])


def test_it_says_that_it_depends_on_the_micro_batch() -> None:
    """A mean before a square: two halves do not add up to the whole."""
    assert BudgetPenalty.batch_coupled
    term, values = BudgetPenalty(0.5), scores(6)
    halves = [term(values[[row]], 0.0, MASK[[row]]).total.item() for row in range(2)]
    assert sum(halves) / 2 != pytest.approx(term(values, 0.0, MASK).total.item(), rel=1e-3)
