"""From a saved model folder to the code of its family, without importing torch."""

import json
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

from ..modeling.families import FAMILIES
from .cli_errors import ModelFolderError, UsageError

CONFIG = "config.json"


def model_folder(folder: Path) -> Path:
    """Return the folder that holds a model: itself, or ``model/`` of a run.

    Raises:
        ModelFolderError: if neither holds one.
    """
    for place in (folder, folder / "model"):
        if (place / CONFIG).is_file():
            return place
    raise ModelFolderError(
        f"{folder} has no {CONFIG}, and no model/{CONFIG}; give the folder of a saved model, or of "
        "the run that made it"
    )


def family_of_folder(folder: Path) -> str:
    """Read the family of a model from the ``model_type`` of its config.json.

    Args:
        folder: the model folder, or the output_dir of the run that made it.

    Raises:
        ModelFolderError: if the folder is no model, or a model of another kind.
    """
    path = model_folder(folder) / CONFIG
    try:
        model_type = json.loads(path.read_text(encoding="utf-8"))["model_type"]
    except (ValueError, KeyError, TypeError) as error:
        raise ModelFolderError(
            f"{path} is damaged ({error}); save the model again or copy the folder again"
        ) from error
    if model_type not in FAMILIES:
        raise ModelFolderError(
            f"{path} has model_type {model_type!r}, which cannot be cut; families: "
            f"{', '.join(FAMILIES)}. An exported slice is final: give the model it was cut from"
        )
    return str(model_type)


def family_module(family: str, part: str) -> ModuleType:
    """Import ``recipes.<family>.<part>``, for example ``recipes.delta_encoder.train``.

    Raises:
        UsageError: if the family has no such part.
    """
    name = f"{__package__}.{family}.{part}"
    if find_spec(name) is None:
        raise UsageError(f"family {family} has no {part}; families: {', '.join(FAMILIES)}")
    return import_module(name)
