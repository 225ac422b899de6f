"""Does nested pre-training help a nested model that is fine-tuned? F1 at three budgets, by seed.

    python -m nestling.recipes.delta_encoder.finetune_study --data data/ecommerce \
        --nested runs/study/tokens/nested-{seed} \
        --largest runs/study/tokens/separate-largest-{seed} \
        --tasks match_wdc_computers attributes_oa-mine --seeds 0 1 2 --output runs/finetune_study

``{seed}`` in a folder is the seed, so that each run starts from pre-training of its own and the
intervals cover both; a folder without it serves all seeds, and they cover fine-tuning alone.

Starts, each fine-tuned with the same rows, steps and learning rate:

* ``nested``: the nested model; all budgets are fine-tuned together.
* ``sorted``: the model whose largest budget was trained alone; its units are sorted by importance,
  then all budgets are fine-tuned together as above.
* ``post-hoc``: the same model; only the largest budget is fine-tuned, the units are sorted, and the
  slices are trained by nobody. A step costs less.

A finished run (TASK/START/seed-N) is not run again, so a study can be stopped and continued. With
the model of ``delta_encoder/ecommerce`` the defaults take about eight minutes a seed on one core.
"""

import argparse
import logging
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ...configuration.configuration_delta_encoder import DeltaEncoderConfig
from ..cli_errors import UsageError, run_with_one_line
from ..environment import environment_block
from ..evaluation.evaluation_summary import named_budgets
from ..evaluation_file import write_json
from ..saved_model import model_folder
from .finetune import finetune_seed
from .finetune_settings import FinetuneSettings, check_seeds
from .study_summary import interval

logger = logging.getLogger(__name__)

SCHEMA_VERSION = 1
KIND = "finetune_study"
SUMMARY_FILE = "finetune_study.json"
NESTED, SORTED, POST_HOC = "nested", "sorted", "post-hoc"
STARTS = (NESTED, SORTED, POST_HOC)
TASKS = ("match_wdc_computers", "attributes_oa-mine")
SEED = "{seed}"

# Task -> start -> what `finetune_seed` returned, one entry a seed.
Results = Mapping[str, Mapping[str, Sequence[Mapping[str, Any]]]]


@dataclass(frozen=True)
class FinetuneStudy:
    """What is run.

    Attributes:
        nested: Folder of the nested model or its run, with or without ``{seed}``.
        largest: Likewise, of the model whose largest budget was trained alone.
        data: Folder of the labelled sets.
        tasks: Sub-folders of it.
        starts: Names in `STARTS`.
        seeds: Seeds of the new classifier and the order of the rows.
        max_steps: Optimizer steps of each run.
        batch_size: Rows a step.
        lr: Peak learning rate.
        max_length: Tokens of a row at most.
    """

    nested: str
    largest: str
    data: str
    tasks: tuple[str, ...] = TASKS
    starts: tuple[str, ...] = STARTS
    seeds: tuple[int, ...] = (0, 1, 2)
    max_steps: int = 180
    batch_size: int = 32
    lr: float = 2e-3
    max_length: int = 96

    def lattice(self) -> tuple[dict[str, str], tuple[str, ...]]:
        """Return the budgets with a name, and all, of the nested model of the first seed."""
        folder = model_folder(Path(self.nested.replace(SEED, str(self.seeds[0]))))
        config = DeltaEncoderConfig.from_pretrained(folder)
        return named_budgets(config), tuple(str(budget) for budget in config.budget_list())

    def settings(
        self, task: str, start: str, seed: int, named: Mapping[str, str], budgets: tuple[str, ...]
    ) -> FinetuneSettings:
        """Return the settings of one run."""
        together = FinetuneSettings(
            model=(self.nested if start == NESTED else self.largest).replace(SEED, str(seed)),
            task=task,
            data=self.data,
            train_budgets=budgets,
            evaluate=tuple(dict.fromkeys(named.values())),
            max_steps=self.max_steps,
            batch_size=self.batch_size,
            lr=self.lr,
            max_length=self.max_length,
            sort_units="never" if start == NESTED else "before",
        )
        if start != POST_HOC:
            return together
        return replace(together, budgets_per_step=1, sort_units="after")


