"""One nested run against the alternatives a user has, cell by cell (method x seed).

    python -m nestling.recipes.delta_encoder.study recipe=delta_encoder/ecommerce \
        --seeds 0 1 2 --output runs/study

Methods, all on the same rows for the same number of optimizer steps:

* ``nested``: the recipe as it is; every budget comes out of one run.
* ``separate-largest``, ``-middle``, ``-smallest``: a model of that shape trained alone.
* ``post-hoc``: the separately trained largest model, sorted by importance and sliced without
  further training.

A finished cell is never run again, so a study can be stopped and continued. With
``--reevaluate`` nothing is trained: the models of all finished cells are measured again, by the
``evaluation`` keys of the recipe given now.
"""

import argparse
import logging
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from ...configuration.configuration_delta_encoder import DeltaEncoderConfig
from ...configuration.delta_budget import DeltaBudget
from ...modeling.importance_ordering import measure_importance, reorder_by_importance
from ..cli_errors import DataError, run_with_one_line
from ..data.corpus import build_data
from ..environment import environment_block
from ..evaluation_file import write_json
from ..recipe_loader import load_recipe
from ..recipe_schema import DeltaEncoderRecipe, LossSection
from .build import first_batches, lattice_of, scratch_config
from .evaluate import evaluate_folder, evaluate_run
from .evaluation_inputs import open_run
from .evaluation_summary import named_budgets
from .study_summary import METHODS, complete_seeds, plot_study, read_cells, summarise
from .train import METRICS_FILE, MODEL_FOLDER, prepare, train

logger = logging.getLogger(__name__)

SHAPES = ("largest", "middle", "smallest")
SUMMARY_FILE = "study.json"


class Study(NamedTuple):
    """A study ready to run.

    Attributes:
        recipe: the nested recipe on the prepared rows.
        config: configuration of the nested model.
        counts: ``rows`` and ``tokens`` of the training split.
        folder: folder of the study.
    """

    recipe: DeltaEncoderRecipe
    config: DeltaEncoderConfig
    counts: dict[str, int]
    folder: Path


def run_study(recipe: DeltaEncoderRecipe, seeds: Sequence[int], output: Path) -> Path:
    """Run every cell that is not finished and write the summary of those that are.

    Args:
        recipe: the nested recipe, trained from scratch; its data are prepared once.
        seeds: seeds of initialisation, order and masks.
        output: folder of the study.

    Returns:
        The summary file.

    Raises:
        DataError: if finished cells were measured in different ways.
    """
    study = _open_study(recipe, output)
    read_cells(output)  # Cells that do not compare are found before hours of training.
    budgets = {name: DeltaBudget.parse(b) for name, b in named_budgets(study.config).items()}
    for seed in seeds:
        for method in ("nested", *(f"separate-{shape}" for shape in SHAPES)):
            cell = cell_recipe(study.recipe, method, seed, budgets, output / f"{method}-{seed}")
            _train_cell(cell)
        if not (output / f"post-hoc-{seed}" / METRICS_FILE).is_file():
            _measure_post_hoc(study.recipe, output, seed)
        _write_summary(study)
    return output / SUMMARY_FILE


def reevaluate_study(recipe: DeltaEncoderRecipe, output: Path) -> Path:
    """Measure the model of every finished cell again and write the summary; train nothing.

    Args:
        recipe: the nested recipe; its ``evaluation`` keys replace those the cells were run with.
        output: folder of the study.

    Returns:
        The summary file.

    Raises:
        DataError: if no cell is finished.
    """
    study = _open_study(recipe, output)
    changes = _evaluation_changes(study.recipe)
    finished = [
        (method, int(number))
        for method in METHODS
        for folder in sorted(output.glob(f"{method}-*"))
        if (number := folder.name.removeprefix(f"{method}-")).isdigit()
        and (folder / METRICS_FILE).is_file()
    ]
    if not finished:
        raise DataError(f"{output} has no finished cell; run the study without --reevaluate first")
    for method, seed in finished:
        folder = output / f"{method}-{seed}"
        logger.info("measuring %s again", folder.name)
        if method == "post-hoc":
            _measure_post_hoc(study.recipe, output, seed, changes)
        else:
            evaluate_folder(folder / MODEL_FOLDER, folder / METRICS_FILE, changes)
    _write_summary(study)
    return output / SUMMARY_FILE


