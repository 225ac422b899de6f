"""One nested run against its rivals, and against itself with one part changed, cell by cell.

    python -m nestling.recipes.delta_encoder.study recipe=delta_encoder/ecommerce \
        --seeds 0 1 2 --tables tokens compute ablations --output runs/study

Tables:

* ``tokens``: every method of `study_methods` sees the rows in as many optimizer steps as ours.
  Post-hoc slices are cut from the largest of the separately trained models, which is trained once.
* ``compute``: every method has the training FLOPs of ours; cheaper steps mean more of them. The
  three separately trained models share them.
* ``ablations``: ours with one part added or removed (`study_ablations`), at equal tokens. With
  ``--ablation-steps N`` these runs have N steps, and so has one more of ours, which they are
  compared with.
* ``rates`` (only where asked for): every method of ``tokens`` at multiples of the recipe's learning
  rate, ``--rate-steps N`` steps each: does the common rate favour one (`study_rates`)?

A finished cell is never run again, so a study can be stopped and continued, and several processes
can work on one study with other seeds. A table keeps the length that its finished cells have. With
``--reevaluate`` nothing is trained: the models of all finished cells are measured again, by the
``evaluation`` keys of the recipe given now.
"""

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from ...modeling.importance_ordering import measure_importance, reorder_by_importance
from ..cli_errors import DataError, UsageError, run_with_one_line
from ..data.corpus import build_data
from ..evaluation_file import write_json
from ..recipe_loader import SAVED_NAME, load_saved_recipe, of_family
from ..recipe_schema import DeltaEncoderRecipe
from ..training_run import METRICS_FILE, MODEL_FOLDER, require_same_recipe
from .build import first_batches
from .evaluate import evaluate_folder, evaluate_run
from .evaluation_inputs import open_run
from .study_ablations import ABLATION_CHANGES
from .study_cells import (
    ABLATIONS,
    COMPUTE,
    RATES,
    TABLES,
    TOKENS,
    Cells,
    cell_folder,
    finished_cells,
    name_and_seed,
    read_cells,
    reference_table,
)
from .study_methods import FIRST_RUN, METHODS, NESTED, POST_HOC
from .study_plan import Study, open_study
from .study_rates import RATE_FACTORS, method_of, rate_name
from .study_report import SUMMARY_FILE, write_summary
from .train import train

logger = logging.getLogger(__name__)

# What is compared; the learning rates are a check of it.
COMPARED = (TOKENS, COMPUTE, ABLATIONS)


def run_study(
    study: Study,
    seeds: Sequence[int],
    tables: Sequence[str] = COMPARED,
    methods: Sequence[str] | None = None,
    rate_factors: Sequence[float] = RATE_FACTORS,
) -> Path:
    """Run every cell that is not finished and write the summary of those that are.

    Args:
        study: from `open_study`.
        seeds: seeds of initialisation, order and masks.
        tables: which tables to fill.
        methods: only these methods of them; None runs all.
        rate_factors: multiples of the common learning rate in the table ``rates``.

    Returns:
        The summary file.

    Raises:
        DataError: if finished cells were measured in different ways.
        UsageError: if they were trained with another recipe, an ablation changes nothing, or a
            multiple is not above 0.
    """
    if not all(factor > 0 for factor in rate_factors):
        raise UsageError(f"rate factors {list(rate_factors)} must all be above 0; try 0.5 1 2")
    # Cells that do not compare are found before hours of training.
    _check_finished(study, read_cells(study.folder))
    for table in tables:
        names = cells_of(study, table, methods, rate_factors)
        if table == ABLATIONS:
            _require_changes(study, names)
        for seed in seeds:
            for name in names:
                _run_cell(study, table, name, seed)
            write_summary(study)
    return study.folder / SUMMARY_FILE


def cells_of(
    study: Study, table: str, methods: Sequence[str] | None, rate_factors: Sequence[float]
) -> list[str]:
    """Return the names of the cells of a table that a run with these methods fills.

    Ours has cells of its own where no other table has them, whichever methods are asked for.
    """
    known = list(ABLATION_CHANGES if table == ABLATIONS else METHODS)
    names = [name for name in known if name != NESTED and (methods is None or name in methods)]
    has_ours = table in (RATES, reference_table(table, study.lengths))
    if has_ours and (methods is None or NESTED in methods or (table == ABLATIONS and names)):
        names.insert(0, NESTED)
    if table == RATES:
        return [rate_name(name, factor) for name in names for factor in rate_factors]
    return names


def reevaluate_study(study: Study) -> Path:
    """Measure the model of every finished cell again and write the summary; train nothing.

    Raises:
        DataError: if no cell is finished.
    """
    finished = [(t, folder) for t in TABLES for folder in finished_cells(study.folder, t)]
    if not finished:
        raise DataError(
            f"{study.folder} has no finished cell; run the study without --reevaluate first"
        )
    for table, folder in finished:
        logger.info("measuring %s again", folder)
        _measure(study, table, *name_and_seed(folder))
    return write_summary(study)


