"""Fine-tune a nested encoder once and measure it at every budget.

    python -m nestling.recipes.delta_encoder.finetune MODEL --task match_wdc_computers \
        --data data/ecommerce --output runs/match --seeds 0 1 2

MODEL is the folder of a training run, of a Delta-Matryoshka encoder or of a ModernBERT. The task
is a sub-folder of the data: ``match_*`` (pairs of offers) or ``attributes_*`` (spans in titles).

Controls with the same command: a separately trained small model is a MODEL with one budget;
``--budgets-per-step 1 --sort-units after`` fine-tunes the largest budget only and slices it
afterwards.

A finished seed is not run again, so a run can be stopped and continued.
"""

import argparse
import json
import logging
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from transformers import set_seed

from ...configuration.budget import select_budgets
from ...configuration.delta_budget import DeltaBudget
from ...configuration.delta_settings import delta_share
from ...hub_cards.export_slices import export, export_elastic
from ...modeling.families import register_families
from ...trainers.budget_sampling import SandwichSampler
from ...trainers.delta_classifier_trainer import DeltaClassifierTrainer
from ...trainers.labelled_rows import LabelledCollator, LabelledRows
from ...trainers.loss_term import WeightedTerm
from ...trainers.losses.distillation import DistillationLoss
from ...trainers.losses.label_cross_entropy import LabelCrossEntropyLoss
from ...trainers.schedules import Constant
from ...trainers.stream_sampler import PositionSampler
from ...trainers.training_arguments import NestlingTrainingArguments
from ..cli_errors import UsageError, run_with_one_line
from ..environment import PACKAGE_FOLDER, commit_of, environment_block
from ..evaluation_file import KIND, write_json
from ..evaluation_file import SCHEMA_VERSION as EVALUATION_VERSION
from ..precision import has_accelerator, has_fast_bf16
from ..saved_model import model_folder
from ..shared_preparation import require_one_process
from .finetune_model import (
    has_order,
    load_source,
    predict,
    sort_after,
    sort_before,
    with_classifier,
)
from .finetune_settings import SORTINGS, FinetuneSettings, check_seeds
from .finetune_tasks import FinetuneTask, open_task
from .study_summary import interval

logger = logging.getLogger(__name__)

SCHEMA_VERSION = 1
METRICS_FILE, MODEL_FOLDER, SLICES_FOLDER = "metrics.json", "model", "slices"
# What cards are written from: the test split as an evaluation of every budget.
EVALUATION_FILE = "evaluation.json"
PIPELINES = {
    "DeltaEncoderForSequenceClassification": "text-classification",
    "DeltaEncoderForTokenClassification": "token-classification",
}
EVALUATED_SPLITS = ("validation", "test")


def finetune(
    settings: FinetuneSettings,
    seeds: Sequence[int],
    output: Path,
    slices: Sequence[str] = (),
) -> Path:
    """Fine-tune with every seed that is not finished, and write the summary of all.

    Args:
        settings: What to run.
        seeds: Seeds of the new classifier and the order of the rows.
        output: Receives ``seed-N/model``, ``seed-N/metrics.json`` and ``metrics.json``.
        slices: Budgets to cut out of the first seed's model into ``slices``, verified.

    Returns:
        The summary file.

    Raises:
        UsageError: If ``output`` holds seeds of other settings, a setting is impossible, or a
            launcher has started several processes.
        DataError: If the task cannot be read.
        ModelFolderError: If the folder holds no model to start from.
    """
    settings.validate()
    check_seeds(seeds)
    require_one_process("finetune")
    results = [finetune_seed(settings, seed, output / f"seed-{seed}") for seed in seeds]
    summary = summarise(results)
    summary["environment"] = environment_block(seeds)
    write_json(output / METRICS_FILE, summary)
    if slices:
        first = output / f"seed-{seeds[0]}"
        export(
            first / MODEL_FOLDER,
            slices,
            output / SLICES_FOLDER,
            evaluation=first / EVALUATION_FILE,
        )
    return output / METRICS_FILE


