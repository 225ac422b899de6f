r"""Six residuals and their controls, cell by cell, on the same tokens in the same order.

    python -m nestling.recipes.ddl.study recipe=ddl/study data.path=TRAIN data.valid_path=VALID \
        --seeds 0 1 2 --output runs/ddl-study

Every method sees as many tokens as the baseline. What its extra cost would have bought is told by
baselines that were trained longer: at equal FLOPs and at equal time, a method is compared with the
baseline at the length its own cost would pay for, between complete runs (each with its whole
learning-rate schedule). Costs are FLOPs by formula and the measured time of a training step, all
methods in turns on this machine (``step_times.json``).

A finished cell is never run again, so a study can be stopped and continued, and several processes
can work on one study with other seeds or methods.
"""

import argparse
import json
import logging
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from ..cli_errors import DataError, UsageError, run_with_one_line
from ..data.causal_corpus import prepare_streams
from ..ddl_schema import DdlRecipe
from ..environment import environment_block
from ..evaluation_file import commits_of, read_evaluation, write_json
from ..recipe_loader import load_recipe, load_saved_recipe, of_family
from ..steady_memory import keep_freed_memory
from ..training_run import METRICS_FILE, require_same_recipe
from .study_costs import measure_step_times
from .study_methods import BASELINE, LONGER, METHODS, longer_name
from .study_plot import plot_study
from .study_summary import KIND, SCHEMA_VERSION, Cell, summarise
from .train import train

logger = logging.getLogger(__name__)

SUMMARY_FILE, TIMES_FILE, DATA_FOLDER = "study.json", "step_times.json", "data"
EVENTS_FILE = "events.jsonl"


class Study(NamedTuple):
    """A study ready to run.

    Attributes:
        arguments: what the recipe was loaded from.
        folder: folder of the study.
    """

    arguments: tuple[str, ...]
    folder: Path

    def recipe(self, method: str, seed: int) -> DdlRecipe:
        """Return the recipe of one cell."""
        name, _, factor = method.partition("@")
        recipe = of_family(load_recipe([*self.arguments, *METHODS[name].changes]), DdlRecipe)
        training = recipe.training
        if factor:
            steps = round(int(training.max_steps or 0) * float(factor))
            training = replace(training, max_steps=steps)
        data = recipe.data
        if data.pretokenized_path is None:
            data = replace(data, pretokenized_path=str(self.folder / DATA_FOLDER))
        folder = self.folder / f"{method}-{seed}"
        return replace(recipe, seed=seed, training=training, data=data, output_dir=str(folder))


def open_study(arguments: Sequence[str], folder: Path) -> Study:
    """Check the recipe of a study.

    Raises:
        UsageError: for a recipe of another family, without a number of steps, or one that fixes
            what the methods change.
    """
    recipe = of_family(load_recipe(arguments), DdlRecipe)
    if recipe.training.max_steps is None:
        raise UsageError("a study needs training.max_steps: the methods share their steps")
    if recipe.training.eval_steps is None:
        raise UsageError("a study needs training.eval_steps: curves and gates come from there")
    if recipe.model.init_from is not None:
        raise UsageError("model.init_from is one model; a study trains every method from scratch")
    if recipe.model.value_budgets or recipe.model.depth_budgets:
        raise UsageError(
            "model.value_budgets and model.depth_budgets must be empty in a study: its methods are "
            "compared at full size"
        )
    return Study(tuple(arguments), folder)


def run_study(study: Study, seeds: Sequence[int], methods: Sequence[str]) -> dict[str, Any]:
    """Run the missing cells and write the summary after each.

    Args:
        study: from `open_study`.
        seeds: seeds of every method.
        methods: names of `METHODS`, or ``baseline@1.25`` and so on.

    Returns:
        The summary.
    """
    for seed in seeds:
        for method in methods:
            recipe = study.recipe(method, seed)
            cell = Path(recipe.output_dir)
            if (cell / METRICS_FILE).is_file():
                saved = of_family(load_saved_recipe(cell), DdlRecipe)
                require_same_recipe(recipe, saved)
                logger.info("finished before: %s", cell)
                continue
            logger.info("running %s", cell)
            prepare_streams(recipe.data)
            train(recipe, resume=True)
            write_summary(study)
    return write_summary(study)


