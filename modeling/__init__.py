"""What a model computes. Everything here except ``families`` may be shipped as remote code."""

from importlib import import_module
from typing import Any

_HOME = {
    "FAMILIES": "families",
    "register_families": "families",
    "DeltaEncoderModel": "modeling_delta_encoder",
    "DeltaEncoderForMaskedLM": "delta_encoder_heads",
    "DeltaEncoderForSequenceClassification": "delta_encoder_heads",
    "DeltaEncoderForTokenClassification": "delta_encoder_heads",
    "convert_delta": "delta_conversion",
    "grow": "hierarchical_growth",
    "grow_from_checkpoints": "hierarchical_growth",
    "small_budget": "hierarchical_growth",
    "load_modernbert": "modernbert_weights",
    "measure_importance": "importance_ordering",
    "reorder_by_importance": "importance_ordering",
}

__all__ = list(_HOME)


def __getattr__(name: str) -> Any:
    """Import the module that defines ``name`` the first time it is asked for."""
    if name not in _HOME:
        raise AttributeError(f"module 'nestling.modeling' has no attribute {name!r}")
    return getattr(import_module(f".{_HOME[name]}", __name__), name)