def finetune_seed(settings: FinetuneSettings, seed: int, folder: Path) -> dict[str, Any]:
    """Fine-tune with one seed unless ``folder`` has the result already, and return what it says.

    Raises:
        UsageError: If ``folder`` holds a result of other settings, or a setting is impossible.
        DataError: If the task cannot be read.
        ModelFolderError: If the folder holds no model to start from.
    """
    settings.validate()
    check_seeds([seed])
    register_families()
    finished = _finished(folder, settings)
    return _run_seed(settings, seed, folder) if finished is None else finished


def _run_seed(settings: FinetuneSettings, seed: int, folder: Path) -> dict[str, Any]:
    start = model_folder(Path(settings.model))
    set_seed(seed)
    source, tokenizer = load_source(start)
    limit = min(settings.max_length, source.config.max_position_embeddings)
    task = open_task(settings.task, Path(settings.data), tokenizer, limit)
    sorting = settings.sort_units
    if sorting == "before" or (sorting == "auto" and not has_order(start)):
        sort_before(source, tokenizer, task.rows["train"], settings.batch_size)
    model = with_classifier(source, task.model_class, task.labels)
    nested = select_budgets(settings.train_budgets, model.config)
    model.config.budgets = [str(budget) for budget in nested]
    evaluated = select_budgets(settings.evaluate, model.config)
    trainer = build_trainer(settings, seed, model, task, folder)
    trainer.train()
    if sorting == "after":
        sort_after(model, task.rows["train"], settings.batch_size)
    origin = {
        "base_model": settings.model,
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "trained_commit": commit_of(PACKAGE_FOLDER),
    }
    result = {
        "settings": settings.as_json(),
        "seed": seed,
        "steps": trainer.state.global_step,
        "data": dict(task.facts),
        "baselines": {name: dict(values) for name, values in task.baselines.items()},
        "budgets": measure_budgets(model, task, evaluated, settings.batch_size, limit),
    }
    measured = folder / EVALUATION_FILE
    evaluation = evaluation_of(result, type(model).__name__, limit)
    if (share := delta_share(model.config)) < 1.0:
        evaluation["delta_token_ratio"] = share
    write_json(measured, evaluation)
    export_elastic(model, tokenizer, folder / MODEL_FOLDER, evaluation=measured, **origin)
    write_json(folder / METRICS_FILE, result)
    return result


def evaluation_of(
    result: Mapping[str, Any], architecture: str, sequence_length: int
) -> dict[str, Any]:
    """Return the test split of one seed as the evaluation that cards and budgets.json read.

    Args:
        result: what a seed measured.
        architecture: class of the model.
        sequence_length: tokens that ``flops`` count; the classifier itself is not counted.
    """
    costs = ("budget", "parameters")
    return {
        "schema_version": EVALUATION_VERSION,
        "kind": KIND,
        "family": "delta_encoder",
        "task": PIPELINES[architecture],
        "environment": environment_block([result["seed"]]),
        "data": {**result["data"], "name": result["settings"]["task"], "split": "test"},
        "sequence_length": sequence_length,
        "budgets": [
            {
                **{key: entry[key] for key in costs},
                "flops": entry["trunk_flops"],
                **entry["test"],
            }
            for entry in result["budgets"]
        ],
    }


def build_trainer(
    settings: FinetuneSettings, seed: int, model: Any, task: FinetuneTask, folder: Path
) -> DeltaClassifierTrainer:
    """Wire the model, the task and the loss terms into a trainer."""
    budgets = model.config.budget_list()
    flops = [budget.flops(model.config, settings.max_length) for budget in budgets]
    # Each budget is a forward of its own, so those in between need not share a trunk.
    sampler = SandwichSampler(
        budgets, flops, settings.budgets_per_step, seed, trunk_of=lambda budget: None
    )
    terms = [WeightedTerm(LabelCrossEntropyLoss(), Constant(1.0))]
    if settings.kd_weight and len(sampler.sample(0)) > 1:
        distillation = DistillationLoss(settings.kd_temperature)
        terms.append(WeightedTerm(distillation, Constant(settings.kd_weight)))
    rows = LabelledRows(task.rows["train"])
    arguments = NestlingTrainingArguments(
        output_dir=str(folder),
        seed=seed,
        max_steps=settings.max_steps or -1,
        num_train_epochs=settings.epochs,
        per_device_train_batch_size=settings.batch_size,
        learning_rate=settings.lr,
        min_lr_ratio=0.0,
        bf16=has_accelerator() and has_fast_bf16(),
        save_strategy="no",
        use_cpu=not has_accelerator(),
    )
    return DeltaClassifierTrainer(
        model,
        arguments,
        budget_sampler=sampler,
        terms=terms,
        train_dataset=rows,
        train_sampler=PositionSampler(rows, seed),
        data_collator=LabelledCollator(model.config.pad_token_id),
    )


