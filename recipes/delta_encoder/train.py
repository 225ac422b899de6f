"""The main job of the family: train one nested encoder, measure every budget, export slices."""

import gc
import logging
import shlex
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from transformers import set_seed

from ...hub_cards.export_slices import export, export_elastic
from ...modeling.delta_encoder_heads import DeltaEncoderForMaskedLM
from ...modeling.families import register_families
from ...trainers.checkpoint_files import last_complete_checkpoint
from ..cli_errors import UsageError
from ..data.corpus import PreparedData, build_data, prepare_data
from ..environment import PACKAGE_FOLDER, commit_of
from ..recipe_loader import SAVED_NAME, load_saved_recipe, save_recipe
from ..recipe_schema import DeltaEncoderRecipe
from ..shared_preparation import is_first_process, wait_until_prepared
from .build import build_model, build_trainer
from .evaluate import evaluate_folder
from .evaluation_table import Row

logger = logging.getLogger(__name__)

DATA_FOLDER, MODEL_FOLDER, SLICES_FOLDER = "data", "model", "slices"
BEST_FOLDER, LAST_LINK = "best", "last"
METRICS_FILE = "metrics.json"

# Keys that a resumed run may set anew, because they do not touch what is learned.
MAY_CHANGE = {
    "data": ("num_proc", "pretokenized_path"),
    "training": (
        "logging_steps",
        "save_steps",
        "save_total_limit",
        "eval_steps",
        "report_to",
        "dataloader_num_workers",
    ),
}


@dataclass(frozen=True)
class TrainReport:
    """What a finished run has to show.

    Attributes:
        rows: one row per budget, the cheapest first.
        written: what lies where.
    """

    rows: list[Row]
    written: dict[str, Path]


def prepare(recipe: DeltaEncoderRecipe) -> Path:
    """Tokenize and pack the data of a recipe into its folder, or finish an interrupted one.

    Raises:
        DataError: if the data cannot be used.
    """
    section = with_data_folder(recipe).data
    prepare_data(section)
    return Path(str(section.pretokenized_path))


def train(recipe: DeltaEncoderRecipe, resume: bool = False) -> TrainReport:
    """Run a recipe from data to verified slices.

    Leaves in ``output_dir``: ``model/`` (the nested model after the last step, as a self-contained
    folder), ``last`` (a link to it), ``best/`` (with ``training.eval_steps``: the same of the best
    evaluation),
    ``metrics.json`` with tables and plots, ``slices/`` (one folder per exported budget),
    ``events.jsonl``, ``recipe.yaml``, ``data/`` and the last checkpoints.

    Args:
        recipe: a validated recipe.
        resume: go on from the newest complete checkpoint, if there is one.

    Returns:
        The ladder of the budgets and where things are.

    Raises:
        UsageError: if ``output_dir`` holds another run and ``resume`` is off.
        DataError: if the data cannot be used.
    """
    output_dir = Path(recipe.output_dir)
    checkpoint = last_complete_checkpoint(output_dir) if output_dir.is_dir() else None
    if checkpoint is not None and not resume:
        raise UsageError(
            f"output_dir {output_dir} already holds {checkpoint.name}; "
            "add --resume to go on from it, or choose another output_dir"
        )
    output_dir.mkdir(parents=True, exist_ok=True)
    recipe = with_data_folder(recipe)
    if checkpoint is not None and (output_dir / SAVED_NAME).is_file():
        require_same_recipe(recipe, load_saved_recipe(output_dir))
    if not recipe.data.streaming:
        prepare_on_one_process(recipe)
    if is_first_process():
        save_recipe(recipe, output_dir)
    register_families()
    set_seed(recipe.seed)
    data = build_data(recipe.data, recipe.seed)
    model = build_model(recipe, data)
    trainer = build_trainer(recipe, model, data)
    trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    report = TrainReport([], {})
    if trainer.is_world_process_zero():
        best = trainer.state.best_model_checkpoint
        report = publish(recipe, trainer.model, data, output_dir, best)
    # A process that leaves early takes the others down with it.
    trainer.accelerator.wait_for_everyone()
    trainer.accelerator.end_training()
    # Reference cycles keep the process group's threads alive; at exit they would abort the process.
    del trainer, model
    gc.collect()
    return report


def publish(
    recipe: DeltaEncoderRecipe,
    model: Any,
    data: PreparedData,
    output_dir: Path,
    best_checkpoint: str | None = None,
) -> TrainReport:
    """Write the nested model, measure it, and cut and verify the slices.

    The model of ``best_checkpoint`` is written beside it, neither measured nor cut: `nestling
    evaluate` and `nestling export` take ``best/`` as they take ``model/``.
    """
    origin = {
        "base_model": recipe.init.base or recipe.model.init_from,
        "command": shlex.join(["nestling", *sys.argv[1:]]),
        "trained_commit": commit_of(PACKAGE_FOLDER),
    }
    model_dir, metrics = output_dir / MODEL_FOLDER, output_dir / METRICS_FILE
    export_elastic(model, data.tokenizer, model_dir, **origin)
    rows = evaluate_folder(model_dir, metrics)
    written = {"model": model_dir, "metrics": metrics, "plot": metrics.with_suffix(".png")}
    _link_last(output_dir)
    # Once more, now that the card can show what was measured.
    export_elastic(model, data.tokenizer, model_dir, evaluation=metrics, **origin)
    if best_checkpoint is not None:
        best = DeltaEncoderForMaskedLM.from_pretrained(best_checkpoint)
        export_elastic(best, data.tokenizer, output_dir / BEST_FOLDER, **origin)
        written["best"] = output_dir / BEST_FOLDER
    if recipe.export.budgets:
        export(
            model_dir,
            recipe.export.budgets,
            output_dir / SLICES_FOLDER,
            format=recipe.export.format,
            evaluation=metrics,
            verify=recipe.export.verify,
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


def prepare_on_one_process(recipe: DeltaEncoderRecipe) -> None:
    """Prepare the rows once; the other processes of a distributed run wait for them."""
    if is_first_process():
        prepare_data(recipe.data)
    else:
        wait_until_prepared(Path(str(recipe.data.pretokenized_path)))


def require_same_recipe(recipe: DeltaEncoderRecipe, saved: DeltaEncoderRecipe) -> None:
    """Refuse to go on with settings that would make the run something else than its recipe.

    Evaluation, export and how often things are logged and saved may change.

    Raises:
        UsageError: naming every key that differs.
    """
    here, there = asdict(recipe), asdict(saved)
    for section, keys in MAY_CHANGE.items():
        for values in (here, there):
            for key in keys:
                values[section].pop(key)
    differing = [
        f"{section}.{key} was {there[section][key]!r} and is now {value!r}"
        for section in ("model", "init", "data", "training", "loss")
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


def with_data_folder(recipe: DeltaEncoderRecipe) -> DeltaEncoderRecipe:
    """Give the prepared rows a place in ``output_dir`` unless the recipe names one or streams."""
    if recipe.data.streaming or recipe.data.pretokenized_path is not None:
        return recipe
    folder = Path(recipe.output_dir) / DATA_FOLDER
    return replace(recipe, data=replace(recipe.data, pretokenized_path=str(folder)))
