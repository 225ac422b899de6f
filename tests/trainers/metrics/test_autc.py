import math

import pytest
from nestling.trainers.metrics.autc import area_under_tradeoff_curve, autc_ratio, upper_envelope


def test_envelope_drops_dominated_models():
    front = upper_envelope([4.0, 1.0, 2.0, 4.0], [0.5, 0.3, 0.2, 0.6])
    assert front == [(1.0, 0.3), (4.0, 0.6)]


def test_staircase_by_hand():
    # From 1 to 4: the first half (in ln F) at 0.2, the second at 0.6.
    assert area_under_tradeoff_curve([1, 2], [0.2, 0.6], (1, 4)) == pytest.approx(0.4)


def test_matches_a_numerical_integral():
    flops, accuracies, anchors = [3.0, 5.0, 20.0, 60.0], [0.1, 0.3, 0.25, 0.7], (2.0, 40.0)
    steps = 20_000
    total = 0.0
    for step in range(steps):
        share = (step + 0.5) / steps
        limit = math.exp(math.log(2.0) + share * math.log(40.0 / 2.0))
        pairs = zip(flops, accuracies, strict=True)
        total += max((a for f, a in pairs if f <= limit), default=0.0)
    assert area_under_tradeoff_curve(flops, accuracies, anchors) == pytest.approx(
        total / steps, abs=1e-4
    )


def test_a_collapsed_family_does_not_score_high():
    flops, anchors = [1.0, 2.0, 4.0], (1.0, 4.0)
    collapsed = area_under_tradeoff_curve(flops, [0.01, 0.011, 0.012], anchors)
    good = area_under_tradeoff_curve(flops, [0.50, 0.55, 0.60], anchors)
    assert collapsed < 0.02 < 0.5 < good


def test_what_lies_outside_the_anchors():
    # A model below F0 counts from F0 on; one above F1 does not count.
    assert area_under_tradeoff_curve([0.1, 100.0], [0.4, 0.9], (1, 10)) == pytest.approx(0.4)
    assert area_under_tradeoff_curve([100.0], [0.9], (1, 10)) == 0.0


def test_ratio_uses_the_same_anchors():
    nested, separate = ([1.0, 2.0], [0.2, 0.6]), ([1.0, 2.0], [0.4, 0.8])
    assert autc_ratio(nested, separate, (1, 4)) == pytest.approx(0.4 / 0.6)
    with pytest.raises(ValueError, match="AUTC 0"):
        autc_ratio(nested, ([50.0], [0.9]), (1, 4))


@pytest.mark.parametrize("anchors", [(0, 1), (2, 2), (3, 1), (1, math.inf), (1, math.nan)])
def test_bad_anchors(anchors):
    with pytest.raises(ValueError, match="anchors"):
        area_under_tradeoff_curve([1.0], [0.5], anchors)


@pytest.mark.parametrize(
    ("flops", "accuracies"), [([], []), ([1], [0.1, 0.2]), ([0], [0.1]), ([1], [50.0])]
)
def test_bad_points(flops, accuracies):
    with pytest.raises(ValueError, match=r"FLOP|accuracies"):
        area_under_tradeoff_curve(flops, accuracies, (1, 2))
