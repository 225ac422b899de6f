import math

import numpy as np
import pytest
import torch
from nestling.trainers.metrics.calibration import (
    CalibrationBins,
    expected_calibration_error,
    negative_log_likelihood,
)
from nestling.trainers.metrics.perplexity import perplexity
from nestling.trainers.metrics.temperature import TemperatureFit, fit_temperature


def slow_error(confidences, is_correct, bins):
    total = 0.0
    for index in range(bins):
        low, high = index / bins, (index + 1) / bins
        inside = [
            (c, ok)
            for c, ok in zip(confidences, is_correct, strict=True)
            if low < c <= high or (index == 0 and c == 0)
        ]
        if inside:
            accuracy = sum(ok for _, ok in inside) / len(inside)
            confidence = sum(c for c, _ in inside) / len(inside)
            total += len(inside) / len(confidences) * abs(accuracy - confidence)
    return total


def test_equals_the_definition_in_any_split():
    generator = np.random.default_rng(0)
    confidences, is_correct = generator.random(500), generator.random(500) < 0.6
    expected = slow_error(confidences, is_correct, 15)
    assert expected_calibration_error(confidences, is_correct) == pytest.approx(expected)
    stream = CalibrationBins()
    for part in np.array_split(np.arange(500), 7):
        stream.update(confidences[part], is_correct[part])
    assert stream.error() == pytest.approx(expected)


def test_by_hand():
    assert expected_calibration_error([0.9] * 10, [True] * 9 + [False]) == pytest.approx(0.0)
    assert expected_calibration_error([1.0] * 4, [True, True, False, False]) == pytest.approx(0.5)


def test_calibration_errors():
    with pytest.raises(ValueError, match="no predictions"):
        CalibrationBins().error()
    with pytest.raises(ValueError, match="probabilities, not logits"):
        expected_calibration_error([3.0], [True])
    with pytest.raises(ValueError, match="same shape"):
        expected_calibration_error([0.5], [True, False])
    with pytest.raises(ValueError, match="bins"):
        CalibrationBins(0)


def test_negative_log_likelihood():
    table = [[0.5, 0.5], [0.1, 0.9]]
    assert negative_log_likelihood(table, [0, 1]) == pytest.approx(
        -(math.log(0.5) + math.log(0.9)) / 2
    )
    assert negative_log_likelihood([[1.0, 0.0]], [1]) == math.inf
    with pytest.raises(ValueError, match="classes"):
        negative_log_likelihood(table, [0])


def test_temperature_undoes_a_known_scale():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(20_000, 8, generator=generator) * 2
    labels = torch.multinomial(logits.softmax(-1), 1, generator=generator).squeeze(1)
    assert fit_temperature(logits, labels) == pytest.approx(1.0, abs=0.04)
    assert fit_temperature(logits * 2.5, labels) == pytest.approx(2.5, abs=0.1)
    before = expected_calibration_error(*confidences(logits * 2.5, labels))
    after = expected_calibration_error(*confidences(logits, labels))
    assert after < before / 4


def confidences(logits, labels):
    probability, predicted = logits.softmax(-1).max(-1)
    return probability.numpy(), (predicted == labels).numpy()


def test_streamed_temperature_equals_one_batch():
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(64, 5, generator=generator)
    labels = torch.randint(5, (64,), generator=generator)
    fit = TemperatureFit()
    for part in range(0, 64, 16):
        fit.update(logits[part : part + 16], labels[part : part + 16])
    assert fit.best() == pytest.approx(fit_temperature(logits, labels), rel=1e-5)


@pytest.mark.parametrize(("scale", "truth"), [(2, 1.0), (4, 1.7), (1, 0.6), (10, 0.9)])
def test_temperature_equals_a_slow_search(scale, truth):
    generator = torch.Generator().manual_seed(2)
    logits = torch.randn(2_000, 50, generator=generator).double() * scale * truth
    labels = torch.multinomial((logits / truth).softmax(-1), 1, generator=generator).squeeze(1)
    grid = torch.linspace(truth / 1.5, truth * 1.5, 2001)
    losses = [torch.nn.functional.cross_entropy(logits / t, labels) for t in grid]
    slow = grid[int(torch.stack(losses).argmin())].item()
    assert fit_temperature(logits, labels) == pytest.approx(slow, rel=5e-3)


def test_temperature_of_extreme_logits_is_finite():
    logits = torch.tensor([[1e4, -1e4, 0.0], [-1e4, 0.0, 1e4]])
    assert fit_temperature(logits, torch.tensor([0, 2])) == pytest.approx(0.4)
    assert fit_temperature(logits, torch.tensor([1, 2])) == pytest.approx(4.0)


def test_temperature_stops_at_the_end_of_the_grid():
    logits = torch.tensor([[10.0, 0.0]] * 8)
    assert fit_temperature(logits, torch.zeros(8, dtype=torch.long)) == pytest.approx(0.4)
    with pytest.raises(ValueError, match="no predictions"):
        TemperatureFit().best()


def test_perplexity_is_weighted_by_tokens():
    assert perplexity(2 * math.log(3), 2) == pytest.approx(3.0)
    assert perplexity(1e6, 1) == math.inf
    with pytest.raises(ValueError, match="1 or more"):
        perplexity(0.0, 0)
