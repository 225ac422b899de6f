"""Weights and ``config.json`` of an exported folder, of our class or of a stock one."""

from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from .. import __version__
from ..configuration.delta_budget import DeltaBudget
from ..configuration.stock_shapes import stock_decoder_obstacle
from ..modeling.families import Family
from ..modeling.modernbert_weights import (
    stock_obstacle,
    to_modernbert_config,
    to_modernbert_state,
)
from ..modeling.sliceable_encoder import WITHOUT_ROUTING, slice_settings
from ..modeling.stock_decoder_weights import to_stock_decoder_config, to_stock_decoder_state
from .complete_folder import PRODUCER, write_json, write_tensors

WEIGHTS = "model.safetensors"
NO_PREVIEW = (
    "a stock class has no preview network, so delta_token_ratio and delta_token_threshold would "
    "be lost; format=native leaves them out"
)
# What belongs to the machine or the process that saved, not to the model.
_NOT_SAVED = ("_name_or_path", "auto_map", "_commit_hash", "_attn_implementation")


def native_obstacle(config: Any, budget: Any, family: Family) -> str | None:
    """Return why no stock class computes the slice at ``budget``, or None if one does."""
    if family.model_type == "ddl":
        # Every depth of a baseline is a baseline.
        return stock_decoder_obstacle(config)
    if family.model_type != "delta_encoder":
        return f"family {family.model_type} has no stock class"
    settings = slice_settings(config, budget)
    return stock_obstacle(type(config)(**{**config.to_dict(), **settings}))


def has_native_class(config: Any, budget: Any, family: Family) -> bool:
    """Whether a stock class computes the slice at ``budget``, so that no remote code is needed."""
    return native_obstacle(config, budget, family) is None


def choose_format(config: Any, budget: Any, family: Family) -> tuple[str, str | None]:
    """Return the form of a slice of which none was asked for, and why it is not the stock one.

    A stock class has no preview network. A slice with a delta to route keeps our code, although
    it may run that delta on all tokens: the share is a setting of the run.
    """
    obstacle = native_obstacle(config, budget, family)
    if obstacle is not None:
        return "remote", obstacle
    if family.model_type == "delta_encoder" and budget.has_routed_delta(config):
        return "remote", NO_PREVIEW
    return "native", None


def unique_tensors(model: PreTrainedModel) -> dict[str, Tensor]:
    """Return the parameters and buffers of ``model``, tied tensors once, under their first name."""
    seen: set[int] = set()
    tensors = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) not in seen:
            seen.add(id(tensor))
            tensors[name] = tensor.detach()
    return tensors


def plain_config(model: PreTrainedModel, dtype: torch.dtype) -> dict[str, Any]:
    """Return the content of ``config.json`` for our own class, without paths or code."""
    values = {k: v for k, v in model.config.to_dict().items() if k not in _NOT_SAVED}
    values["architectures"] = [type(model).__name__]
    values["dtype"] = dtype_name(dtype)
    values["nestling_version"] = __version__
    return values


def dtype_name(dtype: torch.dtype) -> str:
    """Return ``float32`` for ``torch.float32``."""
    return str(dtype).removeprefix("torch.")


def write_own_class(
    folder: Path, model: PreTrainedModel, dtype: torch.dtype, auto_map: dict[str, str] | None
) -> None:
    """Write weights and configuration of our class; ``auto_map`` only where its code is."""
    config = plain_config(model, dtype)
    if auto_map is not None:
        config["auto_map"] = auto_map
    write_json(folder / "config.json", config)
    _write_weights(folder, unique_tensors(model), dtype)


def write_native_class(folder: Path, model: Any, dtype: torch.dtype) -> None:
    """Write a slice as the stock class it equals: ModernBERT, Qwen3 or Llama.

    Raises:
        ValueError: if no stock class computes it.
    """
    name = type(model).__name__
    if model.config.model_type == "ddl":
        config = to_stock_decoder_config(model.config, name)
        state = to_stock_decoder_state(unique_tensors(model))
    else:
        model = _without_routing(model)
        config = to_modernbert_config(model.config)
        config["architectures"] = [name.replace("DeltaEncoder", "ModernBert")]
        state = to_modernbert_state(unique_tensors(model), model.config)
    config["dtype"] = dtype_name(dtype)
    write_json(folder / "config.json", config)
    _write_weights(folder, state, dtype)


def _without_routing(model: Any) -> Any:
    """Return a slice whose delta runs on all tokens, with the plain norms of that."""
    if not model.config.token_routing:
        return model
    whole = deepcopy(model)
    for name, value in WITHOUT_ROUTING.items():
        setattr(whole.config, name, value)
    return whole.slice(DeltaBudget.full(whole.config))


def _write_weights(folder: Path, tensors: dict[str, Tensor], dtype: torch.dtype) -> None:
    stored = {name: tensor.to(dtype).contiguous() for name, tensor in tensors.items()}
    write_tensors(folder / WEIGHTS, stored, {"format": "pt", "producer": PRODUCER})
