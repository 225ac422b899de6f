"""Does growing a small checkpoint into a nested encoder help? Loss before and after, by seed.

    python -m nestling.recipes.delta_encoder.growth_study recipe=delta_encoder/ecommerce \
        data.path=data/ecommerce training.epochs=null training.max_steps=400 evaluation.batches=8 \
        --base runs/study/tokens/separate-smallest-{seed} \
        --target runs/study/tokens/separate-largest-{seed} --seeds 0 1 2 --output runs/growth

Base and target are folders of two models that were trained alone, a small one and one of the sizes
of the recipe, with one tokenizer. ``{seed}`` in a folder is the seed, so that each run starts from
checkpoints of its own; a folder without it serves all seeds.

Starts, each trained with the same rows, steps, learning rate and budgets:

* ``fresh``: the recipe from random weights.
* ``grown``: the base inside a model of the size of the target; new units write zeros.
* ``grown-from-target``: the same, filled with the weights of the target.
* ``sorted``: the target with its units sorted by importance, the other valid way to nest two sizes.

The smallest, middle and largest budget are measured before training and after it, on the same rows.
The base's own shape is one of the budgets of every start; name ``data.pretokenized_path`` to train
on the rows that the checkpoints were trained on. A finished run (START-SEED) is not run again, so a
study can be stopped and continued.
"""

import argparse
import logging
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from transformers import set_seed

from ...hub_cards.export_slices import export_elastic
from ...modeling.families import register_families
from ..cli_errors import DataError, UsageError, run_with_one_line
from ..data.corpus import build_data
from ..data.tokenizer_training import load_tokenizer
from ..environment import environment_block
from ..evaluation_file import commits_of, read_evaluation, write_json
from ..recipe_loader import SAVED_NAME, load_recipe, load_saved_recipe, of_family, save_recipe
from ..recipe_schema import DeltaEncoderRecipe
from ..recipe_validation import validate
from ..saved_model import model_folder
from ..training_run import METRICS_FILE, MODEL_FOLDER, require_same_recipe
from .build import build_model
from .evaluate import evaluate_run
from .evaluation_inputs import open_run
from .finetune_settings import check_seeds
from .growth_summary import FILLED, GROWN, SORTED, STARTS, Results, Run, summarise_starts
from .model_config import check_checkpoints, grown_config, read_checkpoint, scratch_config
from .study_cells import TOKENS
from .study_methods import NESTED, stages_of
from .study_plan import Study, open_study
from .train import train

logger = logging.getLogger(__name__)

SCHEMA_VERSION = 1
KIND = "growth_study"
SUMMARY_FILE = "growth_study.json"
SEED = "{seed}"
START_FOLDER = "start"
# What the fresh start takes from the recipe and the grown ones from the target.
SIZES = (
    "vocab_size hidden_size num_hidden_layers num_attention_heads head_dim "
    "max_position_embeddings local_attention global_attn_every_n_layers norm_eps"
).split()


@dataclass(frozen=True)
class GrowthStudy:
    """What is run.

    Attributes:
        arguments: ``recipe=NAME`` and ``key=value`` changes.
        base: Folder of the small model or its run, with or without ``{seed}``.
        target: Likewise, of the model with the sizes of the recipe.
        starts: Names in `STARTS`.
        seeds: Seeds of initialisation, order and masks.
    """

    arguments: tuple[str, ...]
    base: str
    target: str
    starts: tuple[str, ...] = STARTS
    seeds: tuple[int, ...] = (0, 1, 2)

    def sources(self) -> dict[int, tuple[Path, Path]]:
        """Return seed -> model folders of base and target.

        Raises:
            ModelFolderError: if there is none.
        """
        found = {}
        for seed in self.seeds:
            base, target = (Path(f.replace(SEED, str(seed))) for f in (self.base, self.target))
            found[seed] = model_folder(base), model_folder(target)
        return found


