"""What is left of a dense delta in fewer numbers, before and after the delta alone is trained?

    python -m nestling.recipes.delta_encoder.conversion_study "runs/study/tokens/nested-{seed}" \
        --seeds 0 1 2 --steps 200 --output runs/conversion

The dense delta of each model is converted to every form (`modeling.delta_conversion`), measured,
then trained with ``training.only=deltas``, which leaves the base slice as it is, and measured
again. The control of a form starts from freshly drawn factors around the same base slice: a
conversion that does not beat it was not worth its while. A finished cell is never run again, and
one of other settings in the same folder is an error.
"""

import argparse
import json
import logging
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from transformers import set_seed

from ...configuration.delta_budget import DeltaBudget
from ...hub_cards.export_slices import export_elastic
from ...modeling.delta_conversion import convert_delta
from ...modeling.families import register_families
from ...modeling.hierarchical_growth import load_encoder
from ..cli_errors import ModelFolderError, UsageError, run_with_one_line
from ..data.tokenizer_training import load_tokenizer
from ..environment import environment_block
from ..evaluation_file import commits_of, read_evaluation, write_json
from ..recipe_loader import load_saved_recipe, of_family, save_recipe
from ..recipe_schema import DeltaEncoderRecipe, InitSection
from ..recipe_validation import validate
from ..saved_model import model_folder
from ..training_run import METRICS_FILE
from .evaluate import evaluate_run
from .evaluation_inputs import open_run
from .finetune_settings import check_seeds
from .growth_study import SEED, START_FOLDER, check_kept, run_cell
from .growth_summary import Run, loss_at
from .model_config import check_checkpoints, read_checkpoint
from .study_deltas import base_budget, size_of_delta
from .study_summary import interval

logger = logging.getLogger(__name__)

SCHEMA_VERSION = 1
KIND = "conversion_study"
SUMMARY_FILE = "conversion_study.json"
FRESH_FOLDER, HELD_FILE = "fresh-model", "held.json"
# Form -> values of the configuration.
FORMS: dict[str, dict[str, Any]] = {
    "low-rank 4": {"delta_kind": "low_rank", "delta_rank": 4},
    "low-rank 16": {"delta_kind": "low_rank", "delta_rank": 16},
    "low-rank 48": {"delta_kind": "low_rank", "delta_rank": 48},
    "dictionary 8x8": {"delta_kind": "dictionary", "delta_atoms": 8, "delta_rank": 8},
    "dictionary 8x32": {"delta_kind": "dictionary", "delta_atoms": 8, "delta_rank": 32},
}
CONVERTED, FRESH = "converted", "fresh"

# Form -> start -> its runs, one a seed.
Runs = dict[str, dict[str, list[Run]]]


@dataclass(frozen=True)
class ConversionStudy:
    """What is run.

    Attributes:
        models: folder of a run with a dense delta, ``{seed}`` in place of the seed where there are
            several.
        forms: names in `FORMS`.
        seeds: of the models, and of the runs that start from them.
        steps: optimizer steps of each run.
        overrides: ``evaluation.key=value`` changes to the saved recipe.
    """

    models: str
    forms: tuple[str, ...] = tuple(FORMS)
    seeds: tuple[int, ...] = (0, 1, 2)
    steps: int = 200
    overrides: tuple[str, ...] = ()


def run_conversion_study(study: ConversionStudy, output: Path) -> Path:
    """Run what is not finished and write the summary.

    Returns:
        The summary file.

    Raises:
        UsageError: for a form that does not exist, steps below 1, a change of other keys than
            those of the evaluation, or ``output`` with runs of other settings.
        ModelFolderError: if there is no model, or one whose delta is not dense or whose base slice
            is not among its budgets.
    """
    _check(study)
    register_families()
    sources = {seed: Path(study.models.replace(SEED, str(seed))) for seed in study.seeds}
    dense = {seed: _dense_recipe(study, folder, seed, output) for seed, folder in sources.items()}
    cells = {
        (form, start, seed): cell_recipe(dense[seed], form, start, seed, output)
        for seed in study.seeds
        for form in study.forms
        for start in (CONVERTED, FRESH)
    }
    for recipe in (*dense.values(), *cells.values()):
        check_kept(recipe)
    references = {seed: _measure_dense(study, dense[seed], sources[seed]) for seed in dense}
    runs: Runs = {}
    held: dict[str, list[float]] = {}
    for (form, start, seed), recipe in cells.items():
        if start == FRESH:
            _write_fresh(recipe, dense[seed], form)
        else:
            held.setdefault(form, []).append(_share_held(recipe, dense[seed], form))
        check_checkpoints(recipe)
        runs.setdefault(form, {}).setdefault(start, []).append(run_cell(recipe, seed))
    write_json(output / SUMMARY_FILE, _summary(study, dense, references, runs, held))
    return output / SUMMARY_FILE


