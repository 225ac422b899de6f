"""Stands in for what a verb of the command line calls."""

import sys
from types import ModuleType

import pytest


def stub(monkeypatch: pytest.MonkeyPatch, name: str, **functions: object) -> None:
    """Put a module with `functions` where a verb would import a seam."""
    module = ModuleType(name)
    module.__dict__.update(functions)
    monkeypatch.setitem(sys.modules, name, module)
