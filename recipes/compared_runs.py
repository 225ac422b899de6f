"""What two models share and in what they differ: the saved recipes of their runs. Torch-free."""

import json
import logging
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..trainers.event_log import EventLogError, read_events
from .cli_errors import ModelFolderError
from .explorer.run_state import RunState
from .recipe_sections import FREE_KEYS, FREE_SECTIONS

logger = logging.getLogger(__name__)

RECIPE, EVENTS = "recipe.yaml", "events.jsonl"
# Runs of one method differ in these.
OWN_KEYS = ("seed", "output_dir")
CURVE_POINTS = 200


@dataclass(frozen=True)
class RunOrigin:
    """Where a model comes from.

    Attributes:
        folder: Folder of the run; None where no recipe lies in the folder or above it.
        settings: The recipe without what does not change the training; None likewise.
        seed: Seed of the training.
    """

    folder: Path | None
    settings: Mapping[str, Any] | None
    seed: int | None

    @property
    def label(self) -> str | None:
        """Return the variant that was trained, or the family.

        None where no recipe says it, or a checkpoint brought its own.
        """
        model = (self.settings or {}).get("model") or {}
        if self.settings is None or model.get("init_from") is not None:
            return None
        name = str(model.get("variant") or self.settings.get("family") or "model")
        update = str(model.get("residual_update", "delta"))
        return residual_label(name, update, bool(model.get("value_residual")))

    @property
    def row_length(self) -> int | None:
        """Return the tokens of a row of training; None where the recipe does not say it."""
        return self._count("data", "max_length")

    @property
    def training_tokens(self) -> int | None:
        """Return the tokens that one process was to read in training; None likewise."""
        counts = (
            self.row_length,
            self._count("training", "max_steps"),
            self._count("training", "batch_size"),
            self._count("training", "gradient_accumulation_steps"),
        )
        return None if None in counts else math.prod(count for count in counts if count)

    def _count(self, section: str, key: str) -> int | None:
        keys = (self.settings or {}).get(section)
        value = keys.get(key) if isinstance(keys, Mapping) else None
        is_count = isinstance(value, int) and not isinstance(value, bool) and value > 0
        return value if is_count else None


def residual_label(variant: str, update: str, has_value_residual: bool) -> str:
    """Return what a residual is called: ``ddl-cc``, ``ddl-cc write_only``, and so on."""
    parts = [variant, "" if update == "delta" else update]
    parts.append("value_residual" if has_value_residual else "")
    return " ".join(part for part in parts if part)


def origin_of(path: Path) -> RunOrigin:
    """Return the run that made a model or a result: the nearest recipe in its folder or above.

    Args:
        path: A run, ``model/`` or ``best/`` of one, a folder of ``slices/``, or a file of a run.

    Raises:
        ModelFolderError: If the recipe cannot be read.
    """
    resolved = path.resolve()
    for folder in (resolved, *resolved.parents[:2]):
        recipe = folder / RECIPE
        if recipe.is_file():
            content = _read_recipe(recipe)
            seed = content.get("seed")
            is_whole = isinstance(seed, int) and not isinstance(seed, bool)
            return RunOrigin(folder, _settings(content), seed if is_whole else None)
    return RunOrigin(None, None, None)


def method_names(labels: Sequence[str], keys: Sequence[str], names: Sequence[str]) -> list[str]:
    """Name the method of each model: its label, where models of equal keys are one method.

    Args:
        labels: What was trained, for example a variant.
        keys: Equal for models that differ by their seed only.
        names: Unique names; they tell apart methods whose labels are equal.

    Returns:
        One name per model; equal for models of one method.
    """
    first_of: dict[str, int] = {}
    for index, key in enumerate(keys):
        first_of.setdefault(key, index)
    used = Counter(labels[index] for index in first_of.values())
    titles = {
        key: labels[index] if used[labels[index]] == 1 else f"{labels[index]} ({names[index]})"
        for key, index in first_of.items()
    }
    return [titles[key] for key in keys]


def method_keys(
    origins: Sequence[RunOrigin], parts: Sequence[str], names: Sequence[str]
) -> list[str]:
    """Return what models of one method have in common.

    Models are one method where recipe and part are equal and the seeds are known and differ. A
    seed that occurs twice says nothing about seeds: then every model stands for itself.

    Args:
        origins: Of each model.
        parts: What of its run is compared, such as the budget and the checkpoint.
        names: Unique names.
    """
    keys = [
        name
        if origin.settings is None or origin.seed is None
        else json.dumps([origin.settings, part], sort_keys=True, default=str)
        for origin, part, name in zip(origins, parts, names, strict=True)
    ]
    seeds: dict[str, list[int | None]] = {}
    for key, origin in zip(keys, origins, strict=True):
        seeds.setdefault(key, []).append(origin.seed)
    return [
        key if len(set(seeds[key])) == len(seeds[key]) else name
        for key, name in zip(keys, names, strict=True)
    ]


def curves_of(folder: Path | None) -> dict[str, list[list[float]]]:
    """Return the logged losses of a run as ``[step, loss]``, thinned to `CURVE_POINTS`.

    Returns:
        ``training`` and ``evaluation``; a curve without points is left out.
    """
    if folder is None:
        return {}
    state = RunState()
    try:
        state.apply(read_events(folder / EVENTS)[0])
    except EventLogError as error:
        # The comparison is about the models; a damaged log only costs the picture.
        logger.warning("no curves of %s: %s", folder, error)
        return {}
    curves = {}
    for name, key in (("training", "loss"), ("evaluation", "eval_loss")):
        points = [[step, value] for step, value in state.curve(key) if value is not None]
        if points:
            stride = -(-len(points) // CURVE_POINTS)
            # Counted from the end, so that the last point is kept.
            curves[name] = points[::-stride][::-1]
    return curves


def _read_recipe(path: Path) -> Mapping[str, Any]:
    import yaml

    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        cause = " ".join(str(error).split())
        raise ModelFolderError(f"{path} cannot be read ({cause}); copy the run again") from error
    if not isinstance(content, Mapping):
        raise ModelFolderError(f"{path} is no recipe; copy the run again")
    return content


def _settings(content: Mapping[str, Any]) -> dict[str, Any]:
    settings: dict[str, Any] = {}
    for name, value in content.items():
        if name in (*OWN_KEYS, *FREE_SECTIONS):
            continue
        free = FREE_KEYS.get(name, ())
        if isinstance(value, Mapping):
            value = {key: item for key, item in value.items() if key not in free}
        settings[name] = value
    return settings
