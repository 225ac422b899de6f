"""One clear line for inputs that do not fit, before torch fails somewhere inside.

Shapes cost nothing to compare. Values are looked at on the CPU, or where the caller waits for the
device anyway; traced code is left alone, because values must not decide its path.
"""

from typing import Any

import torch
from torch import Tensor

IGNORED_LABEL = -100


def is_traced() -> bool:
    """Whether the call is being compiled or traced, when values must not decide the path."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing()  # type: ignore[attr-defined]


def require_tokens(
    input_ids: Tensor | None, embeds: Tensor | None, hidden_size: int
) -> tuple[int, int]:
    """Return rows and tokens of a batch given as ids or as embeddings.

    Args:
        input_ids: (batch, tokens), or None.
        embeds: (batch, tokens, hidden), or None.
        hidden_size: channels the embeddings must have.

    Raises:
        ValueError: if none or both are given, or the given one is not of its shape or is empty.
    """
    if embeds is None and input_ids is not None:
        name, source, form = "input_ids", input_ids, "(batch, tokens)"
    elif input_ids is None and embeds is not None:
        name, source, form = "inputs_embeds", embeds, f"(batch, tokens, {hidden_size})"
    else:
        raise ValueError("give exactly one of input_ids and inputs_embeds")
    if source.dim() != form.count(",") + 1:
        raise ValueError(
            f"{name} has shape {tuple(source.shape)}, not {form}; give a single row as a batch of 1"
        )
    if embeds is not None and embeds.shape[-1] != hidden_size:
        raise ValueError(
            f"inputs_embeds have {embeds.shape[-1]} channels; "
            f"give all {hidden_size}, a budget takes the first of them"
        )
    rows, tokens = source.shape[:2]
    if rows == 0 or tokens == 0:
        raise ValueError(
            f"{name} has shape {tuple(source.shape)}, which is empty; give 1 row of 1 token or more"
        )
    return rows, tokens


def require_ids(input_ids: Tensor, vocabulary: int) -> None:
    """Refuse token ids outside ``0..vocabulary - 1``; looked at on the CPU only.

    Raises:
        ValueError: with the id and the range.
    """
    if is_traced() or input_ids.device.type != "cpu" or not input_ids.numel():
        return
    for worst in (int(input_ids.max()), int(input_ids.min())):
        if not 0 <= worst < vocabulary:
            raise ValueError(
                f"token id {worst} is outside the vocabulary 0..{vocabulary - 1}; "
                "use the tokenizer this model was trained with"
            )


def require_mask(attention_mask: Tensor, rows: int, tokens: int) -> None:
    """Refuse an attention mask of another shape than (rows, tokens).

    Raises:
        ValueError: with both shapes.
    """
    if not is_traced() and attention_mask.shape != (rows, tokens):
        raise ValueError(
            f"attention_mask has shape {tuple(attention_mask.shape)}, "
            f"the input ({rows}, {tokens}); they must be equal"
        )


def require_positions(position_ids: Tensor, rows: int, tokens: int) -> None:
    """Refuse positions of another shape than (rows, tokens) or (1, tokens).

    Raises:
        ValueError: with both shapes.
    """
    if not is_traced() and position_ids.shape not in ((rows, tokens), (1, tokens)):
        raise ValueError(
            f"position_ids has shape {tuple(position_ids.shape)}, the input ({rows}, {tokens}); "
            f"give a position per token, or (1, {tokens}) for all rows"
        )


def require_whole_rows(attention_mask: Any, position_ids: Tensor | None) -> None:
    """Refuse what keeps parts of a row apart in attention but not in convolutions over time.

    Args:
        attention_mask: a tensor or another mask with a shape, or None.
        position_ids: (batch or 1, tokens) where they tell attention about packed documents, else
            None. The code that makes masks of them waits for the device as well.

    Raises:
        ValueError: for a mask that is not (batch, tokens), or positions that do not count on.
    """
    if attention_mask is not None and len(attention_mask.shape) != 2:
        raise ValueError(
            f"attention_mask has shape {tuple(attention_mask.shape)}, but convolutions over time "
            "know only padding; give a mask of (batch, tokens), or take a variant without them, "
            "such as 'ddl-cc'"
        )
    if is_traced() or position_ids is None or position_ids.shape[-1] < 2:
        return
    if bool((position_ids.diff(dim=-1) != 1).any()):
        raise ValueError(
            "position_ids start again within a row, but convolutions over time would mix the "
            "documents; give each document a row of its own, padded with an attention_mask, or "
            "take a variant without them, such as 'ddl-cc'"
        )


def require_token_labels(labels: Tensor, shape: tuple[int, ...]) -> None:
    """Refuse labels that do not lie on the tokens.

    Raises:
        ValueError: with both shapes.
    """
    if labels.shape != shape:
        raise ValueError(
            f"labels have shape {tuple(labels.shape)}, the tokens {tuple(shape)}; "
            f"give one label per token, {IGNORED_LABEL} where there is none"
        )


def require_row_labels(labels: Tensor, logits: Tensor, kind: str) -> None:
    """Refuse labels that a loss over rows cannot take; values are looked at on the CPU only.

    Args:
        labels: one label, or one target per class, of each row.
        logits: (batch, classes).
        kind: ``problem_type`` of the configuration.

    Raises:
        ValueError: with the shape, or the label, and what is allowed.
    """
    allowed = [logits.shape]
    if kind == "regression":
        allowed.append(logits.squeeze(-1).shape)
    elif kind == "single_label_classification" and not labels.is_floating_point():
        allowed = [logits.shape[:1]]
    if labels.shape not in allowed:
        raise ValueError(
            f"labels have shape {tuple(labels.shape)} ({labels.dtype}), {kind} of this batch needs "
            f"{tuple(allowed[-1])}; correct them, or set problem_type in the configuration"
        )
    is_choice = kind == "single_label_classification" and not labels.is_floating_point()
    if is_choice and labels.device.type == "cpu":
        require_some_label(labels, logits.shape[-1])


def require_label_range(labels: Tensor, classes: int) -> None:
    """Refuse labels outside ``0..classes - 1`` other than -100. Waits for the device.

    Raises:
        ValueError: with the label and the range.
    """
    if not is_traced() and bool(_out_of_range(labels, classes).any()):
        _refuse_out_of_range(labels, classes)


def require_some_label(labels: Tensor, classes: int) -> None:
    """Refuse labels out of range, and a batch without any. Waits once for the device.

    Raises:
        ValueError: with the label and the range, or if every label is -100 (the mean over nothing
            would be NaN).
    """
    if is_traced():
        return
    found = torch.stack((_out_of_range(labels, classes).any(), (labels != IGNORED_LABEL).any()))
    is_wrong, is_labelled = found.tolist()
    if is_wrong:
        _refuse_out_of_range(labels, classes)
    if not is_labelled:
        raise ValueError(
            f"every label is {IGNORED_LABEL}, so there is nothing to predict; check the masking"
        )


def _out_of_range(labels: Tensor, classes: int) -> Tensor:
    return (labels != IGNORED_LABEL) & ((labels < 0) | (labels >= classes))


def _refuse_out_of_range(labels: Tensor, classes: int) -> None:
    label = labels[_out_of_range(labels, classes)][0].item()
    raise ValueError(
        f"label {label} is not in 0..{classes - 1}; use {IGNORED_LABEL} where there is no label, "
        "and labels from the tokenizer (or num_labels) this model was made for"
    )