def run_finetune_study(study: FinetuneStudy, output: Path) -> Path:
    """Run what is not finished and write the summary.

    Returns:
        The summary file.

    Raises:
        UsageError: If ``output`` holds runs of other settings, or a start does not exist.
        DataError: If a task cannot be read.
        ModelFolderError: If a folder holds no model to start from.
    """
    unknown = sorted(set(study.starts) - set(STARTS))
    if unknown:
        raise UsageError(f"start {unknown[0]!r} must be {', '.join(STARTS)}")
    check_seeds(study.seeds)
    named, budgets = study.lattice()
    results: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for task in study.tasks:
        for start in study.starts:
            for seed in study.seeds:
                settings = study.settings(task, start, seed, named, budgets)
                result = finetune_seed(settings, seed, output / task / start / f"seed-{seed}")
                results.setdefault(task, {}).setdefault(start, []).append(result)
    summary = {
        "schema_version": SCHEMA_VERSION,
        "kind": KIND,
        "family": "delta_encoder",
        "named_budgets": named,
        "pretrained": "one per seed" if SEED in study.nested else "one for all seeds",
        **{key: asdict(study)[key] for key in ("max_steps", "batch_size", "lr", "max_length")},
        "tasks": summarise_tasks(results, named),
        "environment": environment_block(study.seeds),
    }
    write_json(output / SUMMARY_FILE, summary)
    return output / SUMMARY_FILE


def summarise_tasks(results: Results, named: Mapping[str, str]) -> dict[str, Any]:
    """Return F1 on the test split, by task, start and named budget.

    Args:
        results: what the runs measured.
        named: name -> budget.

    Returns:
        Task -> ``data``, ``baselines`` and ``starts``: per start its ``seeds``; ``f1`` of each
        named budget with 95 % t-interval; and ``minus_nested``, its differences to the nested
        start, seed by seed; None for that start itself and without it.
    """
    tasks: dict[str, Any] = {}
    for task, starts in results.items():
        f1 = {
            start: {name: _f1_of(runs, budget) for name, budget in named.items()}
            for start, runs in starts.items()
        }
        first = next(iter(starts.values()))[0]
        tasks[task] = {
            "data": first["data"],
            "baselines": first["baselines"],
            "starts": {
                start: {
                    "seeds": [run["seed"] for run in starts[start]],
                    "f1": {name: interval(values) for name, values in f1[start].items()},
                    "minus_nested": None
                    if start == NESTED or NESTED not in f1
                    else {
                        name: interval([f - g for f, g in zip(f1[start][name], ours, strict=True)])
                        for name, ours in f1[NESTED].items()
                    },
                }
                for start in starts
            },
        }
    return tasks


def _f1_of(runs: Sequence[Mapping[str, Any]], budget: str) -> list[float]:
    """Return F1 on the test split of every seed, of pairs at the threshold of validation."""
    found = [e["test"] for run in runs for e in run["budgets"] if e["budget"] == budget]
    return [measures.get("f1_at_threshold", measures["f1"]) for measures in found]


def main() -> None:
    """Run from the command line."""
    defaults = asdict(FinetuneStudy("", "", "data/ecommerce"))
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--nested", required=True, help="folder of the nested model or its run")
    parser.add_argument("--largest", required=True, help="likewise, largest budget trained alone")
    parser.add_argument("--data", default=defaults["data"], help="folder of the labelled sets")
    parser.add_argument("--tasks", nargs="+", default=defaults["tasks"], help="folders of --data")
    parser.add_argument("--starts", nargs="+", choices=STARTS, default=defaults["starts"])
    parser.add_argument("--seeds", type=int, nargs="+", default=defaults["seeds"])
    parser.add_argument("--lr", type=float, default=defaults["lr"])
    for name in ("max_steps", "batch_size", "max_length"):
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=defaults[name])
    parser.add_argument("--output", type=Path, required=True, help="folder of the runs")
    given: dict[str, Any] = vars(parser.parse_args())
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    output = given.pop("output")
    for name in ("tasks", "starts", "seeds"):
        given[name] = tuple(given[name])
    run_finetune_study(FinetuneStudy(**given), output)


if __name__ == "__main__":
    sys.exit(run_with_one_line(main))