def _require_changes(study: Study, names: Sequence[str]) -> None:
    """Refuse an ablation that would train the nested recipe itself.

    Raises:
        UsageError: naming the changes.
    """
    for name in names:
        if name != NESTED and study.changed(name) == study.recipe:
            raise UsageError(
                f"the ablation {name} ({' '.join(ABLATION_CHANGES[name])}) changes nothing in this "
                "recipe; give the study a recipe that has the part, such as "
                "recipe=delta_encoder/ecommerce"
            )


def _check_finished(study: Study, cells: Cells) -> None:
    """Refuse to add cells beside those of another recipe.

    Raises:
        UsageError: naming every key that differs.
    """
    for table, names in cells.items():
        for name in filter(lambda name: study.knows(table, name), names):
            steps = study.steps(table, name)
            for seed in names[name]:
                for stage in study.stages(table, name, seed, steps):
                    run = Path(stage.output_dir)
                    # Slices of another cell's model have no recipe; that cell is checked itself.
                    if study.twin_of(table, name) is None or (run / SAVED_NAME).is_file():
                        saved = of_family(load_saved_recipe(run), DeltaEncoderRecipe)
                        require_same_recipe(stage, saved)


def _run_cell(study: Study, table: str, name: str, seed: int) -> None:
    folder = cell_folder(study.folder, table, name, seed)
    if (folder / METRICS_FILE).is_file():
        logger.info("%s is finished", folder)
        return
    twin = study.twin_of(table, name)
    if twin is not None:
        _run_cell(study, table, twin, seed)
    logger.info("running %s", folder)
    for stage in study.stages(table, name, seed, study.steps(table, name)):
        if twin is None and not (Path(stage.output_dir) / METRICS_FILE).is_file():
            train(stage, resume=True)
    if method_of(name) == POST_HOC:
        # Its model is not that of the cell: the units of another one are sorted first.
        _measure(study, table, name, seed)


def _measure(study: Study, table: str, name: str, seed: int) -> None:
    """Measure a cell; the units of a model without nesting are sorted before it is cut."""
    changes = _evaluation_changes(study.recipe)
    folder = cell_folder(study.folder, table, name, seed)
    if method_of(name) != POST_HOC:
        evaluate_folder(folder / MODEL_FOLDER, folder / METRICS_FILE, changes)
        return
    source = _source_of_slices(study, table, name, seed)
    run = open_run(source / MODEL_FOLDER, changes)
    # The twin knows its own shape only.
    run.model.config.budgets = list(study.config.budgets)
    prepared = build_data(run.recipe.data, run.recipe.seed)
    scores = measure_importance(run.model, first_batches(run.recipe, prepared))
    reorder_by_importance(run.model, scores)
    evaluation = evaluate_run(run, ["all"])
    evaluation["data"]["sliced_from"] = str(source.relative_to(study.folder))
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / METRICS_FILE, evaluation)


def _source_of_slices(study: Study, table: str, name: str, seed: int) -> Path:
    """Return the run whose model is cut: one of the cell's own, finished, or its twin's."""
    own = cell_folder(study.folder, table, name, seed) / FIRST_RUN
    twin = study.twin_of(table, name)
    if twin is None or (own / METRICS_FILE).is_file():
        return own
    return cell_folder(study.folder, table, twin, seed)


def _evaluation_changes(recipe: DeltaEncoderRecipe) -> list[str]:
    """Return the overrides that make every cell measured as the recipe says, on the same rows."""
    section = recipe.evaluation
    keys = "batches batch_size sequence_length bootstrap_samples calibration_fraction"
    values = {key: getattr(section, key) for key in (*keys.split(), "alias_confidence")}
    changes = [f"evaluation.{key}={'null' if v is None else v}" for key, v in values.items()]
    return [*changes, f"data.pretokenized_path={recipe.data.pretokenized_path}"]


def main() -> None:
    """Run a study from the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("recipe", nargs="+", help="recipe=NAME and key=value changes")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--tables", nargs="+", choices=TABLES, default=list(COMPARED))
    parser.add_argument(
        "--methods",
        nargs="+",
        choices=[*METHODS, *ABLATION_CHANGES],
        help="only these methods and ablations",
    )
    parser.add_argument(
        "--ablation-steps", type=int, metavar="N", help="length of the runs of ablations"
    )
    parser.add_argument("--rate-steps", type=int, metavar="N", help="length of the runs of rates")
    parser.add_argument(
        "--rate-factors",
        type=float,
        nargs="+",
        default=list(RATE_FACTORS),
        help="multiples of the learning rate in rates",
    )
    parser.add_argument("--output", type=Path, required=True, help="folder of the study")
    parser.add_argument(
        "--reevaluate", action="store_true", help="measure finished cells again, train nothing"
    )
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    asked = {ABLATIONS: arguments.ablation_steps, RATES: arguments.rate_steps}
    lengths = {table: steps for table, steps in asked.items() if steps is not None}
    study = open_study(arguments.recipe, arguments.output, lengths)
    if arguments.reevaluate:
        reevaluate_study(study)
    else:
        run_study(
            study, arguments.seeds, arguments.tables, arguments.methods, arguments.rate_factors
        )


if __name__ == "__main__":
    sys.exit(run_with_one_line(main))
