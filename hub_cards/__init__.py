"""How models are published: flattened code, budget slices, cards, verification, push, Neuron."""

from importlib import import_module
from typing import Any

_HOME = {
    "export": "export_slices",
    "export_elastic": "export_slices",
    "ExportError": "complete_folder",
    "verify_folder": "verify_export",
    "VerifyError": "verify_export",
    "VerifyReport": "verify_export",
    "export_delta_pack": "delta_pack",
    "load_delta_pack": "delta_pack",
    "pack_size": "delta_pack",
    "DeltaPackError": "delta_pack",
    "push": "publish",
    "make_checkpoint_loadable": "loadable_checkpoint",
}

__all__ = list(_HOME)


def __getattr__(name: str) -> Any:
    """Import the module that defines ``name`` the first time it is asked for."""
    if name not in _HOME:
        raise AttributeError(f"module 'nestling.hub_cards' has no attribute {name!r}")
    return getattr(import_module(f".{_HOME[name]}", __name__), name)