def measure_budgets(
    model: Any,
    task: FinetuneTask,
    budgets: Sequence[DeltaBudget],
    batch_size: int,
    max_length: int,
) -> list[dict[str, Any]]:
    """Return cost, and the measures on validation and test, of every budget."""
    entries, share = [], delta_share(model.config)
    for budget in budgets:
        entry: dict[str, Any] = {
            "budget": str(budget),
            "parameters": budget.parameters(model.config, "classification"),
            "trunk_flops": budget.flops(model.config, max_length, delta_ratio=share),
        }
        logits = {
            split: predict(model, task.rows[split], budget, batch_size)
            for split in EVALUATED_SPLITS
        }
        entry |= task.score(logits)
        logger.info("%s: test F1 %.4f", budget, entry["test"]["f1"])
        entries.append(entry)
    return entries


def summarise(results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return mean and 95 % t-interval (None below 2 seeds) of every measure of every budget."""
    first = results[0]
    budgets = []
    for index, entry in enumerate(first["budgets"]):
        same = [result["budgets"][index] for result in results]
        measures = {
            split: {
                name: interval([each[split][name] for each in same]) for name in entry[split]
            }
            for split in EVALUATED_SPLITS
        }
        cost = {key: entry[key] for key in ("budget", "parameters", "trunk_flops")}
        budgets.append({**cost, **measures})
    return {
        "schema_version": SCHEMA_VERSION,
        "kind": "finetune",
        "family": "delta_encoder",
        "seeds": [result["seed"] for result in results],
        **{key: first[key] for key in ("settings", "steps", "data", "baselines")},
        "budgets": budgets,
    }


def _finished(folder: Path, settings: FinetuneSettings) -> dict[str, Any] | None:
    if not (folder / METRICS_FILE).is_file():
        return None
    stored: dict[str, Any] = json.loads((folder / METRICS_FILE).read_text(encoding="utf-8"))
    differing = [
        f"{key} was {stored['settings'].get(key)!r} and is now {value!r}"
        for key, value in settings.as_json().items()
        if stored["settings"].get(key) != value
    ]
    if differing:
        raise UsageError(
            f"{folder} is finished with other settings: {'; '.join(differing)}; "
            "choose another output folder"
        )
    logger.info("%s is finished", folder.name)
    return stored


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    defaults = asdict(FinetuneSettings(model="", task="", data=""))
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", help="folder of a run, a nested encoder or a ModernBERT")
    parser.add_argument("--task", required=True, help="match_… or attributes_…, a folder of --data")
    parser.add_argument("--data", default="data/ecommerce", help="folder of the labelled sets")
    parser.add_argument("--output", type=Path, required=True, help="folder of the results")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--train-budgets", nargs="+", default=["all"], help="budgets to nest")
    parser.add_argument("--evaluate", nargs="+", default=["all"], help="budgets to measure")
    parser.add_argument("--budgets", nargs="+", default=[], help="budgets to export as slices")
    parser.add_argument("--sort-units", choices=SORTINGS, default="auto")
    for name in ("epochs", "lr", "kd_weight", "kd_temperature"):
        option = f"--{name.replace('_', '-')}"
        parser.add_argument(option, type=float, default=defaults[name])
    for name in ("max_steps", "batch_size", "max_length", "budgets_per_step"):
        option = f"--{name.replace('_', '-')}"
        parser.add_argument(option, type=int, default=defaults[name])
    return parser.parse_args(arguments)


def main() -> None:
    """Fine-tune from the command line."""
    given = vars(parse_arguments())
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    output, seeds, slices = given.pop("output"), given.pop("seeds"), given.pop("budgets")
    for name in ("train_budgets", "evaluate"):
        given[name] = tuple(given[name])
    finetune(FinetuneSettings(**given), seeds, output, slices)


if __name__ == "__main__":
    sys.exit(run_with_one_line(main))
