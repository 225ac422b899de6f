"""The text every machine with Python has: the sources and docstrings of the standard library.

The default corpus of demos and tests. It needs no network and depends on the Python version
only; `describe()` records that version, `scan_documents` the content hash. A module source is cut
into documents that do not overlap: its docstring, every function, every method, the head of
every class, and the statements between them. Documents of one module share its name as group;
a text that an earlier module already has is left out, so none is in both splits.
"""

import ast
import hashlib
import inspect
import logging
import platform
import sys
import sysconfig
import tokenize
from collections.abc import Iterator
from functools import cached_property
from itertools import islice, pairwise
from pathlib import Path

from .documents import DataError, Document

logger = logging.getLogger(__name__)

# Parts that distributions leave out or patch, and tables of data that are not text.
SKIPPED_PACKAGES = frozenset(
    "distutils encodings ensurepip idlelib lib2to3 pydoc_data sysconfig test tests tkinter "
    "turtle turtledemo venv __phello__".split()
)
MAX_METHOD_CLASS_LINES = 40  # longer classes are cut into their methods


class EmbeddedCorpus:
    """Documents of the standard library, modules in the order of the hash of their names.

    That order is fixed and mixes the subjects, so that a corpus limited by `max_bytes` is a fair
    sample and not the modules that begin with "a".

    Args:
        max_bytes: Stop before the documents (UTF-8) exceed this many bytes; None reads all.

    Raises:
        DataError: If `max_bytes` is not positive.
    """

    def __init__(self, max_bytes: int | None = None) -> None:
        """Keep the limit; nothing is read yet."""
        if max_bytes is not None and max_bytes < 1:
            raise DataError(f"data.max_bytes={max_bytes} must be at least 1; leave it out for all")
        self.max_bytes = max_bytes

    def describe(self) -> dict[str, str]:
        """Return the Python version and the limit."""
        return {
            "source": "embedded",
            "python": platform.python_version(),
            "max_bytes": str(self.max_bytes),
        }

    def documents(self, start: int = 0) -> Iterator[Document]:
        """Yield the documents from number `start` on; `group` and `origin` name the module.

        Raises:
            DataError: If this Python comes without sources of its standard library.
        """
        return islice(self._documents, start, None)

    @cached_property
    def _documents(self) -> list[Document]:
        # A run reads them several times (scan, tokenizer, rows); parsing costs seconds.
        return list(self._read_documents())

    def _read_documents(self) -> Iterator[Document]:
        remaining = self.max_bytes
        seen: set[str] = set()
        for module, path in standard_library_modules():
            for text in module_documents(path):
                if text in seen:
                    continue
                seen.add(text)
                if remaining is not None:
                    remaining -= len(text.encode())
                    if remaining < 0:
                        return
                yield Document(text=text, group=module, origin=module)


def standard_library_modules() -> list[tuple[str, Path]]:
    """List (module name, source file) of the standard library in the fixed order of the corpus.

    Raises:
        DataError: If no source file is found.
    """
    root = Path(sysconfig.get_path("stdlib"))
    modules: list[tuple[str, Path]] = []
    # Only known names are looked into: site-packages lies in the same folder and is large.
    for name in sys.stdlib_module_names - SKIPPED_PACKAGES:
        for path in (root / f"{name}.py", *(root / name).rglob("*.py")):
            parts = path.relative_to(root).with_suffix("").parts
            if path.is_file() and not SKIPPED_PACKAGES.intersection(parts):
                modules.append((".".join(part for part in parts if part != "__init__"), path))
    if not modules:
        raise DataError(
            f"no sources of the standard library in {root}; use a Python that has them, "
            f"or data.source=files with data.path="
        )
    return sorted(modules, key=lambda item: (hashlib.sha256(item[0].encode()).digest(), item[0]))


def module_documents(path: Path) -> list[str]:
    """Cut one source file into documents; together they hold every non-blank line once.

    A file that cannot be read or parsed gives no documents.
    """
    try:
        with tokenize.open(path) as file:
            source = file.read()
        tree = ast.parse(source)
    except (OSError, SyntaxError, ValueError) as error:
        logger.debug("left out %s: %s", path, error)
        return []
    lines = source.splitlines(keepends=True)
    documents: list[str] = []
    if ast.get_docstring(tree) is not None:
        documents.append(inspect.cleandoc(ast.get_docstring(tree) or ""))
    first_line = tree.body[0].end_lineno or 0 if documents else 0
    for start, end in _line_ranges(tree, first_line, len(lines)):
        text = inspect.cleandoc("\n" + "".join(lines[start:end])).strip("\n")
        if text.strip():
            documents.append(text)
    return documents


def _line_ranges(tree: ast.Module, first_line: int, last_line: int) -> Iterator[tuple[int, int]]:
    """Yield [start, end) line ranges that cover first_line..last_line, cut at definitions."""
    cuts = {first_line, last_line}
    for node in tree.body:
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            continue
        cuts.update(_bounds(node))
        start, end = _bounds(node)
        if isinstance(node, ast.ClassDef) and end - start > MAX_METHOD_CLASS_LINES:
            for member in node.body:
                if isinstance(member, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                    cuts.update(_bounds(member))
    ordered = sorted(cut for cut in cuts if first_line <= cut <= last_line)
    yield from pairwise(ordered)


def _bounds(node: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) -> tuple[int, int]:
    """Return the [start, end) lines (from 0) of a definition with its decorators."""
    first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
    return first - 1, node.end_lineno or node.lineno