def _open_study(recipe: DeltaEncoderRecipe, output: Path) -> Study:
    data_folder = prepare(replace(recipe, output_dir=str(output)))
    recipe = replace(recipe, data=replace(recipe.data, pretokenized_path=str(data_folder)))
    prepared = build_data(recipe.data, recipe.seed)
    config = scratch_config(recipe, prepared.tokenizer)
    return Study(recipe, config, prepared.manifest["counts"]["train"], output)


def _write_summary(study: Study) -> None:
    """Sum up the finished cells and draw the first seed that has all of them."""
    cells = read_cells(study.folder)
    seeds = sorted({seed for of_method in cells.values() for seed in of_method})
    named = named_budgets(study.config)
    summary = summarise(cells, study.recipe, study.config, study.counts)
    summary["environment"] = environment_block(seeds)
    write_json(study.folder / SUMMARY_FILE, summary)
    if complete := complete_seeds(cells):
        plot_study(cells, complete[0], named, study.folder / SUMMARY_FILE)


def _evaluation_changes(recipe: DeltaEncoderRecipe) -> list[str]:
    """Return the overrides that make every cell measured as the recipe says, on the same rows."""
    section = recipe.evaluation
    keys = ("batches", "batch_size", "sequence_length", "bootstrap_samples", "calibration_fraction")
    values = {key: getattr(section, key) for key in keys}
    changes = [f"evaluation.{key}={'null' if v is None else v}" for key, v in values.items()]
    return [*changes, f"data.pretokenized_path={recipe.data.pretokenized_path}"]


def cell_recipe(
    recipe: DeltaEncoderRecipe,
    method: str,
    seed: int,
    budgets: dict[str, DeltaBudget],
    folder: Path,
) -> DeltaEncoderRecipe:
    """Return the recipe of one cell; separate models have one budget and masked LM alone."""
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
        delta="dense",
        conditioned_norms=False,
        exit_affine=False,
        token_routing=False,
        delta_token_ratio=None,
        drop_path=0.0,
    )
    training = replace(
        recipe.training, budgets_per_step=1, three_phase=False, survival_alpha=None
    )
    loss = LossSection(masked_lm_weight=recipe.loss.masked_lm_weight)
    return replace(cell, model=model, loss=replace(loss, kd_weight=0.0), training=training)


def _train_cell(cell: DeltaEncoderRecipe) -> None:
    folder = Path(cell.output_dir)
    if (folder / METRICS_FILE).is_file():
        logger.info("%s is finished", folder.name)
        return
    logger.info("running %s", folder.name)
    train(cell, resume=True)


def _measure_post_hoc(
    recipe: DeltaEncoderRecipe, output: Path, seed: int, changes: Sequence[str] = ()
) -> None:
    """Slice a model that never saw a smaller budget, its units sorted by importance."""
    run = open_run(output / f"separate-largest-{seed}" / MODEL_FOLDER, changes)
    model = run.model
    prepared = build_data(run.recipe.data, run.recipe.seed)
    reorder_by_importance(model, measure_importance(model, first_batches(run.recipe, prepared)))
    model.config.budgets = [str(budget) for budget in lattice_of(recipe.model, model.config)]
    folder = output / f"post-hoc-{seed}"
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / METRICS_FILE, evaluate_run(run, ["all"]))


def main() -> None:
    """Run a study from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipe", nargs="+", help="recipe=NAME and key=value changes")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--output", type=Path, required=True, help="folder of the study")
    parser.add_argument(
        "--reevaluate", action="store_true", help="measure finished cells again, train nothing"
    )
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    recipe = load_recipe(arguments.recipe)
    if arguments.reevaluate:
        reevaluate_study(recipe, arguments.output)
    else:
        run_study(recipe, arguments.seeds, arguments.output)


if __name__ == "__main__":
    sys.exit(run_with_one_line(main))
