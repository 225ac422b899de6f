"""One nested run against its rivals, and against itself with one part changed, cell by cell.

    python -m nestling.recipes.delta_encoder.study recipe=delta_encoder/ecommerce \
        --seeds 0 1 2 --tables tokens compute ablations --output runs/study

Tables:

* ``tokens``: every method of `study_methods` sees the rows in as many optimizer steps as ours.
* ``compute``: every method has the training FLOPs of ours; cheaper steps mean more of them. The
  three separately trained models share them.
* ``ablations``: ours with one part added or removed (`study_ablations`), at equal tokens.

A finished cell is never run again, so a study can be stopped and continued, and several processes
can work on one study with other seeds. With ``--reevaluate`` nothing is trained: the models of all
finished cells are measured again, by the ``evaluation`` keys of the recipe given now.
"""

import argparse
import logging
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

from transformers import PreTrainedTokenizerFast

from ...configuration.configuration_delta_encoder import DeltaEncoderConfig
from ...configuration.delta_budget import DeltaBudget
from ...modeling.importance_ordering import measure_importance, reorder_by_importance
from ..cli_errors import DataError, UsageError, run_with_one_line
from ..data.corpus import build_data
from ..environment import environment_block
from ..evaluation_file import write_json
from ..recipe_loader import load_recipe, load_saved_recipe
from ..recipe_schema import DeltaEncoderRecipe
from .budget_plan import trained_budgets
from .build import first_batches, scratch_config
from .evaluate import evaluate_folder, evaluate_run
from .evaluation_inputs import open_run
from .evaluation_summary import named_budgets
from .study_ablations import ABLATION_CHANGES
from .study_cells import ABLATIONS, COMPUTE, TABLES, TOKENS, Cells, cell_folder, read_cells
from .study_costs import TrainingCost, total_cost, total_steps, training_cost
from .study_methods import FIRST_RUN, METHODS, NESTED, POST_HOC, SEPARATE, SHAPES, stages_of
from .study_plot import plot_study
from .study_summary import SCHEMA_VERSION, summarise
from .train import METRICS_FILE, MODEL_FOLDER, prepare, require_same_recipe, train

logger = logging.getLogger(__name__)

SUMMARY_FILE = "study.json"
# FLOPs are not quite proportional to steps where budgets are drawn at random.
CORRECTIONS = 3
ALONE = tuple(f"{SEPARATE}-{shape}" for shape in SHAPES)


class Study(NamedTuple):
    """A study ready to run.

    Attributes:
        arguments: what the recipe was loaded from; an ablation adds its changes.
        recipe: the nested recipe on the prepared rows.
        tokenizer: of the rows.
        config: configuration of the nested model.
        counts: ``rows`` and ``tokens`` of the training split.
        folder: folder of the study.
        known_steps: steps of the cells counted so far.
    """

    arguments: tuple[str, ...]
    recipe: DeltaEncoderRecipe
    tokenizer: PreTrainedTokenizerFast
    config: DeltaEncoderConfig
    counts: dict[str, int]
    folder: Path
    known_steps: dict[tuple[str, str], int]

    def named(self) -> dict[str, DeltaBudget]:
        """Return the budgets that have a name."""
        found = named_budgets(self.config)
        return {name: DeltaBudget.parse(budget) for name, budget in found.items()}

    def stages(self, table: str, method: str, seed: int, steps: int) -> list[DeltaEncoderRecipe]:
        """Return the recipes of the training runs of a cell."""
        recipe, rule = self.recipe, method
        if table == ABLATIONS:
            changed = load_recipe([*self.arguments, *ABLATION_CHANGES[method]])
            recipe, rule = replace(changed, data=recipe.data), NESTED
        folder = cell_folder(self.folder, table, method, seed)
        return stages_of(rule, recipe, self.named(), steps=steps, seed=seed, folder=folder)

    def cost(self, stages: Sequence[DeltaEncoderRecipe]) -> TrainingCost:
        """Return what the runs of a cell cost."""
        return total_cost(
            [
                training_cost(stage, scratch_config(stage, self.tokenizer), self.counts)
                for stage in stages
            ]
        )

    def steps(self, table: str, method: str) -> int:
        """Return the optimizer steps of a cell, all its runs together."""
        known = self.known_steps.get((table, method))
        if known is None:
            known = self.known_steps[table, method] = self._count_steps(table, method)
        return known

    def _count_steps(self, table: str, method: str) -> int:
        steps = total_steps(self.recipe, self.counts)
        if table != COMPUTE or method == NESTED:
            return steps
        sharing = ALONE if method in ALONE else (method,)
        ours = self.cost(self.stages(TOKENS, NESTED, 0, steps)).flops
        for _ in range(CORRECTIONS):
            theirs = sum(self.cost(self.stages(TOKENS, m, 0, steps)).flops for m in sharing)
            steps = max(1, round(steps * ours / theirs))
        return steps


