"""Which benchmark suites exist. Imports only the standard library."""

import ast
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from types import ModuleType

from .cli_errors import UsageError
from .nearest_match import did_you_mean

BENCH_FOLDER = Path(__file__).resolve().parent / "bench"


def bench_suites() -> dict[str, str]:
    """Return suite name -> first line of its docstring; a suite is a module with a `run` function.

    Modules are parsed, not imported, because they import torch.
    """
    suites = {}
    for path in sorted(BENCH_FOLDER.glob("*.py")):
        module = ast.parse(path.read_text(encoding="utf-8"))
        if any(isinstance(node, ast.FunctionDef) and node.name == "run" for node in module.body):
            suites[path.stem] = (ast.get_docstring(module) or "").partition("\n")[0]
    return suites


def chosen_suites(names: Sequence[str]) -> list[str]:
    """Return the named suites; ``all`` stands for every one."""
    return list(bench_suites()) if "all" in names else list(names)


def bench_module(name: str) -> ModuleType:
    """Import a suite.

    Raises:
        UsageError: for an unknown suite, with the nearest one.
    """
    suites = bench_suites()
    if name not in suites:
        raise UsageError(
            f"no benchmark suite is named {name!r}{did_you_mean(name, suites)} "
            f"(suites: {', '.join(suites) or 'none'})"
        )
    return import_module(f"{__package__}.bench.{name}")
