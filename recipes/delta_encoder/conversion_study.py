"""What is left of a dense delta in fewer numbers, before and after the delta alone is trained?

    python -m nestling.recipes.delta_encoder.conversion_study "runs/study/tokens/nested-{seed}" \
        --seeds 0 1 2 --steps 200 --output runs/conversion

The dense delta of each model is converted to every form (`modeling.delta_conversion`), measured,
then trained with ``training.only=deltas``, which leaves the base slice as it is, and measured
again. The control of a form starts from freshly drawn factors around the same base slice: a
conversion that does not beat it was not worth its while. A finished cell is never run again.
"""

import argparse
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
from ..recipe_loader import load_saved_recipe, of_family
from ..recipe_schema import DeltaEncoderRecipe
from ..recipe_sections import EvaluationSection
from ..recipe_validation import validate
from ..saved_model import model_folder
from .evaluate import evaluate_run
from .evaluation_inputs import open_run
from .finetune_settings import check_seeds
from .growth_study import SEED, run_cell
from .growth_summary import Run
from .model_config import read_checkpoint
from .study_deltas import base_budget, size_of_delta
from .study_summary import interval

logger = logging.getLogger(__name__)

SCHEMA_VERSION = 1
KIND = "conversion_study"
SUMMARY_FILE = "conversion_study.json"
FRESH_FOLDER = "fresh-model"
# Form -> values of the configuration.
FORMS: dict[str, dict[str, Any]] = {
    "low-rank 4": {"delta_kind": "low_rank", "delta_rank": 4},
    "low-rank 16": {"delta_kind": "low_rank", "delta_rank": 16},
    "low-rank 48": {"delta_kind": "low_rank", "delta_rank": 48},
    "dictionary 8x8": {"delta_kind": "dictionary", "delta_atoms": 8, "delta_rank": 8},
    "dictionary 8x32": {"delta_kind": "dictionary", "delta_atoms": 8, "delta_rank": 32},
}
CONVERTED, FRESH = "converted", "fresh"


@dataclass(frozen=True)
class ConversionStudy:
    """What is run.

    Attributes:
        models: folder of a run with a dense delta, ``{seed}`` in place of the seed.
        forms: names in `FORMS`.
        seeds: of the models, and of the runs that start from them.
        steps: optimizer steps of each run.
        overrides: ``section.key=value`` changes to the saved recipe.
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
        UsageError: for a form that does not exist, or steps below 1.
        ModelFolderError: if there is no model, or one whose delta is not dense or whose base slice
            is not among its budgets.
    """
    unknown = sorted(set(study.forms) - set(FORMS))
    if unknown:
        raise UsageError(f"form {unknown[0]!r} must be one of {', '.join(FORMS)}")
    if study.steps < 1:
        raise UsageError(f"--steps is {study.steps}, it must be 1 or more")
    check_seeds(study.seeds)
    register_families()
    output.mkdir(parents=True, exist_ok=True)
    sources = {seed: Path(study.models.replace(SEED, str(seed))) for seed in study.seeds}
    for folder in sources.values():
        model_folder(folder)
    references = {seed: _measure_source(study, sources[seed], seed, output) for seed in sources}
    cells: dict[str, dict[str, list[Run]]] = {}
    held: dict[str, list[float]] = {}
    for seed, folder in sources.items():
        model = load_encoder(str(model_folder(folder)))
        for form in study.forms:
            _, lost = convert_delta(model, **_settings(model.config, form))
            held.setdefault(form, []).append(1 - sum(lost.values()) / len(lost))
            for start in (CONVERTED, FRESH):
                recipe = _cell_recipe(study, folder, form, start, seed, output)
                runs = cells.setdefault(form, {}).setdefault(start, [])
                runs.append(run_cell(recipe, seed))
    write_json(output / SUMMARY_FILE, _summary(study, references, cells, held, model.config))
    return output / SUMMARY_FILE


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


