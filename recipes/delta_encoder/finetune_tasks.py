"""The tasks a nested encoder can be fine-tuned on: rows for the model, measures for predictions."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from ...modeling.delta_encoder_heads import (
    DeltaEncoderForSequenceClassification,
    DeltaEncoderForTokenClassification,
)
from ...trainers.losses.masked_lm import IGNORED_LABEL
from ...trainers.metrics.class_f1 import best_f1_threshold, class_scores
from ...trainers.metrics.span_f1 import Span, SpanCounts, spans_of_tags
from ..cli_errors import DataError, UsageError
from ..data.attribute_tags import TaggedTokens, load_attribute_tags, tag_list, tag_tokens
from ..data.matching_pairs import LABELS, load_matching_pairs

LabelledRow = dict[str, Any]  # input_ids, labels


class FinetuneTask(Protocol):
    """What fine-tuning asks of a task.

    Attributes:
        model_class: Class of the model with the right head.
        labels: Names of the classes, in the order of their ids.
        rows: Rows of ``train``, ``validation`` and ``test``: ``input_ids`` and ``labels``.
        facts: Counts that belong beside a result.
        baselines: Measures on ``test`` of predictions that look at nothing.
    """

    model_class: Any
    labels: Sequence[str]
    rows: Mapping[str, list[LabelledRow]]
    facts: Mapping[str, Any]
    baselines: Mapping[str, Mapping[str, float]]

    def score(self, logits: Mapping[str, Sequence[Tensor]]) -> dict[str, dict[str, float]]:
        """Return the measures of each split, ``f1`` among them, from the logits of its rows."""
        ...


class MatchingTask:
    """Do two offers name the same product? F1 is that of the class ``match``."""

    model_class: Any = DeltaEncoderForSequenceClassification
    labels: Sequence[str] = LABELS
    rows: Mapping[str, list[LabelledRow]]
    facts: Mapping[str, Any]
    baselines: Mapping[str, Mapping[str, float]]

    def __init__(self, folder: Path, tokenizer: Any, max_length: int) -> None:
        """Read the pairs and join each to one row of two segments, the longer one cut first."""
        pairs = load_matching_pairs(folder)
        for split, members in pairs.splits.items():
            if not any(pair.label for pair in members):
                raise DataError(
                    f"{folder}: no pair of the {split} split is a match (label 1), so there is no "
                    "F1 to measure; put some there"
                )
        rows: dict[str, list[LabelledRow]] = {}
        for split, members in pairs.splits.items():
            encoded = tokenizer(
                [pair.first for pair in members],
                [pair.second for pair in members],
                truncation=True,
                max_length=max_length,
                return_attention_mask=False,
                return_token_type_ids=False,
            )["input_ids"]
            rows[split] = [
                {"input_ids": ids, "labels": pair.label}
                for ids, pair in zip(encoded, members, strict=True)
            ]
        self.rows = rows
        self.facts = {**_sizes(rows), **pairs.facts}
        count = len(rows["test"])
        majority = round(sum(row["labels"] for row in rows["train"]) / len(rows["train"]))
        self.baselines = {
            "majority_class": self.measure("test", [majority] * count),
            "always_match": self.measure("test", [1] * count),
        }

    def score(self, logits: Mapping[str, Sequence[Tensor]]) -> dict[str, dict[str, float]]:
        """Return the measures of `measure`, and F1 at a threshold chosen on ``validation``.

        Matches are rare, so a model may rank pairs well before it calls any of them a match.
        ``f1_at_threshold`` calls a pair a match where its logit of ``match`` exceeds that of the
        other class by more than ``match_threshold``; ``f1`` has the threshold 0.
        """
        margins = {
            split: [float(row[1] - row[0]) for row in members] for split, members in logits.items()
        }
        threshold = best_f1_threshold(margins["validation"], self._labels("validation"))
        return {
            split: {
                **self.measure(split, [int(margin > 0) for margin in members]),
                "match_threshold": threshold,
                "f1_at_threshold": self.measure(
                    split, [int(margin > threshold) for margin in members]
                )["f1"],
            }
            for split, members in margins.items()
        }

    def measure(self, split: str, predictions: Sequence[int]) -> dict[str, float]:
        """Return accuracy, and precision, recall and F1 of ``match``."""
        return class_scores(predictions, self._labels(split))

    def _labels(self, split: str) -> list[int]:
        return [row["labels"] for row in self.rows[split]]


class TaggingTask:
    """Which words are the value of which attribute? F1 is that of whole spans, exactly matched."""

    model_class: Any = DeltaEncoderForTokenClassification
    labels: Sequence[str]
    rows: Mapping[str, list[LabelledRow]]
    facts: Mapping[str, Any]
    baselines: Mapping[str, Mapping[str, float]]

    def __init__(self, folder: Path, tokenizer: Any, max_length: int) -> None:
        """Read the texts and lay their spans on the tokens."""
        tagged = load_attribute_tags(folder)
        for split, texts in tagged.splits.items():
            if not any(text.spans for text in texts):
                raise DataError(
                    f"{folder}: no text of the {split} split has an attribute whose value stands "
                    'in it; fill the column attributes with JSON such as {"Brand": {"Diesel": 1}}'
                )
        self.labels = tag_list(tagged.names)
        self.tokens: dict[str, list[TaggedTokens]] = {
            split: [tag_tokens(tokenizer, text, self.labels, max_length) for text in texts]
            for split, texts in tagged.splits.items()
        }
        self.spans = {
            split: [text.spans for text in texts] for split, texts in tagged.splits.items()
        }
        self.rows = {
            split: [{"input_ids": each.input_ids, "labels": each.labels} for each in texts]
            for split, texts in self.tokens.items()
        }
        truth = [row["labels"] for row in self.rows["test"]]
        outside = self.labels.index("O")
        self.facts = {
            **_sizes(self.rows),
            **tagged.facts,
            "attributes": len(tagged.names),
            # Below 1 where a span begins or ends inside a word, or beyond max_length.
            "test_f1_of_true_tags": self.measure("test", truth)["f1"],
        }
        self.baselines = {
            "majority_class": self.measure("test", [[outside] * len(row) for row in truth])
        }

    def score(self, logits: Mapping[str, Sequence[Tensor]]) -> dict[str, dict[str, float]]:
        """Return the measures of each split for the most likely tags."""
        return {
            split: self.measure(split, [row.argmax(dim=-1).tolist() for row in members])
            for split, members in logits.items()
        }

    def measure(self, split: str, predictions: Sequence[Sequence[int]]) -> dict[str, float]:
        """Return precision, recall and F1 of spans, and the accuracy of tags of words."""
        counts = SpanCounts()
        right = total = 0
        both = zip(self.tokens[split], predictions, strict=True)
        for (tokens, predicted), annotated in zip(both, self.spans[split], strict=True):
            pairs = [
                (guess, label)
                for guess, label in zip(predicted, tokens.labels, strict=True)
                if label != IGNORED_LABEL
            ]
            right += sum(guess == label for guess, label in pairs)
            total += len(pairs)
            tags = [self.labels[guess] for guess, _ in pairs]
            words = tokens.words
            counts.update(
                [Span(words[s][0], words[e - 1][1], name) for s, e, name in spans_of_tags(tags)],
                annotated,
            )
        return {
            "accuracy": right / total if total else 0.0,
            "precision": counts.precision,
            "recall": counts.recall,
            "f1": counts.f1,
        }


TASK_CLASSES: Mapping[str, type[MatchingTask] | type[TaggingTask]] = {
    "match_": MatchingTask,
    "attributes_": TaggingTask,
}
KINDS = tuple(TASK_CLASSES)


def open_task(name: str, data: Path, tokenizer: Any, max_length: int) -> FinetuneTask:
    """Read the task in the sub-folder ``name`` of ``data``; the name says of which kind it is.

    Raises:
        UsageError: For a name of no kind, or a folder that is not there.
        DataError: If its files cannot be used.
    """
    kind = next((kind for start, kind in TASK_CLASSES.items() if name.startswith(start)), None)
    if kind is None or not (data / name).is_dir():
        there = sorted(each.name for each in data.glob("*") if each.name.startswith(KINDS))
        raise UsageError(
            f"task {name!r} is no folder of {data} that begins with {' or '.join(KINDS)}; "
            f"there are: {', '.join(there) or 'none'}"
        )
    return kind(data / name, tokenizer, max_length)


def _sizes(rows: Mapping[str, Sequence[Any]]) -> dict[str, int]:
    return {f"{split}_rows": len(members) for split, members in rows.items()}
