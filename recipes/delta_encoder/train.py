"""The main job of the family: train one nested encoder, measure every budget, export slices."""

from dataclasses import replace
from functools import partial
from pathlib import Path

from transformers import set_seed

from ...modeling.delta_encoder_heads import DeltaEncoderForMaskedLM
from ...modeling.families import register_families
from ...trainers.process_group import leave_process_group
from ..cli_errors import UsageError
from ..data.corpus import build_data, prepare_data
from ..recipe_loader import SAVED_NAME, load_saved_recipe, of_family, save_recipe
from ..recipe_schema import DeltaEncoderRecipe
from ..shared_preparation import is_first_process, wait_until_prepared
from ..training_run import (
    DATA_FOLDER,
    TrainReport,
    checkpoint_to_resume,
    publish,
    require_same_recipe,
)
from .build import build_model, build_trainer
from .evaluate import evaluate_folder
from .model_config import check_checkpoints


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
        UsageError: if ``output_dir`` holds another run and ``resume`` is off, or a stream is to be
            trained on prepared rows.
        DataError: if the data cannot be used.
    """
    if recipe.data.streaming and recipe.data.pretokenized_path is not None:
        raise UsageError(
            f"data.pretokenized_path is {recipe.data.pretokenized_path}, but data.streaming is "
            "true, which reads the text itself; set data.streaming=false to train on those rows, "
            "or data.pretokenized_path=null"
        )
    output_dir = Path(recipe.output_dir)
    checkpoint = checkpoint_to_resume(output_dir, resume)
    output_dir.mkdir(parents=True, exist_ok=True)
    recipe = with_data_folder(recipe)
    if checkpoint is not None and (output_dir / SAVED_NAME).is_file():
        saved = of_family(load_saved_recipe(output_dir), DeltaEncoderRecipe)
        require_same_recipe(recipe, saved)
    check_checkpoints(recipe)
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
        report = publish(
            recipe,
            trainer.model,
            data.tokenizer,
            partial(evaluate_folder, delta_token_ratio=recipe.export.delta_token_ratio),
            base_model=recipe.init.base or recipe.model.init_from,
            best=None if best is None else partial(DeltaEncoderForMaskedLM.from_pretrained, best),
            delta_token_ratio=recipe.export.delta_token_ratio,
        )
    # A process that leaves early takes the others down with it.
    del trainer, model
    leave_process_group()
    return report


def prepare_on_one_process(recipe: DeltaEncoderRecipe) -> None:
    """Prepare the rows once; the other processes of a distributed run wait for them."""
    if is_first_process():
        prepare_data(recipe.data)
    else:
        wait_until_prepared(Path(str(recipe.data.pretokenized_path)))


def with_data_folder(recipe: DeltaEncoderRecipe) -> DeltaEncoderRecipe:
    """Give the prepared rows a place in ``output_dir`` unless the recipe names one or streams."""
    if recipe.data.streaming or recipe.data.pretokenized_path is not None:
        return recipe
    folder = Path(recipe.output_dir) / DATA_FOLDER
    return replace(recipe, data=replace(recipe.data, pretokenized_path=str(folder)))