def _measure_source(
    study: ConversionStudy, folder: Path, seed: int, output: Path
) -> Mapping[str, Any]:
    """Evaluate the dense model at both budgets, once."""
    file = output / f"source-{seed}.json"
    if not file.is_file():
        config = read_checkpoint("models", str(model_folder(folder)))
        if config.delta_kind != "dense":
            raise ModelFolderError(f"{folder} has a delta of {config.delta_kind}; give a dense one")
        run = open_run(folder, study.overrides)
        section = _measuring(run.recipe.evaluation, config, study.forms[0])
        recipe = replace(run.recipe, evaluation=section)
        write_json(file, evaluate_run(run._replace(recipe=recipe)))
    return read_evaluation(file)


def _cell_recipe(
    study: ConversionStudy, folder: Path, form: str, start: str, seed: int, output: Path
) -> DeltaEncoderRecipe:
    """Return the recipe of one run; the fresh control starts from a model that is written here."""
    place = output / f"{start}-{form.replace(' ', '-')}-{seed}"
    dense = model_folder(folder)
    config = read_checkpoint("models", str(dense))
    settings, source = _settings(config, form), dense
    if start == FRESH:
        source = place / FRESH_FOLDER
        if not source.is_dir():
            _write_fresh(dense, settings, seed, source)
    saved = of_family(load_saved_recipe(folder, study.overrides), DeltaEncoderRecipe)
    recipe = replace(
        saved,
        output_dir=str(place),
        seed=seed,
        model=replace(
            saved.model,
            init_from=str(source),
            convert_delta=start == CONVERTED,
            delta=settings["delta_kind"],
            delta_rank=settings["delta_rank"],
            delta_atoms=settings.get("delta_atoms", saved.model.delta_atoms),
            base_heads=settings["base_attention_heads"],
            base_ratio=0.5,
        ),
        training=replace(
            saved.training, only="deltas", epochs=None, max_steps=study.steps, eval_steps=None
        ),
        evaluation=_measuring(saved.evaluation, config, form),
        export=replace(saved.export, budgets=[]),
    )
    validate(recipe)
    return recipe


def _write_fresh(dense: Path, settings: dict[str, Any], seed: int, folder: Path) -> None:
    """Write the dense model with a delta that was drawn anew around the same base slice."""
    set_seed(seed)
    model = convert_delta(load_encoder(str(dense)), **settings).model
    for block in model.base_model.deltas.blocks.values():
        block.reset(model.config.initializer_range)
    export_elastic(model, load_tokenizer(dense), folder)


def _measuring(section: EvaluationSection, config: Any, form: str) -> EvaluationSection:
    """Return what is measured: the base slice and the largest budget, nothing else."""
    budgets = [str(budget) for budget in _measured_budgets(config, form)]
    return replace(section, budgets=budgets, latency=False)


def _summary(
    study: ConversionStudy,
    references: Mapping[int, Mapping[str, Any]],
    cells: Mapping[str, Mapping[str, Sequence[Run]]],
    held: Mapping[str, Sequence[float]],
    config: Any,
) -> dict[str, Any]:
    form = study.forms[0]
    base, largest = _measured_budgets(config, form)
    ends = {seed: (_loss(found, base), _loss(found, largest)) for seed, found in references.items()}
    runs = [run for starts in cells.values() for of_start in starts.values() for run in of_start]
    return {
        "schema_version": SCHEMA_VERSION,
        "kind": KIND,
        "base": str(base),
        "largest": str(largest),
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
                        _loss(a.after, largest) - _loss(b.after, largest)
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
    runs: Sequence[Run], ends: Mapping[int, tuple[float, float]], largest: DeltaBudget
) -> dict[str, Any]:
    """Return cross-entropy and recovered share of the dense gain, before and after training."""
    found: dict[str, Any] = {}
    for when in ("before", "after"):
        losses = {run.seed: _loss(getattr(run, when), largest) for run in runs}
        shares = [(ends[s][0] - loss) / (ends[s][0] - ends[s][1]) for s, loss in losses.items()]
        found[when] = interval(list(losses.values()))
        found[f"recovered_{when}"] = interval(shares)
    return found


def _loss(evaluation: Mapping[str, Any], budget: DeltaBudget) -> float:
    [found] = [one for one in evaluation["budgets"] if one["budget"] == str(budget)]
    return float(found["cross_entropy"])


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", help="folder of a run with a dense delta, with {seed} in it")
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