def write_times(study: Study, methods: Sequence[str], rounds: int) -> None:
    """Measure the training step of every method in turns, once for the study.

    Raises:
        UsageError: if the times there are those of another recipe.
    """
    path = study.folder / TIMES_FILE
    wanted = dict.fromkeys([BASELINE, *(name for name in methods if "@" not in name)])
    asked = sorted(word for word in study.arguments if "path" not in word)
    if path.is_file():
        there = json.loads(path.read_text(encoding="utf-8"))
        if there["recipe"] != asked:
            raise UsageError(
                f"{path} timed the steps of another recipe ({' '.join(there['recipe'])}); remove "
                "it, or choose another --output"
            )
        if set(wanted) <= set(there["methods"]):
            return
        # Ratios hold between methods that were timed in turns: all of them once more.
        wanted |= dict.fromkeys(there["methods"])
    study.folder.mkdir(parents=True, exist_ok=True)
    recipes = {name: study.recipe(name, 0) for name in wanted}
    prepare_streams(next(iter(recipes.values())).data)
    measured = measure_step_times(recipes, rounds)
    write_json(path, {"schema_version": 1, "recipe": asked, **measured})


def read_cells(study: Study) -> dict[str, dict[int, Cell]]:
    """Read the finished cells: method -> seed -> what it measured.

    Raises:
        DataError: if cells were measured on other rows.
    """
    cells: dict[str, dict[int, Cell]] = {}
    rows: dict[tuple[Any, ...], str] = {}
    for file in sorted(study.folder.glob(f"*-*/{METRICS_FILE}")):
        name, _, seed = file.parent.name.rpartition("-")
        if not seed.isdigit() or name.partition("@")[0] not in METHODS:
            continue
        recipe = of_family(load_saved_recipe(file.parent), DdlRecipe)
        evaluation = read_evaluation(file)
        measured = evaluation["data"]["rows"], evaluation["data"]["sha256"]
        rows.setdefault(measured, str(file.parent))
        cells.setdefault(name, {})[int(seed)] = Cell(
            evaluation, file.parent / EVENTS_FILE, int(recipe.training.max_steps or 0)
        )
    if len(rows) > 1:
        raise DataError(f"cells were measured on different rows: {' and '.join(rows.values())}")
    return cells


def write_summary(study: Study) -> dict[str, Any]:
    """Write ``study.json`` and the plot from the finished cells."""
    file = study.folder / TIMES_FILE
    times = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None
    recipe, cells = study.recipe(BASELINE, 0), read_cells(study)
    measured = [cell.evaluation for of_method in cells.values() for cell in of_method.values()]
    tokens = recipe.training.batch_size * recipe.training.gradient_accumulation_steps
    content = {
        "schema_version": SCHEMA_VERSION,
        "kind": KIND,
        "family": "ddl",
        "environment": environment_block([]),
        "steps": recipe.training.max_steps,
        "tokens": int(recipe.training.max_steps or 0) * tokens * recipe.data.max_length,
        "tokens_per_step": tokens * recipe.data.max_length,
        "recipe": [word for word in study.arguments if "path" not in word],
        "clock": "not measured" if times is None else times["clock"],
        # Cells may be older than what sums them up and what timed their steps.
        "commits": commits_of([*measured, *([] if times is None else [times])]),
        "methods": summarise(cells, times),
    }
    write_json(study.folder / SUMMARY_FILE, content)
    if content["methods"]:
        plot_study(content, study.folder / SUMMARY_FILE)
    return content


def main() -> None:
    """Run a study from the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("recipe", nargs="+", help="recipe=NAME and key=value changes")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    names = [*METHODS, *map(longer_name, LONGER)]
    parser.add_argument("--methods", nargs="+", choices=names, default=names)
    parser.add_argument("--output", type=Path, required=True, help="folder of the study")
    parser.add_argument(
        "--step-rounds", type=int, default=7, metavar="N", help="rounds that time a training step"
    )
    given = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    study = open_study(given.recipe, given.output)
    keep_freed_memory()
    write_times(study, given.methods, given.step_rounds)
    run_study(study, given.seeds, given.methods)


if __name__ == "__main__":
    sys.exit(run_with_one_line(main))
