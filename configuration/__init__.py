"""What a model is: configurations and budgets. Nothing here imports another room.

Budget modules need neither torch nor transformers; the configuration classes need transformers,
so names are resolved on first use.
"""

from importlib import import_module
from typing import Any

_HOME = {
    "Budget": "budget",
    "BudgetError": "budget",
    "select_budgets": "budget",
    "DeltaBudget": "delta_budget",
    "DeltaEncoderConfig": "configuration_delta_encoder",
}

__all__ = list(_HOME)


def __getattr__(name: str) -> Any:
    """Import the module that defines ``name`` the first time it is asked for."""
    if name not in _HOME:
        raise AttributeError(f"module 'nestling.configuration' has no attribute {name!r}")
    return getattr(import_module(f".{_HOME[name]}", __name__), name)
