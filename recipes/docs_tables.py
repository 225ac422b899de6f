"""Write the measured tables and plots of docs/ from the JSON in docs/results/.

A page marks the place of a table by two comments, and everything between them is generated::

    <!-- table: ladder docs/results/delta_encoder_demo.json -->
    <!-- end -->

Run ``python -m nestling.recipes.docs_tables`` (or ``make docs``) in a checkout. With ``--check``
nothing is written and a page that is out of date is an error.
"""

import argparse
import json
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from .delta_encoder.evaluation_table import markdown_table
from .environment import PACKAGE_FOLDER
from .evaluation_file import describe_flops, read_evaluation
from .ladder_plot import plot_ladder
from .whole_file import write_whole_file

MARKED = re.compile(r"(<!-- table: (\w+) (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)


def ladder_table(evaluation: Mapping[str, Any]) -> str:
    """Return the ladder, and below it what its FLOPs count."""
    basis = f"FLOPs and times are those of one {describe_flops(evaluation)}."
    return f"{markdown_table(evaluation)}\n{basis}\n"


def study_table(study: Mapping[str, Any]) -> str:
    """Return one row per nested budget with 95 % intervals over seeds, and the comparison."""
    methods = study["methods"]
    rows = ["| budget | " + " | ".join(methods) + " |", "| --- |" + " ---: |" * len(methods)]
    nested = methods["nested"]["budgets"]
    for budget in sorted(nested, key=lambda name: nested[name]["flops"]):
        measures = [method["budgets"].get(budget, {}) for method in methods.values()]
        cells = [_interval(measure.get("cross_entropy")) for measure in measures]
        rows.append(f"| {budget} | " + " | ".join(cells) + " |")
    comparison = study.get("comparison")
    for name, method in methods.items():
        if "autc" in method:
            area = "" if comparison else f"AUTC {_interval(method['autc'])}; "
            violations = ", ".join(map(str, method["raw_violations"]))
            rows += ["", f"{name}: {area}raw violations {violations}."]
    if comparison:
        rows += ["", *_comparison_rows(comparison, study["training"])]
    return "\n".join(rows) + "\n"


def _comparison_rows(comparison: Mapping[str, Any], training: Mapping[str, Any]) -> list[str]:
    """Return what the nested run gains, loses and costs against each alternative."""
    columns = ("nested", "post-hoc", "separate")
    costs = {name: training["methods"][name] for name in columns}
    nested = costs["nested"]["training_flops"]
    ratios = {**comparison["autc_ratio"], "nested": None}
    table = {
        "AUTC": [_interval(comparison["autc"][name]) for name in columns],
        "AUTC, nested over this": [_interval(ratios[name]) for name in columns],
        "training runs": [str(costs[name]["runs"]) for name in columns],
        "tokens seen": [f"{costs[name]['tokens']:,}" for name in columns],
        "training FLOPs": [f"{costs[name]['training_flops']:.3g}" for name in columns],
        "training FLOPs, nested over this": [
            "-" if name == "nested" else f"{nested / costs[name]['training_flops']:.2f}"
            for name in columns
        ],
    }
    gaps = comparison["gap_percent"]
    return [
        "| | nested | post-hoc | separate, all three |",
        "| --- | ---: | ---: | ---: |",
        *(f"| {title} | " + " | ".join(cells) + " |" for title, cells in table.items()),
        "",
        "| cross-entropy of nested above separate, % | " + " | ".join(gaps) + " |",
        "| --- |" + " ---: |" * len(gaps),
        "| mean | " + " | ".join(_interval(gap, 2) for gap in gaps.values()) + " |",
    ]


def _interval(measure: Mapping[str, Any] | None, digits: int = 3) -> str:
    if measure is None:
        return "-"
    mean, low, high = (measure[key] for key in ("mean", "low", "high"))
    if low is None:
        return f"{mean:.{digits}f} (n = 1)"
    return f"{mean:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def bench_table(result: Mapping[str, Any]) -> str:
    """Return the ratios of a benchmark beside their prediction and target."""
    from .bench.bench_report import summary_rows

    rows = summary_rows(result)
    names = list(rows[0])
    lines = ["| " + " | ".join(names) + " |", "| --- |" + " ---: |" * (len(names) - 1)]
    for row in rows:
        lines.append("| " + " | ".join(_cell(row[name]) for name in names) + " |")
    return "\n".join(lines) + "\n"


def _cell(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


TABLES: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "ladder": ladder_table,
    "study": study_table,
    "bench": bench_table,
}


def render_page(text: str, root: Path) -> str:
    """Return a page with every marked table written anew."""

    def fill(match: re.Match[str]) -> str:
        head, kind, file, end = match.groups()
        content = json.loads((root / file).read_text(encoding="utf-8"))
        return f"{head}\n{TABLES[kind](content)}\n{end}"

    return MARKED.sub(fill, text)


def main() -> None:
    """Rewrite every page, or check that none would change."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing")
    check = parser.parse_args().check
    stale = []
    for page in sorted((PACKAGE_FOLDER / "docs").glob("*.md")):
        old = page.read_text(encoding="utf-8")
        new = render_page(old, PACKAGE_FOLDER)
        if new != old:
            stale.append(page.name)
            if not check:
                write_whole_file(page, new)
    if check and stale:
        sys.exit(f"out of date: {', '.join(stale)}; run make docs")
    if not check:
        for result in sorted((PACKAGE_FOLDER / "docs" / "results").glob("*_demo.json")):
            plot_ladder(read_evaluation(result), PACKAGE_FOLDER / "docs" / "images" / result.name)


if __name__ == "__main__":
    main()
