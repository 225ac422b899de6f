"""Writes what the finished cells of a study say: `study.json` and its plot."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..environment import environment_block
from ..evaluation.evaluation_summary import named_budgets
from ..evaluation_file import write_json
from .budget_plan import trained_budgets
from .model_config import scratch_config
from .study_ablations import ABLATION_CHANGES
from .study_cells import ABLATIONS, RATES, TOKENS, Cells, read_cells, reference_table
from .study_costs import TrainingCost, total_cost
from .study_deltas import DELTA_ABLATIONS, base_budget, size_of_delta, summarise_deltas
from .study_methods import NESTED, SEPARATE
from .study_plan import ALONE, Study
from .study_plot import plot_study
from .study_rates import summarise_rates
from .study_summary import SCHEMA_VERSION, summarise

SUMMARY_FILE = "study.json"


def write_summary(study: Study) -> Path:
    """Sum up the finished cells and draw the methods at equal tokens.

    Raises:
        DataError: if cells were measured in different ways.
    """
    cells = {
        table: {name: of_name for name, of_name in methods.items() if study.knows(table, name)}
        for table, methods in read_cells(study.folder).items()
    }
    named = named_budgets(study.config)
    costs: dict[str, dict[str, Any]] = {}
    trained: dict[str, list[str]] = {}
    for table, of_table in cells.items():
        for name in (NESTED, *(name for name in of_table if name != NESTED)):
            home = reference_table(table, study.lengths) if name == NESTED else table
            stages = study.stages(home, name, 0, study.steps(home, name))
            costs.setdefault(table, {})[name] = asdict(study.cost(stages))
            last = stages[-1]
            budgets = trained_budgets(last, scratch_config(last, study.tokenizer))
            trained[name] = [str(budget) for budget in budgets]
        alone = [TrainingCost(**costs[table][m]) for m in ALONE if m in costs[table]]
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
            "steps": study.lengths[TOKENS],
            "lr": section.lr,
        },
        "training_split": dict(study.counts),
        "changes": {name: list(changes) for name, changes in ABLATION_CHANGES.items()},
        "tables": summarise(cells, named, costs, trained, study.lengths),
        **_checks(study, cells, trained),
        "environment": environment_block(sorted(_seeds_of(cells.values()))),
    }
    file = study.folder / SUMMARY_FILE
    write_json(file, summary)
    plot_study(summary, file)
    return file


def _checks(study: Study, cells: Cells, trained: Mapping[str, list[str]]) -> dict[str, Any]:
    """Return what is in the summary only where its cells are."""
    checks: dict[str, Any] = {}
    if cells.get(RATES):
        rates = summarise_rates(cells[RATES], trained, study.lr)
        checks["rates"] = {"steps": study.lengths[RATES], **rates}
    deltas = _delta_gains(study, cells)
    if deltas is not None:
        checks["delta_gains"] = {"steps": study.lengths[ABLATIONS], **deltas}
    return checks


def _delta_gains(study: Study, cells: Cells) -> dict[str, Any] | None:
    """Return the gains of the ablated deltas; None without their cells or the base's budget."""
    ablations = cells.get(ABLATIONS, {})
    kinds = [kind for kind in DELTA_ABLATIONS if kind in ablations]
    configs = {kind: scratch_config(study.changed(kind), study.tokenizer) for kind in kinds}
    base = base_budget(configs[kinds[0]]) if kinds else None
    # A recipe whose own delta is not dense has nothing to compare with.
    if base is None or study.config.delta_kind != "dense":
        return None
    ours = cells.get(reference_table(ABLATIONS, study.lengths), {}).get(NESTED, {})
    sizes = {kind: size_of_delta(config) for kind, config in configs.items()}
    return summarise_deltas(ablations, ours, sizes, base, study.named()["largest"])


def _seeds_of(tables: Iterable[Mapping[str, Mapping[int, Any]]]) -> set[int]:
    return {seed for table in tables for of_method in table.values() for seed in of_method}
