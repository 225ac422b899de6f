"""From a recipe's name and overrides to one checked, typed object, composed with Hydra.

Only Hydra's compose API is used: no output folders, no logging set-up, no working directory
change, and no global state left behind. Hydra is imported on first use, since it takes a quarter
of a second.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar, cast

from .cli_errors import ModelFolderError, UsageError
from .ddl_schema import DdlRecipe
from .ddl_validation import with_shape_of_start
from .nearest_match import did_you_mean
from .recipe_catalogue import RECIPES_FOLDER, find_recipe
from .recipe_overrides import (
    Override,
    check_key,
    hydra_overrides,
    recipe_keys,
    split_arguments,
)
from .recipe_schema import RECIPE_SCHEMAS, Recipe
from .recipe_validation import validate
from .whole_file import write_whole_file

SAVED_NAME = "recipe.yaml"
# What may be changed of the recipe of a finished model.
MEASURING_SECTIONS = ("data", "evaluation")
RecipeT = TypeVar("RecipeT")
_PRIMARY, _SCHEMA_GROUP = "nestling_recipe", "schema"


def load_recipe(arguments: Sequence[str]) -> Recipe:
    """Compose, type-check and validate a recipe.

    Args:
        arguments: ``recipe=family/name`` (or ``recipe=my.yaml``) and ``section.key=value``.

    Raises:
        UsageError: for an unknown recipe or key, a wrong type or a value out of range.
    """
    overrides = split_arguments(arguments)
    names = [override.value for override in overrides if override.key == "recipe"]
    if len(names) != 1:
        raise UsageError(
            f"{len(names)} recipes given, one is needed: recipe=delta_encoder/tiny "
            "(nestling list shows all)"
        )
    path = find_recipe(names[0])
    return _load_file(path, [override for override in overrides if override.key != "recipe"])


def load_saved_recipe(folder: Path, arguments: Sequence[str] = ()) -> Recipe:
    """Load the recipe that a finished run saved in ``folder`` or in its parent.

    Args:
        folder: a model folder or the output_dir above it.
        arguments: ``data.key=value`` and ``evaluation.key=value`` overrides; what the model is and
            how it was trained can no longer be changed.

    Raises:
        ModelFolderError: if there is no saved recipe.
        UsageError: for overrides that do not fit.
    """
    overrides = split_arguments(arguments)
    for place in (folder, folder.resolve().parent):
        if (place / SAVED_NAME).is_file():
            path = (place / SAVED_NAME).resolve()
            _require_measuring(overrides, RECIPE_SCHEMAS[_family_of(_read_file(path), path)])
            return _load_file(path, overrides)
    raise ModelFolderError(
        f"{folder} has no {SAVED_NAME} beside it; give the model folder of a finished run"
    )


def _require_measuring(overrides: Sequence[Override], schema: type[Any]) -> None:
    """Refuse what would be read and then change nothing."""
    keys = recipe_keys(schema)
    for key, value in overrides:
        check_key(key, keys)
        if key.partition(".")[0] not in MEASURING_SECTIONS:
            option = "--delta-token-ratio" if key.endswith(".delta_token_ratio") else None
            raise UsageError(
                f"{key}={value} would change nothing: a finished model is measured as it is; "
                f"set {f'{option} {value}, or ' if option else ''}keys of data or evaluation only"
            )


def of_family(recipe: Recipe, kind: type[RecipeT]) -> RecipeT:
    """Return the recipe if it is of the family that a command is for.

    Raises:
        UsageError: for a recipe of another family.
    """
    if not isinstance(recipe, kind):
        wanted = next(name for name, schema in RECIPE_SCHEMAS.items() if schema is kind)
        raise UsageError(
            f"this needs a recipe of family {wanted}, and the one given is of {recipe.family}; "
            f"nestling list shows the recipes of {wanted}"
        )
    return recipe


def recipe_yaml(recipe: Recipe) -> str:
    """Print a recipe with all its keys, so that any YAML reader gets the same values back."""
    import yaml

    header = "# @package _global_\n# Resolved recipe of a run.\n"
    body: str = yaml.safe_dump(asdict(recipe), sort_keys=False, allow_unicode=True)
    return header + body


def save_recipe(recipe: Recipe, folder: Path) -> Path:
    """Write ``recipe.yaml`` into ``folder``: the old file or the whole new one, never a part."""
    path = folder / SAVED_NAME
    write_whole_file(path, recipe_yaml(recipe))
    return path


def _load_file(path: Path, overrides: Sequence[Override]) -> Recipe:
    content = _read_file(path)
    family = _family_of(content, path)
    schema = RECIPE_SCHEMAS[family]
    lines = hydra_overrides(overrides, schema)
    with _one_line_errors(path, schema):
        recipe = _compose(path, family, lines)
    if isinstance(recipe, DdlRecipe):
        typed = {override.key for override in overrides}
        recipe = with_shape_of_start(recipe, typed, content.get("model") or {})
    validate(recipe)
    return recipe


def _read_file(path: Path) -> dict[str, Any]:
    import yaml

    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"recipe {path} is not YAML: {error}") from error
    if not isinstance(content, dict):
        raise UsageError(f"recipe {path} is not a mapping of sections; see a shipped recipe")
    return content


def _family_of(content: Mapping[str, Any], path: Path) -> str:
    """Return the family in ``family:``, or of the shipped recipe named in ``defaults:``."""
    candidates = [content.get("family")]
    for default in content.get("defaults") or []:
        candidates.append(str(default).lstrip("/").partition("/")[0])
    family = str(next((name for name in candidates if name not in (None, "_self_")), ""))
    if family not in RECIPE_SCHEMAS:
        raise UsageError(
            f"recipe {path} has family {family!r}{did_you_mean(family, RECIPE_SCHEMAS)}; "
            f"write family: {' or '.join(RECIPE_SCHEMAS)}"
        )
    return family


def _compose(path: Path, family: str, overrides: Sequence[str]) -> Recipe:
    from hydra import compose, initialize_config_dir
    from hydra.core.config_store import ConfigStore
    from omegaconf import OmegaConf

    shipped = path.is_relative_to(RECIPES_FOLDER)
    folder = RECIPES_FOLDER if shipped else path.parent
    name = path.relative_to(folder).with_suffix("").as_posix()
    store = ConfigStore.instance()
    store.store(group=_SCHEMA_GROUP, name=family, node=RECIPE_SCHEMAS[family])
    defaults = [f"{_SCHEMA_GROUP}/{family}@_global_", f"{name}@_global_", "_self_"]
    store.store(name=_PRIMARY, node={"defaults": defaults})
    # A user's file may build on a shipped recipe: defaults: [delta_encoder/tiny, _self_].
    search = f"hydra.searchpath=['file://{RECIPES_FOLDER}']"
    with initialize_config_dir(str(folder), job_name="nestling", version_base="1.3"):
        composed = compose(_PRIMARY, overrides=[search, *overrides])
    return cast(Recipe, OmegaConf.to_object(composed))


@contextmanager
def _one_line_errors(path: Path, schema: type[Any]) -> Iterator[None]:
    """Turn the errors of Hydra and OmegaConf into one `UsageError` line."""
    from hydra.errors import HydraException
    from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException
    from yaml import YAMLError

    try:
        yield
    except MissingMandatoryValue as error:
        raise UsageError(
            f"{error.full_key} is required by {path.stem}: give {error.full_key}=…"
        ) from error
    except (HydraException, OmegaConfBaseException) as error:
        raise UsageError(_explain(error, path, schema)) from error
    except YAMLError as error:
        raise UsageError(f"recipe {path} is not YAML: {error}") from error


def _explain(error: BaseException, path: Path, schema: type[Any]) -> str:
    from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, OmegaConfBaseException):
        cause = cause.__cause__ or cause.__context__
    if cause is None:
        first = next(line for line in str(error).splitlines() if line.strip())
        return f"{first.strip()} (in {path.name} or an override; lists are written key=[a,b])"
    key = str(cause.full_key or cause.key)
    keys = recipe_keys(schema)
    if isinstance(cause, ConfigKeyError | ConfigAttributeError):
        return f"unknown recipe key {key!r} in {path.name} or an override{did_you_mean(key, keys)}"
    wanted = keys.get(key)
    reason = str(cause.msg).splitlines()[0]
    allowed = f"; {key} is {getattr(wanted, '__name__', wanted)}" if wanted else ""
    return f"{key}: {reason}{allowed}"
