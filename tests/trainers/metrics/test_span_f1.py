"""Spans of BIO tags, and their exact-match F1."""

import random

import pytest
from nestling.trainers.metrics.span_f1 import Span, SpanCounts, spans_of_tags


def test_spans_by_hand() -> None:
    tags = ["B-x", "I-x", "B-x", "O", "I-y", "I-x", "I-x", "B-y"]
    assert spans_of_tags(tags) == [
        Span(0, 2, "x"),
        Span(2, 3, "x"),  # B begins anew, right after its like
        Span(4, 5, "y"),  # I without a B begins a span
        Span(5, 7, "x"),  # another name ends it
        Span(7, 8, "y"),  # open at the end
    ]
    assert spans_of_tags([]) == spans_of_tags(["O", "O"]) == []


def test_writing_and_reading_spans_is_the_identity() -> None:
    generator = random.Random(0)
    for _ in range(200):
        spans, tags = [], []
        while len(tags) < 12:
            length, name = generator.randint(1, 3), generator.choice(["", "x", "y-z"])
            if name:
                spans.append(Span(len(tags), len(tags) + length, name))
                tags += [f"B-{name}"] + [f"I-{name}"] * (length - 1)
            else:
                tags += ["O"] * length
        assert spans_of_tags(tags) == spans


def test_counts_by_hand() -> None:
    counts = SpanCounts()
    # One right; one with a wrong end; one with a wrong name.
    counts.update(
        [Span(0, 2, "x"), Span(3, 4, "x"), Span(5, 6, "y")],
        [Span(0, 2, "x"), Span(3, 5, "x"), Span(5, 6, "x")],
    )
    counts.update([], [Span(0, 1, "y")])
    assert (counts.correct, counts.predicted, counts.annotated) == (1, 3, 4)
    assert counts.precision == pytest.approx(1 / 3)
    assert counts.recall == pytest.approx(1 / 4)
    assert counts.f1 == pytest.approx(2 * (1 / 3) * (1 / 4) / (1 / 3 + 1 / 4))


def test_nothing_predicted_or_annotated_scores_zero() -> None:
    counts = SpanCounts()
    assert counts.precision == counts.recall == counts.f1 == 0.0


@pytest.mark.parametrize("tag", ["x", "B", "B-", "O-x", "S-x", ""])
def test_other_tags_are_refused(tag: str) -> None:
    with pytest.raises(ValueError, match="must be O, B-name or I-name"):
        spans_of_tags([tag])
