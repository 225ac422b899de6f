"""The mechanics of a training run that no family changes: resuming, and what is left in the end."""

import logging
import shlex
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..hub_cards.complete_folder import clear_leftovers
from ..hub_cards.export_slices import export, export_elastic
from ..trainers.checkpoint_files import bring_back_replaced, last_complete_checkpoint
from .cli_errors import UsageError
from .environment import PACKAGE_FOLDER, commit_of
from .evaluation.evaluation_table import Row
from .recipe_sections import FREE_KEYS, FREE_SECTIONS
from .shared_preparation import is_first_process

logger = logging.getLogger(__name__)

DATA_FOLDER, MODEL_FOLDER, SLICES_FOLDER = "data", "model", "slices"
BEST_FOLDER, LAST_LINK = "best", "last"
METRICS_FILE = "metrics.json"


@dataclass(frozen=True)
class TrainReport:
    """What a finished run has to show.

    Attributes:
        rows: one row per budget, the cheapest first.
        written: what lies where.
    """

    rows: list[Row]
    written: dict[str, Path]


def checkpoint_to_resume(output_dir: Path, resume: bool) -> Path | None:
    """Return the newest complete checkpoint of a run that goes on; None for a new run.

    What a kill left is put right before. Half-written checkpoints stay for the trainer, which
    removes them when this command is known to go on with the run: they may belong to a running one.

    Raises:
        UsageError: if there is one and ``resume`` is off.
    """
    # By every process, for there is no group yet in which the others could wait for the first. No
    # save comes in between: the trainer waits for all of them before its first step.
    bring_back_replaced(output_dir)
    if is_first_process():
        for name in (MODEL_FOLDER, BEST_FOLDER, SLICES_FOLDER):
            clear_leftovers(output_dir / name)
    checkpoint = last_complete_checkpoint(output_dir) if output_dir.is_dir() else None
    if checkpoint is not None and not resume:
        raise UsageError(
            f"output_dir {output_dir} already holds {checkpoint.name}; "
            "add --resume to go on from it, or choose another output_dir"
        )
    return checkpoint


def require_same_recipe(recipe: Any, saved: Any) -> None:
    """Refuse to go on with settings that would make the run something else than its recipe.

    Evaluation, export and how often things are logged and saved may change.

    Raises:
        UsageError: naming every key that differs.
    """
    here, there = asdict(recipe), asdict(saved)
    for section, keys in FREE_KEYS.items():
        for values in (here, there):
            for key in keys:
                values[section].pop(key)
    sections = [name for name in here if isinstance(here[name], dict)]
    sections = [name for name in sections if name not in FREE_SECTIONS]
    differing = [
        f"{section}.{key} was {there[section][key]!r} and is now {value!r}"
        for section in sections
        for key, value in here[section].items()
        if there[section][key] != value
    ]
    if here["seed"] != there["seed"]:
        differing.append(f"seed was {there['seed']} and is now {here['seed']}")
    if differing:
        raise UsageError(
            f"{saved.output_dir} was trained with another recipe: {'; '.join(differing)}; "
            "resume with the same values, or choose another output_dir"
        )


def publish(
    recipe: Any,
    model: Any,
    tokenizer: Any,
    evaluate_folder: Callable[[Path, Path], list[Row]],
    base_model: str | None = None,
    best: Callable[[], Any] | None = None,
    delta_token_ratio: float | None = None,
) -> TrainReport:
    """Write the nested model, measure it, and cut and verify the slices.

    The best model is written beside it, neither measured nor cut: `nestling evaluate` and
    `nestling export` take ``best/`` as they take ``model/``.

    Args:
        recipe: the resolved recipe; its ``output_dir`` receives everything.
        model: the trained model.
        tokenizer: its tokenizer, or None.
        evaluate_folder: (model folder, JSON file) -> rows of the table.
        base_model: what training started from, for the card.
        best: loads the model of the best evaluation; None where there was none.
        delta_token_ratio: share of the tokens that get the delta in the slices of an encoder, as
            in what ``evaluate_folder`` measures; None asks the configuration of the model.
    """
    output_dir = Path(recipe.output_dir)
    origin = {
        "base_model": base_model,
        "command": shlex.join(["nestling", *sys.argv[1:]]),
        "trained_commit": commit_of(PACKAGE_FOLDER),
    }
    model_dir, metrics = output_dir / MODEL_FOLDER, output_dir / METRICS_FILE
    export_elastic(model, tokenizer, model_dir, **origin)
    rows = evaluate_folder(model_dir, metrics)
    written = {"model": model_dir, "metrics": metrics, "plot": metrics.with_suffix(".png")}
    _link_last(output_dir)
    # Once more, now that the card can show what was measured.
    export_elastic(model, tokenizer, model_dir, evaluation=metrics, **origin)
    if best is not None:
        export_elastic(best(), tokenizer, output_dir / BEST_FOLDER, **origin)
        written["best"] = output_dir / BEST_FOLDER
    if recipe.export.budgets:
        export(
            model_dir,
            recipe.export.budgets,
            output_dir / SLICES_FOLDER,
            format=recipe.export.format,
            evaluation=metrics,
            verify=recipe.export.verify,
            delta_token_ratio=delta_token_ratio,
        )
        written["slices"] = output_dir / SLICES_FOLDER
    return TrainReport(rows, written)


def _link_last(output_dir: Path) -> None:
    """Let ``last`` mean ``model``, beside ``best``, where the file system has links."""
    link = output_dir / LAST_LINK
    if link.exists() or link.is_symlink():
        return
    try:
        link.symlink_to(MODEL_FOLDER, target_is_directory=True)
    except OSError:
        logger.info("%s cannot be linked; it would be %s", link, output_dir / MODEL_FOLDER)