def run_growth_study(study: GrowthStudy, output: Path) -> Path:
    """Run what is not finished and write the summary.

    Returns:
        The summary file.

    Raises:
        UsageError: if the recipe has a start of its own or other sizes than the target, a start
            does not exist, or ``output`` holds runs of another recipe.
        DataError: if a checkpoint has another tokenizer than the rows.
        ModelFolderError: if a folder holds no model to start from.
        ValueError: if the checkpoints do not nest.
    """
    unknown = sorted(set(study.starts) - set(STARTS))
    if unknown:
        raise UsageError(f"start {unknown[0]!r} must be {', '.join(STARTS)}")
    check_seeds(study.seeds)
    _require_no_start(of_family(load_recipe(study.arguments), DeltaEncoderRecipe))
    # Missing folders are found before rows are prepared, and all else before hours of training.
    sources = study.sources()
    register_families()  # without it, loading a tokenizer asks whether to run code of its folder
    plan = _with_base_shape(open_study(study.arguments, output), sources)
    for folder in dict.fromkeys(folder for pair in sources.values() for folder in pair):
        _require_tokenizer(plan, folder)
    cells = {
        start: {seed: cell_recipe(plan, start, seed, *sources[seed]) for seed in study.seeds}
        for start in study.starts
    }
    for recipe in (recipe for of_start in cells.values() for recipe in of_start.values()):
        check_checkpoints(recipe)
        check_kept(recipe)
    results: dict[str, list[Run]] = {}
    for seed in study.seeds:
        for start in study.starts:
            results.setdefault(start, []).append(run_cell(cells[start][seed], seed))
    write_json(output / SUMMARY_FILE, _summary(study, plan, results))
    return output / SUMMARY_FILE


def start_recipe(
    recipe: DeltaEncoderRecipe, start: str, base: Path, target: Path
) -> DeltaEncoderRecipe:
    """Return the recipe that begins with a start; anyone can train one by these keys."""
    init, model = recipe.init, recipe.model
    if start in (GROWN, FILLED):
        filled = start == FILLED
        init = replace(init, base=str(base), target=str(target), delta_from_target=filled)
    elif start == SORTED:
        model = replace(model, init_from=str(target), reorder_by_importance=True)
    return replace(recipe, init=init, model=model)


def cell_recipe(plan: Study, start: str, seed: int, base: Path, target: Path) -> DeltaEncoderRecipe:
    """Return the recipe of one run, which measures the named budgets only.

    Raises:
        UsageError: if the recipe has a part that the start cannot have.
    """
    named = plan.named()
    budgets = list(dict.fromkeys(str(budget) for budget in named.values()))
    recipe = start_recipe(plan.recipe, start, base, target)
    recipe = replace(recipe, evaluation=replace(recipe.evaluation, budgets=budgets))
    folder = plan.folder / f"{start}-{seed}"
    steps = plan.lengths[TOKENS]
    [stage] = stages_of(NESTED, recipe, named, steps=steps, seed=seed, folder=folder)
    validate(stage)
    return stage


def measure_start(recipe: DeltaEncoderRecipe) -> None:
    """Write the model that `train` starts from, and its evaluation, to ``start/`` of the run."""
    folder = Path(recipe.output_dir) / START_FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    save_recipe(recipe, folder)
    # In the order of `train`, for the same random weights.
    set_seed(recipe.seed)
    data = build_data(recipe.data, recipe.seed)
    export_elastic(build_model(recipe, data), data.tokenizer, folder / MODEL_FOLDER)
    write_json(folder / METRICS_FILE, evaluate_run(open_run(folder / MODEL_FOLDER)))


def _summary(study: GrowthStudy, plan: Study, results: Results) -> dict[str, Any]:
    named = {name: str(budget) for name, budget in plan.named().items()}
    section = plan.recipe.training
    steps = plan.lengths[TOKENS]
    stages = stages_of(NESTED, plan.recipe, plan.named(), steps=steps, seed=0, folder=plan.folder)
    of = {True: "per seed", False: "for all seeds"}
    measured = next(iter(results.values()))[0].after
    return {
        "schema_version": SCHEMA_VERSION,
        "kind": KIND,
        "family": plan.recipe.family,
        "named_budgets": named,
        "budgets": list(plan.config.budgets),
        "checkpoints": f"a base {of[SEED in study.base]}, a target {of[SEED in study.target]}",
        "steps": steps,
        "rows_per_step": section.batch_size * section.gradient_accumulation_steps,
        "lr": section.lr,
        "training": asdict(plan.cost(stages)),
        "evaluation_rows": measured["data"].get("rows"),
        "starts": summarise_starts(results, named),
        "commits": commits_of(
            one for runs in results.values() for run in runs for one in (run.before, run.after)
        ),
        "environment": environment_block(study.seeds),
    }


def run_cell(recipe: DeltaEncoderRecipe, seed: int) -> Run:
    """Measure the start and train, whichever is not finished, and return what they measured."""
    folder = Path(recipe.output_dir)
    before, after = folder / START_FOLDER / METRICS_FILE, folder / METRICS_FILE
    if not before.is_file():
        logger.info("measuring the start of %s", folder)
        measure_start(recipe)
    if after.is_file():
        logger.info("%s is finished", folder)
    else:
        logger.info("running %s", folder)
        train(recipe, resume=True)
    return Run(seed, read_evaluation(before), read_evaluation(after))


