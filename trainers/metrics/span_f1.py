"""F1 of labelled spans with exact match, as CoNLL-2003 counts it.

A span is right if its start, its end and its name are. Counts are summed over all texts (micro
average). Source: Tjong Kim Sang and De Meulder, https://arxiv.org/abs/cs/0306050, section 2.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple


class Span(NamedTuple):
    """A labelled stretch.

    Attributes:
        start: First place, of whatever is counted (words or characters).
        end: The place after the last.
        name: Kind of the span.
    """

    start: int
    end: int
    name: str


def spans_of_tags(tags: Sequence[str]) -> list[Span]:
    """Read spans off BIO tags (`O`, `B-name`, `I-name`).

    As in the CoNLL script, an `I-name` that continues nothing of its name starts a span: a model
    is not punished twice for a wrong first tag.

    Raises:
        ValueError: For a tag of another form.
    """
    spans: list[Span] = []
    open_since, open_name = 0, ""
    for place, tag in enumerate([*tags, "O"]):
        kind, _, name = tag.partition("-")
        if kind not in ("O", "B", "I") or (kind == "O") != (name == ""):
            raise ValueError(f"tag {tag!r} at place {place} must be O, B-name or I-name")
        goes_on = kind == "I" and name == open_name
        if open_name and not goes_on:
            spans.append(Span(open_since, place, open_name))
        if not goes_on:
            open_since, open_name = place, name
    return spans


@dataclass
class SpanCounts:
    """Running counts; `update` once per text.

    Attributes:
        correct: Predicted spans that are annotated.
        predicted: Predicted spans.
        annotated: Annotated spans.
    """

    correct: int = 0
    predicted: int = 0
    annotated: int = 0

    def update(self, predicted: Sequence[Span], annotated: Sequence[Span]) -> None:
        """Add the spans of one text; a span that is given twice counts once."""
        found, wanted = set(predicted), set(annotated)
        self.correct += len(found & wanted)
        self.predicted += len(found)
        self.annotated += len(wanted)

    @property
    def precision(self) -> float:
        """`correct / predicted`, 0 where nothing was predicted."""
        return self.correct / self.predicted if self.predicted else 0.0

    @property
    def recall(self) -> float:
        """`correct / annotated`, 0 where nothing is annotated."""
        return self.correct / self.annotated if self.annotated else 0.0

    @property
    def f1(self) -> float:
        """`2 correct / (predicted + annotated)`, 0 where there are no spans at all."""
        both = self.predicted + self.annotated
        return 2 * self.correct / both if both else 0.0
