"""From a pre-trained folder to a nested encoder with a fresh classifier, and its predictions."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from ...configuration.delta_budget import DeltaBudget
from ...modeling.delta_encoder_heads import DeltaEncoderForMaskedLM
from ...modeling.importance_ordering import measure_importance, reorder_by_importance
from ...modeling.modernbert_weights import load_modernbert
from ...trainers.labelled_rows import LabelledCollator
from ...trainers.masked_lm_collator import MaskedLMCollator
from ..cli_errors import ModelFolderError
from ..data.tokenizer_training import load_tokenizer

IMPORTANCE_BATCHES = 8


def has_order(folder: Path) -> bool:
    """Whether the units of the model are sorted: it is an encoder of ours with several budgets."""
    stored = _stored_config(folder)
    return stored.get("model_type") == "delta_encoder" and len(stored.get("budgets") or []) > 1


def load_source(folder: Path) -> tuple[DeltaEncoderForMaskedLM, PreTrainedTokenizerFast]:
    """Load a pre-trained encoder with its masked-LM head and its tokenizer.

    Raises:
        ModelFolderError: If weights are missing or the tokenizer does not fit.
        ValueError: If the checkpoint is of another architecture.
    """
    if _stored_config(folder).get("model_type") == "delta_encoder":
        loaded: Any = DeltaEncoderForMaskedLM.from_pretrained(
            folder, dtype=torch.float32, output_loading_info=True
        )
        source, report = loaded
        if report["missing_keys"]:
            raise ModelFolderError(
                f"{folder} lacks {', '.join(sorted(report['missing_keys'])[:3])}; start from a "
                "masked LM, not from a model that was fine-tuned already"
            )
    else:
        source = load_modernbert(str(folder))
    tokenizer = load_tokenizer(folder)
    if len(tokenizer) > source.config.vocab_size:
        raise ModelFolderError(
            f"the tokenizer has {len(tokenizer)} tokens, the model {source.config.vocab_size}; "
            f"copy the tokenizer the model was trained with into {folder}"
        )
    return source, tokenizer


def with_classifier(
    source: DeltaEncoderForMaskedLM, model_class: Any, labels: Sequence[str]
) -> Any:
    """Return a model of ``model_class`` with the trunk and head of ``source``.

    Only the classifier is new; draw it from a seed by setting one first. The masked-LM decoder is
    left behind, as in ModernBERT.
    """
    values = source.config.to_dict()
    values.pop("num_labels", None)
    config = type(source.config)(
        **{
            **values,
            "id2label": dict(enumerate(labels)),
            "label2id": {name: index for index, name in enumerate(labels)},
            "problem_type": "single_label_classification",
            "architectures": None,
        }
    )
    config._attn_implementation = source.config._attn_implementation
    model = model_class(config)
    new = model.state_dict()
    kept = {key: value for key, value in source.state_dict().items() if key in new}
    lost = [key for key in new if key not in kept and not key.startswith("classifier.")]
    if lost:
        raise ModelFolderError(f"the pre-trained model has no {', '.join(sorted(lost)[:3])}")
    model.load_state_dict(kept, strict=False)
    return model


def sort_before(
    source: DeltaEncoderForMaskedLM,
    tokenizer: PreTrainedTokenizerFast,
    rows: Sequence[Mapping[str, Any]],
    batch_size: int,
) -> None:
    """Sort the units of a checkpoint that was not nested, by masked LM on the task's texts."""
    collate = MaskedLMCollator.from_tokenizer(tokenizer, seed=0)

    def batches() -> Iterator[dict[str, Tensor]]:
        for first in range(0, min(len(rows), IMPORTANCE_BATCHES * batch_size), batch_size):
            chosen = range(first, min(first + batch_size, len(rows)))
            yield collate([_masked_lm_row(rows[number], number) for number in chosen])

    reorder_by_importance(source, measure_importance(source, batches()))


def sort_after(model: Any, rows: Sequence[Mapping[str, Any]], batch_size: int) -> None:
    """Sort the units of a fine-tuned model, by the loss of the task itself."""
    collate = LabelledCollator(model.config.pad_token_id)
    few = rows[: IMPORTANCE_BATCHES * batch_size]
    starts = range(0, len(few), batch_size)
    batches = (
        {name: value.to(model.device) for name, value in collate(few[s : s + batch_size]).items()}
        for s in starts
    )
    reorder_by_importance(model, measure_importance(model, batches))


def _stored_config(folder: Path) -> dict[str, Any]:
    stored: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return stored


def _masked_lm_row(row: Mapping[str, Any], number: int) -> dict[str, Any]:
    ids = row["input_ids"]
    return {"input_ids": ids, "document_ids": [1] * len(ids), "position": number}


@torch.inference_mode()
def predict(
    model: Any, rows: Sequence[Mapping[str, Any]], budget: DeltaBudget, batch_size: int
) -> list[Tensor]:
    """Return the logits of each row: (classes,), or (tokens, classes) of a token classifier.

    Rows run in the order of their lengths, so that little is padded, and come back in their own.
    """
    collate = LabelledCollator(model.config.pad_token_id)
    by_length = sorted(range(len(rows)), key=lambda number: len(rows[number]["input_ids"]))
    predictions: dict[int, Tensor] = {}
    was_training = model.training
    model.train(False)
    for first in range(0, len(rows), batch_size):
        numbers = by_length[first : first + batch_size]
        batch = collate([rows[number] for number in numbers])
        logits = model(
            input_ids=batch["input_ids"].to(model.device),
            attention_mask=batch["attention_mask"].to(model.device),
            budget=budget,
        ).logits
        for number, found in zip(numbers, logits.float().cpu(), strict=True):
            length = len(rows[number]["input_ids"])
            predictions[number] = found[:length] if found.dim() > 1 else found
    model.train(was_training)
    return [predictions[number] for number in range(len(rows))]