def _check(study: ConversionStudy) -> None:
    unknown = sorted(set(study.forms) - set(FORMS))
    if unknown:
        raise UsageError(f"form {unknown[0]!r} must be one of {', '.join(FORMS)}")
    if study.steps < 1:
        raise UsageError(f"--steps is {study.steps}, it must be 1 or more")
    check_seeds(study.seeds)
    if len(study.seeds) > 1 and SEED not in study.models:
        raise UsageError(
            f"{study.models} is one model for {len(study.seeds)} seeds; put {SEED} in the place of "
            "the seed, or give one of --seeds"
        )
    for override in study.overrides:
        if not override.startswith("evaluation."):
            raise UsageError(
                f"--set {override} changes what the models were trained on; give evaluation keys"
            )


def _settings(config: Any, form: str) -> dict[str, Any]:
    """Return the values of a form, with half of the heads and channels as its base slice."""
    channels = [size // 2 for size in config.intermediate_sizes()]
    return {
        **FORMS[form],
        "base_attention_heads": max(1, config.num_attention_heads // 2),
        "base_intermediate_size": channels,
    }


def _measured_budgets(config: Any, form: str) -> tuple[DeltaBudget, DeltaBudget]:
    """Return the base slice in full depth and the largest budget."""
    base = base_budget(_config_of(config, form))
    if base is None:
        raise ModelFolderError(
            "half of the heads and of the MLP channels in full depth is not among the budgets of "
            "the model; give a model that was trained for it"
        )
    return base, DeltaBudget.full(config)


def _dense_recipe(
    study: ConversionStudy, folder: Path, seed: int, output: Path
) -> DeltaEncoderRecipe:
    """Return the recipe that a dense model is measured by, and the cells of its seed begin with."""
    model = model_folder(folder)
    config = read_checkpoint("models", str(model))
    if config.delta_kind != "dense":
        raise ModelFolderError(f"{folder} has a delta of {config.delta_kind}; give a dense one")
    saved = of_family(load_saved_recipe(folder, study.overrides), DeltaEncoderRecipe)
    training = replace(saved.training, epochs=None, max_steps=study.steps, eval_steps=None)
    budgets = [str(budget) for budget in _measured_budgets(config, study.forms[0])]
    return replace(
        saved,
        output_dir=str(output / f"dense-{seed}"),
        model=replace(saved.model, init_from=str(model), reorder_by_importance=False),
        init=InitSection(),
        training=training,
        evaluation=replace(saved.evaluation, budgets=budgets, latency=False),
        export=replace(saved.export, budgets=[]),
    )


def _measure_dense(
    study: ConversionStudy, recipe: DeltaEncoderRecipe, folder: Path
) -> Mapping[str, Any]:
    """Evaluate the dense model at both budgets, once."""
    place = Path(recipe.output_dir) / START_FOLDER
    file = place / METRICS_FILE
    if not file.is_file():
        place.mkdir(parents=True, exist_ok=True)
        save_recipe(recipe, place)
        run = open_run(folder, study.overrides)
        measuring = replace(run.recipe, evaluation=recipe.evaluation)
        write_json(file, evaluate_run(run._replace(recipe=measuring)))
    return read_evaluation(file)


def cell_recipe(
    dense: DeltaEncoderRecipe, form: str, start: str, seed: int, output: Path
) -> DeltaEncoderRecipe:
    """Return the recipe of one run; the fresh control starts from a model written for it."""
    place = output / f"{start}-{form.replace(' ', '-')}-{seed}"
    settings = _settings(read_checkpoint("models", str(dense.model.init_from)), form)
    recipe = replace(
        dense,
        output_dir=str(place),
        seed=seed,
        model=replace(
            dense.model,
            init_from=dense.model.init_from if start == CONVERTED else str(place / FRESH_FOLDER),
            convert_delta=start == CONVERTED,
            delta=settings["delta_kind"],
            delta_rank=settings["delta_rank"],
            delta_atoms=settings.get("delta_atoms", dense.model.delta_atoms),
            base_heads=settings["base_attention_heads"],
            base_ratio=0.5,
        ),
        training=replace(dense.training, only="deltas"),
    )
    validate(recipe)
    return recipe


def _write_fresh(recipe: DeltaEncoderRecipe, dense: DeltaEncoderRecipe, form: str) -> None:
    """Write the dense model with a delta that is drawn anew around the same base slice."""
    folder, source = Path(str(recipe.model.init_from)), str(dense.model.init_from)
    if folder.is_dir():
        return
    model = load_encoder(source)
    fresh = convert_delta(model, fits=False, **_settings(model.config, form)).model
    set_seed(recipe.seed)
    for block in fresh.base_model.deltas.blocks.values():
        block.reset(fresh.config.initializer_range)
    export_elastic(fresh, load_tokenizer(Path(source)), folder)


def _share_held(recipe: DeltaEncoderRecipe, dense: DeltaEncoderRecipe, form: str) -> float:
    """Return how much of the dense delta its conversion holds, mean over the matrices."""
    file = Path(recipe.output_dir) / HELD_FILE
    if not file.is_file():
        model = load_encoder(str(dense.model.init_from))
        lost = convert_delta(model, **_settings(model.config, form)).lost
        write_json(file, {kind: 1 - share for kind, share in lost.items()})
    held = json.loads(file.read_text(encoding="utf-8"))
    return float(sum(held.values()) / len(held))


def _summary(
    study: ConversionStudy,
    dense: Mapping[int, DeltaEncoderRecipe],
    references: Mapping[int, Mapping[str, Any]],
    cells: Runs,
    held: Mapping[str, Sequence[float]],
) -> dict[str, Any]:
    form = study.forms[0]
    config = read_checkpoint("models", str(next(iter(dense.values())).model.init_from))
    base, largest = (str(budget) for budget in _measured_budgets(config, form))
    ends = {seed: (loss_at(one, base), loss_at(one, largest)) for seed, one in references.items()}
    runs = [run for starts in cells.values() for of_start in starts.values() for run in of_start]
    return {
        "schema_version": SCHEMA_VERSION,
        "kind": KIND,
        "base": base,
        "largest": largest,
        "steps": study.steps,
        "seeds": list(study.seeds),
        "dense": {
            "bytes": size_of_delta(_config_of(config, form)).dense,
            "base": interval([at_base for at_base, _ in ends.values()]),
            "largest": interval([at_largest for _, at_largest in ends.values()]),
        },
        "forms": {
            name: {
                "bytes": _bytes(_config_of(config, name)),
                "held": interval(list(held[name])),
                **{start: _losses_of(of_it, ends, largest) for start, of_it in starts.items()},
                "converted_minus_fresh": interval(
                    [
                        loss_at(a.after, largest) - loss_at(b.after, largest)
                        for a, b in zip(starts[CONVERTED], starts[FRESH], strict=True)
                    ]
                ),
            }
            for name, starts in cells.items()
        },
        "commits": commits_of(
            [*references.values(), *(one for run in runs for one in (run.before, run.after))]
        ),
        "environment": environment_block(study.seeds),
    }


def _config_of(config: Any, form: str) -> Any:
    return type(config)(**{**config.to_dict(), **_settings(config, form)})


def _bytes(config: Any) -> dict[str, int]:
    size = size_of_delta(config)
    return {"pack": size.pack, "atoms": size.atoms}


def _losses_of(
    runs: Sequence[Run], ends: Mapping[int, tuple[float, float]], largest: str
) -> dict[str, Any]:
    """Return cross-entropy and recovered share of the dense gain, before and after training.

    The share is None where a dense delta gains nothing.
    """
    gains = {seed: base - whole for seed, (base, whole) in ends.items()}
    has_gain = all(gain > 0 for gain in gains.values())
    found: dict[str, Any] = {}
    for when in ("before", "after"):
        losses = {run.seed: loss_at(getattr(run, when), largest) for run in runs}
        found[when] = interval(list(losses.values()))
        shares = [(ends[s][0] - loss) / gains[s] for s, loss in losses.items()] if has_gain else []
        found[f"recovered_{when}"] = interval(shares) if has_gain else None
    return found


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", help="folder of a run with a dense delta, {seed} for the seed")
    parser.add_argument("--forms", nargs="+", choices=FORMS, default=list(FORMS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=200, help="optimizer steps of each run")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", dest="overrides")
    parser.add_argument("--output", type=Path, required=True, help="folder of the runs")
    given = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    study = ConversionStudy(
        given.models, tuple(given.forms), tuple(given.seeds), given.steps, tuple(given.overrides)
    )
    run_conversion_study(study, given.output)


if __name__ == "__main__":
    sys.exit(run_with_one_line(main))
