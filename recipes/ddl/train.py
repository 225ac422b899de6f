"""The main job of the family: train one decoder or all six variants, measure, export slices."""

import logging
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from transformers import set_seed

from ...configuration.budget import BudgetError
from ...configuration.ddl_settings import VARIANTS
from ...modeling.families import register_families
from ...modeling.modeling_ddl import DdlForCausalLM
from ...trainers.process_group import leave_process_group, wait_for_all_processes
from ..cli_errors import UsageError
from ..data.causal_corpus import build_streams, prepare_streams
from ..data.documents import SPLITS
from ..data.token_stream import STREAM_FILE, TokenStreams
from ..ddl_schema import DdlRecipe
from ..ddl_validation import ONE_VALUE_CHANNEL, check_ddl, check_decoder_budgets, lattice_of
from ..evaluation.evaluation_table import Row
from ..recipe_loader import SAVED_NAME, load_saved_recipe, of_family, save_recipe
from ..shared_preparation import is_first_process, wait_until
from ..training_run import (
    DATA_FOLDER,
    TrainReport,
    checkpoint_to_resume,
    publish,
    require_same_recipe,
)
from .build import build_model, build_trainer, require_fitting, rows_of, scratch_config
from .evaluate import evaluate_folder
from .original_layout import write_training_comparison
from .original_report import TrainingReport
from .run_record import measure_start, write_run_record
from .starting_point import load_start

logger = logging.getLogger(__name__)


def prepare(recipe: DdlRecipe) -> Path:
    """Tokenize the data of a recipe into its folder.

    Raises:
        DataError: if the data cannot be used; nothing is written then.
    """
    section = with_data_folder(recipe).data
    prepare_streams(section, partial(_require_usable, recipe))
    return Path(str(section.pretokenized_path))


def train(recipe: DdlRecipe, resume: bool = False) -> TrainReport:
    """Run a recipe from data to verified slices.

    Leaves in ``output_dir`` what every family leaves (``model/``, ``metrics.json``,
    ``events.jsonl``, ``recipe.yaml``, ``slices/``, checkpoints; with ``training.eval_steps`` also
    ``best/``), and the files of the original tool: ``manifest.json``, ``model.safetensors``,
    ``training_report.json``, ``optimizer_state.safetensors`` and ``best_validation/``.

    Args:
        recipe: a validated recipe.
        resume: go on from the newest complete checkpoint, if there is one.

    Raises:
        UsageError: if ``output_dir`` holds another run and ``resume`` is off.
        DataError: if the data cannot be used.
    """
    report = _train_one(recipe, resume)[0]
    # A process that leaves early takes the others down with it.
    leave_process_group()
    return report


def train_all_variants(recipe: DdlRecipe, resume: bool = False) -> TrainReport:
    """Train the six variants of a recipe one after the other, on the same rows in the same order.

    Each lies in ``output_dir/SLUG``; ``training_comparison.json`` holds the six reports. A variant
    that is finished is not trained again when the sweep is resumed.

    Args:
        recipe: a validated recipe; its variant is replaced.
        resume: go on with an interrupted sweep.

    Raises:
        UsageError: if a variant cannot have the recipe's controls, the recipe starts from a
            checkpoint, or a folder holds a run that ``resume`` does not allow to go on or that
            has another recipe; nothing is written then.
        BudgetError: if a variant does not have one of the recipe's budgets.
    """
    update = recipe.model.residual_update
    if update != "delta":
        raise UsageError(
            f"model.residual_update is {update}, which not all six variants have; train the "
            "variants that do one by one, or set model.residual_update=delta"
        )
    if recipe.model.init_from is not None:
        raise UsageError(
            f"model.init_from={recipe.model.init_from} is one model, not six variants; train it "
            "without --all-variants"
        )
    root = Path(recipe.output_dir)
    recipe = with_data_folder(recipe)
    variants = {slug: variant_recipe(recipe, slug) for slug in VARIANTS}
    # Before anything is written: a refused command must not change the recipe of the sweep.
    for one in variants.values():
        _checkpoint_of(one, resume)
    root.mkdir(parents=True, exist_ok=True)
    if is_first_process():
        # With it an interrupted sweep goes on by --resume OUTPUT_DIR --all-variants.
        save_recipe(recipe, root)
    rows: list[Row] = []
    reports: list[TrainingReport] = []
    for slug, one in variants.items():
        logger.info("training %s", slug)
        report, record = _train_one(one, resume)
        rows += [{"variant": slug, **row} for row in report.rows]
        reports += [] if record is None else [record]
        # All variants share one process group; torch cannot start a second one under a launcher.
        wait_for_all_processes()
    written = {"runs": root}
    if is_first_process():
        written["comparison"] = write_training_comparison(root, reports)
    leave_process_group()
    return TrainReport(rows, written)