def _with_base_shape(plan: Study, sources: Mapping[int, tuple[Path, Path]]) -> Study:
    """Return the study whose budgets, for every start, include the shape of the base.

    Raises:
        UsageError: if the target has other sizes than the recipe, or bases differ in shape.
        ValueError: if the checkpoints do not nest.
    """
    lattices: dict[tuple[str, ...], Path] = {}
    for base, target in sources.values():
        _require_sizes(plan, target)
        config = grown_config(start_recipe(plan.recipe, GROWN, base, target))
        lattices.setdefault(tuple(config.budgets or ()), base)
    if len(lattices) > 1:
        places = " and ".join(str(base) for base in lattices.values())
        raise UsageError(
            f"{places} differ in shape, so their runs would train other budgets; give --base "
            "models of one shape"
        )
    missing = [budget for budget in next(iter(lattices)) if budget not in plan.config.budgets]
    section = plan.recipe.model
    section = replace(section, extra_budgets=[*section.extra_budgets, *missing])
    recipe = replace(plan.recipe, model=section)
    return plan._replace(recipe=recipe, config=scratch_config(recipe, plan.tokenizer))


def _require_sizes(plan: Study, target: Path) -> None:
    """Require that the fresh start has the sizes of the target.

    Raises:
        UsageError: naming the key.
    """
    config = read_checkpoint("--target", str(target))
    pairs = [(key, getattr(plan.config, key), getattr(config, key)) for key in SIZES]
    channels = [each.intermediate_sizes() for each in (plan.config, config)]
    ours, theirs = (sizes[0] if len(set(sizes)) == 1 else sizes for sizes in channels)
    pairs.append(("intermediate_size", ours, theirs))
    keys = {field.name for field in fields(plan.recipe.model)}
    for key, ours, theirs in pairs:
        if ours != theirs:
            remedy = f"set model.{key}={theirs}" if key in keys else "choose another --target"
            raise UsageError(
                f"model.{key} is {ours}, but --target {target} has {theirs}, and all starts are "
                f"built alike; {remedy}"
            )


def _require_no_start(recipe: DeltaEncoderRecipe) -> None:
    """Refuse a recipe that does not start from random weights.

    Raises:
        UsageError: naming the key.
    """
    keys = {"init.base": recipe.init.base, "model.init_from": recipe.model.init_from}
    for key, value in keys.items():
        if value is not None:
            raise UsageError(
                f"{key} is {value}, but the study sets the starts itself; set {key}=null and give "
                "the checkpoints as --base and --target"
            )


def _require_tokenizer(plan: Study, folder: Path) -> None:
    """Require that the rows are numbered as a checkpoint knows them, where it says so.

    Raises:
        DataError: if it has another tokenizer.
    """
    if not (folder / "tokenizer.json").is_file():
        return
    if load_tokenizer(folder).get_vocab() != plan.tokenizer.get_vocab():
        raise DataError(
            f"{folder} has another tokenizer than the rows of the study; set "
            f"data.tokenizer={folder} and another --output, or data.pretokenized_path to the rows "
            "it was trained on"
        )


def check_kept(recipe: DeltaEncoderRecipe) -> None:
    """Refuse to go on beside a run of another recipe, or one that was measured otherwise.

    Raises:
        UsageError: naming every key that differs.
    """
    folder = Path(recipe.output_dir) / START_FOLDER
    if not (folder / SAVED_NAME).is_file():
        return
    saved = of_family(load_saved_recipe(folder), DeltaEncoderRecipe)
    require_same_recipe(recipe, saved)
    there = asdict(saved.evaluation)
    differing = [
        f"evaluation.{key} was {there[key]!r} and is now {value!r}"
        for key, value in asdict(recipe.evaluation).items()
        if there[key] != value
    ]
    if differing:
        raise UsageError(
            f"{recipe.output_dir} was measured otherwise: {'; '.join(differing)}; give the same "
            "values, or choose another --output"
        )


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("recipe", nargs="+", help="recipe=NAME and key=value changes")
    parser.add_argument("--base", required=True, help="folder of the small model or its run")
    parser.add_argument("--target", required=True, help="likewise, of the sizes of the recipe")
    parser.add_argument("--starts", nargs="+", choices=STARTS, default=STARTS)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--output", type=Path, required=True, help="folder of the runs")
    given = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    study = GrowthStudy(
        tuple(given.recipe), given.base, given.target, tuple(given.starts), tuple(given.seeds)
    )
    run_growth_study(study, given.output)


if __name__ == "__main__":
    sys.exit(run_with_one_line(main))
