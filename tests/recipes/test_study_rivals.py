"""The table of what ours loses names every trained budget where a rival is better, and no other."""

import pytest
from nestling.recipes.delta_encoder.study_rivals import better_rivals, rivals_table
from nestling.recipes.evaluation.seed_interval import interval


def method(seeds, trained, losses):
    return {
        "seeds": seeds,
        "trained_budgets": trained,
        "budgets": {
            budget: {"flops": flops, "cross_entropy": interval(values)}
            for budget, (flops, values) in losses.items()
        },
    }


OURS = method(
    [0, 1, 2], ["1.0:4:4", "0.5:2:2"],
    {"1.0:4:4": (9, [3.0, 3.1, 3.2]), "0.5:2:2": (2, [4.0, 4.1, 4.2])},
)  # fmt: skip


def study(**rivals):
    return {"tables": {"tokens": {"methods": {"nested": OURS, **rivals}}}}


def test_only_better_means_at_trained_budgets_are_named():
    rival = method(
        [1, 2], ["1.0:4:4"], {"1.0:4:4": (9, [3.0, 3.1]), "0.5:2:2": (2, [1.0, 1.0])}
    )
    worse = method([0, 1, 2], ["0.5:2:2"], {"0.5:2:2": (2, [5.0, 5.0, 5.0])})
    (found,) = better_rivals(study(matformer=rival, sortednet=worse))
    assert (found["budget"], found["method"], found["compared"]) == ("1.0:4:4", "matformer", 2)
    # seeds 1 and 2 of both, not the first two of ours
    assert found["difference"]["values"] == pytest.approx([-0.1, -0.1])
    text = rivals_table(study(matformer=rival, sortednet=worse))
    assert "| 1.0:4:4 | MatFormer |" in text and "1 of 2 comparisons" in text
    assert "SortedNet" not in text


def test_a_variant_of_ours_is_no_rival():
    better = method([0, 1, 2], ["1.0:4:4"], {"1.0:4:4": (9, [2.0, 2.1, 2.2])})
    assert better_rivals(study(matformer=better))
    assert better_rivals(study(**{"constant-share": better})) == []


def test_verdicts_hold_together():
    near = method([0, 1, 2], ["1.0:4:4"], {"1.0:4:4": (9, [2.99, 3.085, 3.18])})
    alone = better_rivals(study(a=near))
    beside = better_rivals(study(**{name: near for name in "abcdefgh"}))
    assert alone[0]["verdict"] == "lower"
    assert {each["verdict"] for each in beside} == {"not separable"}


def test_a_study_without_a_better_rival_says_so():
    assert rivals_table(study()).startswith("No rival")