def open_study(arguments: Sequence[str], folder: Path) -> Study:
    """Prepare the rows of a study, once."""
    recipe = load_recipe(arguments)
    data_folder = prepare(replace(recipe, output_dir=str(folder)))
    recipe = replace(recipe, data=replace(recipe.data, pretokenized_path=str(data_folder)))
    prepared = build_data(recipe.data, recipe.seed)
    config = scratch_config(recipe, prepared.tokenizer)
    counts = prepared.manifest["counts"]["train"]
    return Study(tuple(arguments), recipe, prepared.tokenizer, config, counts, folder, {})


def methods_of(table: str) -> list[str]:
    """Return the methods that have cells in a table; ours has its cells among ``tokens``."""
    if table == ABLATIONS:
        return list(ABLATION_CHANGES)
    return [method for method in METHODS if table == TOKENS or method != NESTED]


def run_study(
    study: Study,
    seeds: Sequence[int],
    tables: Sequence[str] = TABLES,
    methods: Sequence[str] | None = None,
) -> Path:
    """Run every cell that is not finished and write the summary of those that are.

    Args:
        study: from `open_study`.
        seeds: seeds of initialisation, order and masks.
        tables: which tables to fill.
        methods: only these methods of them; None runs all.

    Returns:
        The summary file.

    Raises:
        DataError: if finished cells were measured in different ways.
        UsageError: if they were trained with another recipe, or an ablation changes nothing.
    """
    # Cells that do not compare are found before hours of training.
    _check_finished(study, read_cells(study.folder))
    for table in tables:
        chosen = [m for m in methods_of(table) if methods is None or m in methods]
        if table == ABLATIONS:
            _require_changes(study, chosen)
        for seed in seeds:
            for method in chosen:
                _run_cell(study, table, method, seed)
            _write_summary(study)
    return study.folder / SUMMARY_FILE


def reevaluate_study(study: Study) -> Path:
    """Measure the model of every finished cell again and write the summary; train nothing.

    Raises:
        DataError: if no cell is finished.
    """
    finished = [
        (table, path.parent)
        for table in TABLES
        for path in sorted((study.folder / table).glob(f"*/{METRICS_FILE}"))
    ]
    if not finished:
        raise DataError(
            f"{study.folder} has no finished cell; run the study without --reevaluate first"
        )
    changes = _evaluation_changes(study.recipe)
    for _, folder in finished:
        logger.info("measuring %s again", folder)
        _measure(folder, changes)
    _write_summary(study)
    return study.folder / SUMMARY_FILE


def _require_changes(study: Study, ablations: Sequence[str]) -> None:
    """Refuse an ablation that would train the nested recipe itself.

    Raises:
        UsageError: naming the changes.
    """
    for name in ablations:
        changes = ABLATION_CHANGES[name]
        if load_recipe([*study.arguments, *changes]) == load_recipe(study.arguments):
            raise UsageError(
                f"the ablation {name} ({' '.join(changes)}) changes nothing in this recipe; give "
                "the study a recipe that has the part, such as recipe=delta_encoder/ecommerce"
            )


def _check_finished(study: Study, cells: Cells) -> None:
    """Refuse to add cells beside those of another recipe.

    Raises:
        UsageError: naming every key that differs.
    """
    for table, methods in cells.items():
        for method in set(methods) & set(methods_of(table)):
            steps = study.steps(table, method)
            for seed in methods[method]:
                for stage in study.stages(table, method, seed, steps):
                    require_same_recipe(stage, load_saved_recipe(Path(stage.output_dir)))


