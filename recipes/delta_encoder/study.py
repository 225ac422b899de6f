"""One nested run against the alternatives a user has, cell by cell (method x seed).

    python -m nestling.recipes.delta_encoder.study recipe=delta_encoder/ecommerce \
        --seeds 0 1 2 --output runs/study

Methods, all on the same rows for the same number of optimizer steps:

* ``nested``: the recipe as it is; every budget comes out of one run.
* ``separate-largest``, ``-middle``, ``-smallest``: a model of that shape trained alone.
* ``post-hoc``: the separately trained largest model, sorted by importance and sliced without
  further training.

A finished cell is never run again, so a study can be stopped and continued.
"""

import argparse
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ...configuration.budget import ends_of, middle_of
from ...configuration.delta_budget import DeltaBudget
from ...modeling.delta_encoder_heads import DeltaEncoderForMaskedLM
from ...modeling.importance_ordering import measure_importance, reorder_by_importance
from ..data.corpus import build_data
from ..environment import environment_block
from ..evaluation_file import read_evaluation, write_json
from ..recipe_loader import load_recipe
from ..recipe_schema import DeltaEncoderRecipe
from .build import first_batches, lattice_of, scratch_config
from .evaluate import run_full_evaluation
from .evaluation_inputs import open_run
from .study_summary import plot_study, summarise
from .train import METRICS_FILE, MODEL_FOLDER, prepare, train

logger = logging.getLogger(__name__)

SHAPES = ("largest", "middle", "smallest")
SUMMARY_FILE = "study.json"


def run_study(recipe: DeltaEncoderRecipe, seeds: Sequence[int], output: Path) -> Path:
    """Run every cell that is not finished and write the summary of those that are.

    Args:
        recipe: the nested recipe, trained from scratch; its data are prepared once.
        seeds: seeds of initialisation, order and masks.
        output: folder of the study.

    Returns:
        The summary file.
    """
    shared = replace(recipe, output_dir=str(output))
    data_folder = prepare(shared)
    recipe = replace(recipe, data=replace(recipe.data, pretokenized_path=str(data_folder)))
    budgets = named_budgets(recipe)
    for seed in seeds:
        for method in ("nested", *(f"separate-{shape}" for shape in SHAPES)):
            cell = cell_recipe(recipe, method, seed, budgets, output / f"{method}-{seed}")
            _train_cell(cell)
        _post_hoc_cell(recipe, output / f"separate-largest-{seed}", output / f"post-hoc-{seed}")
        summary = summarise(output, recipe, {name: str(b) for name, b in budgets.items()})
        summary["environment"] = environment_block(seeds)
        write_json(output / SUMMARY_FILE, summary)
    plot_study(output, seeds[0], summary["named_budgets"], output / SUMMARY_FILE)
    return output / SUMMARY_FILE


def named_budgets(recipe: DeltaEncoderRecipe) -> dict[str, DeltaBudget]:
    """Return the smallest, middle and largest budget of a recipe's lattice."""
    config = scratch_config(recipe.model, build_data(recipe.data, recipe.seed).tokenizer)
    lattice = lattice_of(recipe.model, config)
    smallest, largest = ends_of(lattice)
    middle = middle_of(lattice, config, recipe.data.max_length)
    return {"smallest": smallest, "middle": middle, "largest": largest}


def cell_recipe(
    recipe: DeltaEncoderRecipe,
    method: str,
    seed: int,
    budgets: dict[str, DeltaBudget],
    folder: Path,
) -> DeltaEncoderRecipe:
    """Return the recipe of one cell; separate models have one budget and no distillation."""
    cell = replace(
        recipe,
        seed=seed,
        output_dir=str(folder),
        export=replace(recipe.export, budgets=[]),
        evaluation=replace(recipe.evaluation, latency=False),
    )
    if method == "nested":
        return cell
    budget = budgets[method.removeprefix("separate-")]
    section = recipe.model
    head_dim = section.head_dim or section.hidden_size // section.num_attention_heads
    width = budget.layer_widths()[0]
    model = replace(
        section,
        hidden_size=budget.hidden or section.hidden_size,
        head_dim=head_dim,
        num_attention_heads=budget.heads,
        num_hidden_layers=budget.depth,
        intermediate_size=int(width * section.intermediate_size + 1e-4),
        width_budgets=[1.0],
        head_budgets=[budget.heads],
        depth_budgets=[budget.depth],
        extra_budgets=[],
    )
    return replace(
        cell,
        model=model,
        loss=replace(recipe.loss, kd_weight=0.0),
        training=replace(recipe.training, budgets_per_step=1),
    )


def _train_cell(cell: DeltaEncoderRecipe) -> None:
    folder = Path(cell.output_dir)
    if (folder / METRICS_FILE).is_file():
        logger.info("%s is finished", folder.name)
        return
    logger.info("running %s", folder.name)
    train(cell, resume=True)


def _post_hoc_cell(recipe: DeltaEncoderRecipe, source: Path, folder: Path) -> None:
    """Slice a model that never saw a smaller budget, its units sorted by importance."""
    metrics = folder / METRICS_FILE
    if metrics.is_file():
        return
    run = open_run(source / MODEL_FOLDER)
    model: DeltaEncoderForMaskedLM = run.model
    prepared = build_data(run.recipe.data, run.recipe.seed)
    reorder_by_importance(model, measure_importance(model, first_batches(run.recipe, prepared)))
    model.config.budgets = [str(budget) for budget in lattice_of(recipe.model, model.config)]
    evaluation: dict[str, Any] = run_full_evaluation(
        model,
        run.loader,
        sequence_length=run.recipe.data.max_length,
        latency=False,
        bootstrap_samples=run.recipe.evaluation.bootstrap_samples,
        seed=run.recipe.seed,
    )
    evaluation["data"].update(run.data)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(metrics, read_evaluation(evaluation))


def main() -> None:
    """Run a study from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipe", nargs="+", help="recipe=NAME and key=value changes")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--output", type=Path, required=True, help="folder of the study")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    run_study(load_recipe(arguments.recipe), arguments.seeds, arguments.output)


if __name__ == "__main__":
    main()
