"""The flattener: turns modules of the package into a flat folder of remote code.

``AutoModel.from_pretrained(folder, trust_remote_code=True)`` wants every module beside
``config.json``. The import graph is walked from the classes a family offers, each module is copied
and only its import lines change. The same function returns the complete ``auto_map``, so code and
map never part.
"""

import functools
import logging
import subprocess
from collections.abc import Sequence
from pathlib import Path

from transformers.dynamic_module_utils import get_relative_import_files, get_relative_imports

from .. import __version__
from ..modeling.families import PACKAGE, Family
from .source_imports import RelativeImport, RemoteCodeError, relative_imports

logger = logging.getLogger(__name__)

SOURCE_ROOT = Path(__file__).resolve().parent.parent
NEVER_SHIPPED = ("modeling.families",)
# transformers 4.57 copies only what the named module itself imports, and a model that is saved
# again takes along only its own imports; so each module an auto_map names mentions all others.
FOOTER = "\n\nif False:  # The loader reads these lines as text to learn which files belong here.\n"
HEADER = "# Generated from {package} {version}, commit {commit}: {path}. Edit it there.\n"


@functools.cache
def source_commit(root: Path = SOURCE_ROOT) -> str:
    """Return the commit the package is checked out at, or ``"unknown"`` outside a checkout."""

    def git(*arguments: str) -> str:
        done = subprocess.run(
            ["git", "-C", str(root), *arguments], capture_output=True, text=True, check=False
        )
        return done.stdout.strip() if done.returncode == 0 else ""

    try:
        if not git("rev-parse", "--show-toplevel") == str(root):
            return "unknown"
        return git("rev-parse", "HEAD") or "unknown"
    except OSError:
        return "unknown"


def flatten(
    roots: Sequence[str], source_root: Path = SOURCE_ROOT, package: str = PACKAGE
) -> dict[str, bytes]:
    """Return the flat files that the modules ``roots`` need, by file name.

    The source of each is kept but for its import lines; a header is added, and the roots also get
    a footer that names every file.

    Args:
        roots: dotted module names relative to the package; several for composite models.
        source_root: folder of the package.
        package: its import name.

    Raises:
        RemoteCodeError: for a missing module, two modules of one leaf name, or a forbidden import.
    """
    commit = source_commit(source_root)
    homes: dict[str, str] = {}
    files: dict[str, bytes] = {}
    queue = [(root, "the family table") for root in roots]
    while queue:
        module, importer = queue.pop(0)
        leaf = module.rsplit(".", 1)[-1]
        if homes.setdefault(leaf, module) != module:
            raise RemoteCodeError(
                f"{homes[leaf]} and {module} would both be {leaf}.py in a flat folder; rename one"
            )
        if f"{leaf}.py" in files:
            continue
        path = module.replace(".", "/") + ".py"
        if module in NEVER_SHIPPED or not (source_root / path).is_file():
            raise RemoteCodeError(
                f"{importer} imports {module}, which cannot be shipped; "
                "import the leaf module that defines the name"
            )
        source = (source_root / path).read_bytes()
        imports = relative_imports(module, source, package)
        header = HEADER.format(package=package, version=__version__, commit=commit, path=path)
        files[f"{leaf}.py"] = header.encode() + _with_flat_imports(source, imports)
        queue.extend((found.target, module) for found in imports)
    for root in roots:
        entry = f"{root.rsplit('.', 1)[-1]}.py"
        files[entry] += _mentions(sorted(files.keys() - {entry}))
    return files


def _with_flat_imports(source: bytes, imports: Sequence[RelativeImport]) -> bytes:
    """Point every relative import at the same folder; all other bytes stay."""
    lines = source.splitlines(keepends=True)
    for found in imports:
        leaf = found.target.rsplit(".", 1)[-1].encode()
        line = lines[found.line]
        lines[found.line] = line[: found.start] + b"from ." + leaf + b" import" + line[found.end :]
    return b"".join(lines)


def _mentions(names: Sequence[str]) -> bytes:
    if not names:
        return b""
    lines = [f"    from .{name.removesuffix('.py')} import __doc__\n" for name in names]
    return (FOOTER + "".join(lines)).encode()


def family_roots(family: Family) -> list[str]:
    """Return the modules of a family's configuration and models, without repeats."""
    dotted = [family.config, *family.auto_classes.values()]
    return list(dict.fromkeys(name.split(":")[0] for name in dotted))


def auto_map(family: Family) -> dict[str, str]:
    """Return the complete ``auto_map`` of ``config.json``: every Auto class the family offers."""
    classes = {"AutoConfig": family.config, **family.auto_classes}
    entries = {}
    for auto_class, dotted in classes.items():
        module, name = dotted.split(":")
        entries[auto_class] = f"{module.rsplit('.', 1)[-1]}.{name}"
    return entries


def write_remote_code(
    folder: Path, family: Family, parts: Sequence[Family] = ()
) -> dict[str, str]:
    """Write the code of a family into ``folder`` and return its ``auto_map``.

    Args:
        folder: an existing folder.
        family: the family whose classes the folder offers.
        parts: families inside it, for composite models; their code is shipped too.

    Raises:
        RemoteCodeError: if the code cannot be shipped.
    """
    roots = [root for member in (family, *parts) for root in family_roots(member)]
    files = flatten(list(dict.fromkeys(roots)))
    for name, text in files.items():
        (folder / name).write_bytes(text)
    check_flat_folder(folder, list(files))
    logger.debug("wrote %d code files for %s", len(files), family.model_type)
    return auto_map(family)


def check_flat_folder(folder: Path, names: Sequence[str]) -> None:
    """Check with transformers' own scanner that it will find exactly the files that are there.

    Raises:
        RemoteCodeError: if the scanner sees an import that is none (a docstring line, say), or
            misses one.
    """
    for name in names:
        real = {
            found.target.rsplit(".", 1)[-1]
            for found in relative_imports(
                f"{_ROOM}.{name.removesuffix('.py')}", (folder / name).read_bytes(), PACKAGE
            )
        }
        seen = set(get_relative_imports(folder / name))
        if seen != real:
            odd = ", ".join(sorted(seen ^ real))
            raise RemoteCodeError(
                f"{name}: the loader's text scan and Python disagree about importing {odd}; "
                "a docstring line must not begin like a relative import"
            )
        try:
            get_relative_import_files(folder / name)
        except FileNotFoundError as error:
            absent = Path(error.filename).name
            raise RemoteCodeError(f"{name} needs {absent}, which is not in the folder") from None


_ROOM = "modeling"  # any shipped room: in a flat folder every import has one dot