def _run_cell(study: Study, table: str, method: str, seed: int) -> None:
    folder = cell_folder(study.folder, table, method, seed)
    if (folder / METRICS_FILE).is_file():
        logger.info("%s is finished", folder)
        return
    logger.info("running %s", folder)
    for stage in study.stages(table, method, seed, study.steps(table, method)):
        if not (Path(stage.output_dir) / METRICS_FILE).is_file():
            train(stage, resume=True)
    if method == POST_HOC:
        # Its only run is not the cell, and was measured in passing: what it left is sorted first.
        _measure(folder, _evaluation_changes(study.recipe))


def _measure(folder: Path, changes: Sequence[str]) -> None:
    """Measure a cell; the units of a model without nesting are sorted before it is cut."""
    if not folder.name.startswith(f"{POST_HOC}-"):
        evaluate_folder(folder / MODEL_FOLDER, folder / METRICS_FILE, changes)
        return
    run = open_run(folder / FIRST_RUN / MODEL_FOLDER, changes)
    prepared = build_data(run.recipe.data, run.recipe.seed)
    scores = measure_importance(run.model, first_batches(run.recipe, prepared))
    reorder_by_importance(run.model, scores)
    write_json(folder / METRICS_FILE, evaluate_run(run, ["all"]))


def _write_summary(study: Study) -> None:
    """Sum up the finished cells and draw the methods at equal tokens."""
    cells = {
        table: {name: cells for name, cells in methods.items() if name in methods_of(table)}
        for table, methods in read_cells(study.folder).items()
    }
    named = named_budgets(study.config)
    costs: dict[str, dict[str, Any]] = {}
    trained: dict[str, list[str]] = {}
    for table in TABLES:
        of_table = cells.get(table, {})
        for method in (NESTED, *(m for m in methods_of(table) if m in of_table and m != NESTED)):
            home = TOKENS if method == NESTED else table
            stages = study.stages(home, method, 0, study.steps(home, method))
            costs.setdefault(table, {})[method] = asdict(study.cost(stages))
            last = stages[-1]
            budgets = trained_budgets(last, scratch_config(last, study.tokenizer))
            trained[method] = [str(budget) for budget in budgets]
        alone = [TrainingCost(**costs[table][m]) for m in ALONE if m in costs.get(table, {})]
        if len(alone) == len(ALONE):
            costs[table][SEPARATE] = asdict(total_cost(alone))
            trained[SEPARATE] = list(named.values())
    section = study.recipe.training
    summary = {
        "schema_version": SCHEMA_VERSION,
        "kind": "study",
        "family": study.recipe.family,
        "named_budgets": named,
        "equal": {
            "rows_per_step": section.batch_size * section.gradient_accumulation_steps,
            "max_length": study.recipe.data.max_length,
            "lr": section.lr,
        },
        "training_split": dict(study.counts),
        "changes": {name: list(changes) for name, changes in ABLATION_CHANGES.items()},
        "tables": summarise(cells, named, costs, trained),
        "environment": environment_block(sorted(_seeds_of(cells))),
    }
    write_json(study.folder / SUMMARY_FILE, summary)
    plot_study(summary, study.folder / SUMMARY_FILE)


def _seeds_of(cells: Any) -> set[int]:
    return {seed for table in cells.values() for of_method in table.values() for seed in of_method}


def _evaluation_changes(recipe: DeltaEncoderRecipe) -> list[str]:
    """Return the overrides that make every cell measured as the recipe says, on the same rows."""
    section = recipe.evaluation
    keys = ("batches", "batch_size", "sequence_length", "bootstrap_samples", "calibration_fraction")
    values = {key: getattr(section, key) for key in keys}
    changes = [f"evaluation.{key}={'null' if v is None else v}" for key, v in values.items()]
    return [*changes, f"data.pretokenized_path={recipe.data.pretokenized_path}"]


def main() -> None:
    """Run a study from the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("recipe", nargs="+", help="recipe=NAME and key=value changes")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--tables", nargs="+", choices=TABLES, default=list(TABLES))
    parser.add_argument(
        "--methods",
        nargs="+",
        choices=[*METHODS, *ABLATION_CHANGES],
        help="only these methods and ablations",
    )
    parser.add_argument("--output", type=Path, required=True, help="folder of the study")
    parser.add_argument(
        "--reevaluate", action="store_true", help="measure finished cells again, train nothing"
    )
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    study = open_study(arguments.recipe, arguments.output)
    if arguments.reevaluate:
        reevaluate_study(study)
    else:
        run_study(study, arguments.seeds, arguments.tables, arguments.methods)


if __name__ == "__main__":
    sys.exit(run_with_one_line(main))
