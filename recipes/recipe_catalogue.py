"""Which recipes exist and what each one says it is. Imports only the standard library."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from .cli_errors import UsageError
from .nearest_match import did_you_mean

RECIPES_FOLDER = Path(__file__).resolve().parent


class CatalogueEntry(NamedTuple):
    """A shipped recipe."""

    name: str
    path: Path
    description: str


def catalogue() -> list[CatalogueEntry]:
    """Return the shipped recipes by name: ``delta_encoder/tiny`` and so on."""
    return sorted(_entries())


def _entries() -> Iterator[CatalogueEntry]:
    for path in RECIPES_FOLDER.glob("*/*.yaml"):
        yield CatalogueEntry(f"{path.parent.name}/{path.stem}", path, describe(path))


def describe(path: Path) -> str:
    """Return the first comment of a YAML file; Hydra's ``# @package`` header does not count."""
    for line in path.read_text(encoding="utf-8").splitlines():
        comment = line.lstrip("# ").strip()
        if line.startswith("#") and comment and not comment.startswith("@"):
            return comment
        if line.strip() and not line.startswith("#"):
            break
    return ""


def find_recipe(name: str) -> Path:
    """Return the file of a shipped recipe or of a user's own YAML file.

    Args:
        name: ``family/name`` of a shipped recipe, or a path that ends in .yaml.

    Raises:
        UsageError: with the nearest recipe, or all of them.
    """
    shipped = {entry.name: entry.path for entry in catalogue()}
    if name.removesuffix(".yaml") in shipped:
        return shipped[name.removesuffix(".yaml")]
    path = Path(name).expanduser()
    if path.suffix == ".yaml":
        if path.is_file():
            return path.resolve()
        raise UsageError(
            f"recipe file {name} does not exist; shipped recipes: {', '.join(shipped)}"
        )
    raise UsageError(
        f"no recipe is named {name!r}{did_you_mean(name, shipped)} "
        f"(shipped: {', '.join(shipped)}; or give a path that ends in .yaml)"
    )
