"""What lies in an exported folder, written file by file."""

from pathlib import Path
from typing import Any

from .. import __version__
from ..configuration.delta_settings import delta_share
from ..modeling.families import resolve
from ..modeling.sliceable_encoder import WITHOUT_ROUTING
from .card import write_card
from .complete_folder import MARKER, write_json
from .delta_pack import describe_delta
from .elastic_folder import ElasticModel
from .ladder_file import SCHEMA_VERSION, flops_tokens, measured_row, predicted_tokens
from .model_files import (
    choose_format,
    dtype_name,
    unique_tensors,
    write_native_class,
    write_own_class,
)
from .reference_outputs import reference_outputs, write_reference
from .remote_code import source_commit, write_remote_code
from .sentence_files import write_sentence_files
from .tokenizer_files import write_tokenizer

# Auto class -> name of the head in the cost formulas; every other class has a classifier.
_HEADS = {
    "AutoModel": "none",
    "AutoModelForMaskedLM": "masked_lm",
    "AutoModelForCausalLM": "causal_lm",
}


def write_slice_folder(
    folder: Path,
    elastic: ElasticModel,
    budget: Any,
    format: str,
    evaluation: dict[str, Any] | None,
) -> dict[str, Any]:
    """Cut the slice, write its folder and return its description.

    Args:
        folder: an existing empty folder.
        elastic: the nested model.
        budget: where to cut.
        format: as in `export`.
        evaluation: measured numbers, or None.
    """
    smaller = elastic.model.slice(budget)
    reason = None
    if format == "auto":
        format, reason = choose_format(elastic.model.config, budget, elastic.family)
    description = _describe(elastic, budget, "slice", format, evaluation)
    description["format_reason"] = reason
    if format == "state-dict":
        write_own_class(folder, smaller, elastic.dtype, auto_map=None)
        return description
    if format == "native":
        write_native_class(folder, smaller, elastic.dtype)
    else:
        auto_map = write_remote_code(folder, elastic.family)
        write_own_class(folder, smaller, elastic.dtype, auto_map)
    write_reference(folder, reference_outputs(elastic.model, budget))
    _write_companions(folder, elastic, smaller.config, description, evaluation)
    return description


def write_elastic_folder(
    folder: Path, elastic: ElasticModel, evaluation: dict[str, Any] | None
) -> None:
    """Write the whole nested model, budgets and all, as remote code."""
    config = elastic.model.config
    whole = resolve(elastic.family.budget).full(config)
    auto_map = write_remote_code(folder, elastic.family)
    write_own_class(folder, elastic.model, elastic.dtype, auto_map)
    write_reference(folder, reference_outputs(elastic.model, None))
    description = _describe(elastic, whole, "elastic", "remote", evaluation)
    description["folder"] = elastic.name
    # The formulas describe a slice. A nested model may store atoms, or what conditions its norms.
    stored = unique_tensors(elastic.model).values()
    description["parameters"] = sum(tensor.numel() for tensor in stored)
    description["bytes"] = description["parameters"] * elastic.dtype.itemsize
    if elastic.family.model_type == "delta_encoder":
        description["delta"] = describe_delta(elastic.model, elastic.dtype)
    _write_companions(folder, elastic, config, description, evaluation)


def _describe(
    elastic: ElasticModel,
    budget: Any,
    kind: str,
    format: str,
    evaluation: dict[str, Any] | None,
) -> dict[str, Any]:
    """Return the content of ``nestling.json``; costs come from the formulas of the budget."""
    config, family = elastic.model.config, elastic.family
    is_encoder = family.model_type == "delta_encoder"
    if format == "native" and is_encoder and config.token_routing:
        # A stock class has no preview network.
        config = type(config)(**{**config.to_dict(), **WITHOUT_ROUTING})
    head = _HEADS.get(elastic.auto_class, "classification")
    tokens = flops_tokens(evaluation)
    predicted = predicted_tokens(evaluation) if head.endswith("_lm") else 0
    work = {"delta_ratio": _measured_share(config, budget, evaluation)} if is_encoder else {}
    dtype = dtype_name(elastic.dtype)
    return {
        "schema_version": SCHEMA_VERSION,
        "kind": kind,
        "family": family.model_type,
        "budget": str(budget),
        "folder": budget.folder_name,
        "format": format,
        "format_reason": None,
        "auto_class": elastic.auto_class,
        "auto_classes": list(family.auto_classes),
        "is_encoder": family.is_encoder,
        "has_tokenizer": elastic.tokenizer is not None,
        "parameters": budget.parameters(config, head),
        "flops": budget.flops(config, tokens, predicted_tokens=predicted, **work),
        "flops_tokens": tokens,
        "flops_predicted_tokens": predicted,
        "bytes": budget.weight_bytes(config, dtype, head),
        "dtype": dtype,
        "version": __version__,
        "commit": source_commit(),
        "source": elastic.name,
        **elastic.origin,
    }


def _measured_share(config: Any, budget: Any, evaluation: dict[str, Any] | None) -> float:
    """Return the share of the tokens that FLOPs count the delta on; by a threshold, as measured."""
    row = measured_row(evaluation, budget) or {}
    counted = row.get("delta_token_share")
    if config.delta_token_threshold is None or counted is None:
        return delta_share(config)
    return float(counted)


def _write_companions(
    folder: Path,
    elastic: ElasticModel,
    config: Any,
    description: dict[str, Any],
    evaluation: dict[str, Any] | None,
) -> None:
    tokens = config.max_position_embeddings
    if elastic.tokenizer is not None:
        write_tokenizer(folder, elastic.tokenizer, tokens)
        if elastic.family.is_encoder:
            write_sentence_files(folder, config.hidden_size, tokens)
    write_card(folder, elastic.family, description, evaluation, config)
    write_json(folder / MARKER, description)
