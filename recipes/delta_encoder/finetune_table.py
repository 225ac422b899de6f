"""The result of `finetune_study` as Markdown."""

from collections.abc import Mapping
from typing import Any

from .study_tables import difference, markdown_rows, measure

STARTS = {
    "nested": "nested",
    "sorted": "largest alone, sorted, all budgets tuned",
    "post-hoc": "largest alone, tuned alone, sorted, sliced",
}


def finetune_table(study: Mapping[str, Any]) -> str:
    """Return F1 at the named budgets, by task and start, with the differences to nested."""
    named = study["named_budgets"]
    heads = [f"{name} {budget}" for name, budget in named.items()]
    rows = [["task", "start", *heads, *(f"{name} minus nested" for name in named)]]
    for task, found in study["tasks"].items():
        for start, entry in found["starts"].items():
            less = entry["minus_nested"] or {}
            rows.append(
                [
                    task,
                    STARTS[start],
                    *(measure(entry["f1"][name]) for name in named),
                    *(difference(less.get(name)) for name in named),
                ]
            )
    seeds = max(len(e["seeds"]) for t in study["tasks"].values() for e in t["starts"].values())
    note = (
        f"F1 on the test split after {study['max_steps']:,} steps of {study['batch_size']} rows, "
        f"mean and 95 % interval over {seeds} seeds, pre-trained model {study['pretrained']}. "
        "Differences by seed, bold where the interval excludes 0. Pairs of offers match above a "
        "threshold chosen on the validation split."
    )
    bars = [
        f"{task} without a look at the row: "
        + ", ".join(f"{name.replace('_', ' ')} {v['f1']:.3f}" for name, v in t["baselines"].items())
        + "."
        for task, t in study["tasks"].items()
    ]
    return "\n".join([*markdown_rows(rows), "", note, "", *bars]) + "\n"