def variant_recipe(recipe: DdlRecipe, slug: str) -> DdlRecipe:
    """Return the recipe of one variant: a vector state has one value channel, a matrix the others.

    Args:
        recipe: of any variant.
        slug: the variant.
    """
    is_matrix = VARIANTS[slug][0]
    section = recipe.model
    changes: dict[str, Any] = {"variant": slug}
    if not is_matrix:
        changes.update(d_value=None, value_budgets=[])
    elif section.d_value == 1:
        raise UsageError(ONE_VALUE_CHANNEL)
    if slug == "baseline" or (is_matrix and VARIANTS[slug][1] == "token"):
        changes["rebuild_state"] = False
    one = replace(
        recipe,
        output_dir=str(Path(recipe.output_dir) / slug),
        model=replace(section, **changes),
    )
    # A budget that only some variants have is refused before the first one trains.
    check_ddl(one)
    return one


def _train_one(recipe: DdlRecipe, resume: bool) -> tuple[TrainReport, TrainingReport | None]:
    """Run a recipe; only the first process has a report."""
    output_dir = Path(recipe.output_dir)
    recipe = with_data_folder(recipe)
    checkpoint = _checkpoint_of(recipe, resume)
    _prepare_on_one_process(recipe)
    output_dir.mkdir(parents=True, exist_ok=True)
    if is_first_process():
        save_recipe(recipe, output_dir)
    register_families()
    set_seed(recipe.seed)
    streams = build_streams(recipe.data)
    model = build_model(recipe, streams)
    trainer = build_trainer(recipe, model, streams, resuming=checkpoint is not None)
    if checkpoint is None and trainer.is_world_process_zero():
        measure_start(recipe, trainer, streams)
    trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    report, record = TrainReport([], {}), None
    evaluated = trainer.eval_dataset is not None
    if evaluated and trainer.last_evaluation_step != trainer.state.global_step:
        trainer.evaluate()
    if trainer.is_world_process_zero():
        best = trainer.state.best_model_checkpoint
        report = publish(
            recipe,
            trainer.model,
            streams.tokenizer,
            evaluate_folder,
            base_model=recipe.model.init_from,
            best=None if best is None else partial(DdlForCausalLM.from_pretrained, best),
        )
        record = write_run_record(recipe, trainer, streams)
    return report, record


def _checkpoint_of(recipe: DdlRecipe, resume: bool) -> Path | None:
    """Return where a run goes on, None for its start; refuse to go on with another recipe."""
    output_dir = Path(recipe.output_dir)
    checkpoint = checkpoint_to_resume(output_dir, resume)
    if checkpoint is not None and (output_dir / SAVED_NAME).is_file():
        require_same_recipe(recipe, of_family(load_saved_recipe(output_dir), DdlRecipe))
    return checkpoint


def _prepare_on_one_process(recipe: DdlRecipe) -> None:
    path = Path(str(recipe.data.pretokenized_path)) / STREAM_FILE
    if is_first_process():
        prepare_streams(recipe.data, partial(_require_usable, recipe))
    else:
        wait_until(path.is_file)


def _require_usable(recipe: DdlRecipe, streams: TokenStreams) -> None:
    """Refuse tokens that this run could not use, and a start that does not fit, before writing.

    Raises:
        DataError: if there are too few, or the model has no row for one.
        ModelFolderError: if the checkpoint to start from cannot be loaded, or takes shorter rows.
        BudgetError: if it does not have a budget of the recipe.
        UsageError: if its budgets cannot be trained or exported as the recipe says.
    """
    for split in SPLITS:
        rows_of(recipe, streams, split)
    section = recipe.model
    if section.init_from is None:
        config = scratch_config(recipe, streams)
    else:
        config = load_start(section.init_from).config
        try:
            config.budgets = [str(budget) for budget in lattice_of(section, config)]
        except BudgetError as error:
            axes = [
                f"model.{name}={vars(section)[name]}" for name in ("value_budgets", "depth_budgets")
            ]
            raise BudgetError(
                f"{' '.join(axes)} (a recipe brings its own) with model.init_from="
                f"{section.init_from}: {error}; give lists that fit it, or [] for its full size"
            ) from error
        check_decoder_budgets(recipe, config)
    require_fitting(streams, config, recipe.data.max_length)


def with_data_folder(recipe: DdlRecipe) -> DdlRecipe:
    """Give the prepared tokens a place in ``output_dir`` unless the recipe names one."""
    if recipe.data.pretokenized_path is not None:
        return recipe
    folder = Path(recipe.output_dir) / DATA_FOLDER
    return replace(recipe, data=replace(recipe.data, pretokenized_path=str(folder)))
