"""Reads the imports of a module that is to be shipped as remote code.

The loader of transformers finds relative imports with a regular expression over the text and
imports every absolute one before it runs the code. What it would misread is refused here, with
the line to change.
"""

import ast
import re
import sys
from collections.abc import Iterator
from typing import NamedTuple

SHIPPED_ROOMS = ("configuration", "modeling")
ALLOWED_PACKAGES = frozenset({*sys.stdlib_module_names, "torch", "transformers"})

_FROM = re.compile(rb"from([ \t]+)\.+[\w.]+([ \t]+)import\b")


class RemoteCodeError(ValueError):
    """A module cannot be shipped as remote code."""


class RelativeImport(NamedTuple):
    """One ``from ..room.leaf import …`` statement.

    Attributes:
        line: index of its first line.
        start: byte offset of ``from`` in that line.
        end: byte offset after ``import``.
        target: dotted name of the imported module, relative to the package.
    """

    line: int
    start: int
    end: int
    target: str


def relative_imports(module: str, source: bytes, package: str) -> list[RelativeImport]:
    """List the relative imports of a module and refuse what remote code may not contain.

    Args:
        module: dotted name relative to the package, such as ``modeling.encoder_layer``.
        source: text of the module.
        package: name of the package.

    Raises:
        RemoteCodeError: for an import that would be lost, misread, or missing for a user.
    """
    tree = ast.parse(source)
    lines = source.splitlines(keepends=True)
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level:
            found.append(_read(node, module, lines))
    for node in _required(tree):
        names = [alias.name for alias in node.names]
        if isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        for name in names:
            _check_absolute(name.split(".")[0], module, node.lineno, package)
    return found


def _read(node: ast.ImportFrom, module: str, lines: list[bytes]) -> RelativeImport:
    where = f"{module} line {node.lineno}"
    if node.module is None:
        raise RemoteCodeError(
            f"{where}: 'from {'.' * node.level} import …' is not seen by the loader; "
            "write 'from .leaf import name'"
        )
    if any(alias.name == "*" for alias in node.names):
        raise RemoteCodeError(f"{where}: star import of {node.module}; name what is used")
    parents = module.split(".")[:-1]
    kept = len(parents) - (node.level - 1)
    if kept < 0:
        raise RemoteCodeError(f"{where}: {'.' * node.level}{node.module} is above the package")
    target = ".".join([*parents[:kept], node.module])
    if target.split(".")[0] not in SHIPPED_ROOMS:
        raise RemoteCodeError(
            f"{where}: imports {target}; shipped code may import {' and '.join(SHIPPED_ROOMS)} only"
        )
    line = lines[node.lineno - 1]
    match = _FROM.match(line, node.col_offset)
    if match is None or line[: node.col_offset].strip():
        raise RemoteCodeError(f"{where}: start the line with 'from {node.module} import'")
    return RelativeImport(node.lineno - 1, match.start(), match.end(), target)


def _required(node: ast.AST) -> Iterator[ast.Import | ast.ImportFrom]:
    """Yield the absolute imports the loader demands: all but those under ``try``."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Try):
            continue
        if isinstance(child, ast.Import) or (isinstance(child, ast.ImportFrom) and not child.level):
            yield child
        yield from _required(child)


def _check_absolute(name: str, module: str, line: int, package: str) -> None:
    if name == package:
        raise RemoteCodeError(
            f"{module} line {line}: imports {package} by name; use a relative import"
        )
    if name not in ALLOWED_PACKAGES:
        raise RemoteCodeError(
            f"{module} line {line}: imports {name}, which every user would need; "
            "allowed are the standard library, torch and transformers (others inside try/except)"
        )
