"""Loads an elastic model from its folder, with one clear line for everything that can be wrong."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from ..modeling.families import FAMILIES, Family, register_families, resolve
from .complete_folder import MARKER, ExportError, read_json, without_paths

logger = logging.getLogger(__name__)

ORIGIN_KEYS = ("base_model", "recipe", "command", "trained_commit")


@dataclass(frozen=True)
class ElasticModel:
    """A nested model with what its export needs.

    Attributes:
        model: the model, in float32 and evaluation mode.
        dtype: dtype the weights were stored in, and are exported in.
        tokenizer: its tokenizer, or None.
        family: its row in the table of families.
        auto_class: the Auto class its architecture belongs to.
        name: name of the folder it came from.
        origin: base model, recipe, command and commit of the training, where known.
    """

    model: Any  # a PreTrainedModel with set_budget and slice
    dtype: torch.dtype
    tokenizer: PreTrainedTokenizerBase | None
    family: Family
    auto_class: str
    name: str
    origin: dict[str, Any]


def describe_model(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    name: str,
    origin: dict[str, Any],
) -> ElasticModel:
    """Wrap a model that is already in memory.

    Raises:
        ExportError: for a model of no family, or a tokenizer that does not fit it.
    """
    family = _family_of(model.config.model_type, name)
    auto_class = _auto_class(family, type(model).__name__, name)
    _check_tokenizer(tokenizer, model.config)
    known = {key: without_paths(origin[key]) for key in ORIGIN_KEYS if origin.get(key)}
    return ElasticModel(model, model.dtype, tokenizer, family, auto_class, name, known)


def load_elastic(folder: Path) -> ElasticModel:
    """Load the nested model that training left in ``folder``.

    Raises:
        ExportError: if the folder holds no such model or an incomplete one.
    """
    model_class, _ = _classes_of(folder)
    try:
        model, report = model_class.from_pretrained(
            folder, dtype="auto", output_loading_info=True
        )
    except (SafetensorError, OSError, RuntimeError) as error:
        cause = str(error).splitlines()[0]
        raise ExportError(f"cannot load the weights in {folder}: {cause}") from error
    if report["missing_keys"]:
        missing = ", ".join(sorted(report["missing_keys"])[:3])
        raise ExportError(f"{folder} lacks the weights {missing}; train or copy it again")
    dtype = model.dtype
    model = model.to(torch.float32).eval()
    marker = folder / MARKER
    origin = read_json(marker) if marker.is_file() else {}
    described = describe_model(model, _load_tokenizer(folder), folder.resolve().name, origin)
    return ElasticModel(**{**described.__dict__, "dtype": dtype})


def load_outline(folder: Path) -> ElasticModel:
    """Return the nested model in ``folder`` without its weights, which are not read.

    Raises:
        ExportError: if the folder holds no such model, or no weights.
    """
    model_class, family = _classes_of(folder)
    if not any(folder.glob("model*.safetensors")):
        raise ExportError(f"{folder} has no weights (model*.safetensors); train or copy it again")
    config = resolve(family.config).from_pretrained(folder)
    with torch.device("meta"):
        model = model_class(config)
    return describe_model(model, _load_tokenizer(folder), folder.resolve().name, {})


def _classes_of(folder: Path) -> tuple[Any, Family]:
    """Return the class and the family of the model in a folder, from its configuration."""
    stored = read_json(folder / "config.json")
    family = _family_of(str(stored.get("model_type")), str(folder))
    register_families()
    names = stored.get("architectures") or []
    auto_class = _auto_class(family, names[0] if names else "", str(folder))
    return resolve(family.auto_classes[auto_class]), family


def _load_tokenizer(folder: Path) -> PreTrainedTokenizerBase | None:
    if not (folder / "tokenizer_config.json").is_file():
        logger.warning("%s has no tokenizer; the export will have none either", folder)
        return None
    return AutoTokenizer.from_pretrained(folder)


def _family_of(model_type: str, where: str) -> Family:
    if model_type not in FAMILIES:
        raise ExportError(
            f"{where} holds a {model_type!r} model; known families: {', '.join(FAMILIES)}"
        )
    return FAMILIES[model_type]


def _auto_class(family: Family, architecture: str, where: str) -> str:
    known = {dotted.split(":")[1]: auto for auto, dotted in family.auto_classes.items()}
    if architecture not in known:
        raise ExportError(
            f"{where} has architecture {architecture!r}; a {family.model_type} is one of "
            f"{', '.join(known)}"
        )
    return known[architecture]


def _check_tokenizer(tokenizer: PreTrainedTokenizerBase | None, config: Any) -> None:
    if tokenizer is not None and len(tokenizer) > config.vocab_size:
        raise ExportError(
            f"the tokenizer has {len(tokenizer)} tokens, the model {config.vocab_size}; "
            "export with the tokenizer the model was trained with"
        )
