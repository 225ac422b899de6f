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

from .ddl.study_plot import plot_study as plot_residuals
from .ddl.study_summary import KIND as RESIDUALS
from .ddl.study_tables import gates_table, study_table
from .delta_encoder.conversion_table import conversion_table
from .delta_encoder.finetune_table import finetune_table
from .delta_encoder.growth_table import growth_table
from .delta_encoder.routing_table import routing_table
from .delta_encoder.study_cells import COMPUTE
from .delta_encoder.study_plot import plot_study
from .delta_encoder.study_rivals import rivals_table
from .delta_encoder.study_tables import (
    ablation_table,
    compute_minus_table,
    compute_table,
    deltas_table,
    lattice_table,
    rates_table,
    tokens_minus_table,
    tokens_table,
)
from .environment import PACKAGE_FOLDER
from .evaluation.evaluation_table import markdown_table
from .evaluation_file import describe_flops, read_evaluation
from .ladder_plot import plot_ladder
from .whole_file import write_whole_file

MARKED = re.compile(r"(<!-- table: (\w+) (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)


# Kinds of results that one process measured.
OF_ONE_RUN = ("benchmark", "evaluation")


def ladder_table(evaluation: Mapping[str, Any]) -> str:
    """Return the ladder, and below it what its FLOPs count."""
    basis = f"FLOPs and times are those of one {describe_flops(evaluation)}."
    return f"{markdown_table(evaluation)}\n{basis}\n"


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
    "study_tokens": tokens_table,
    "study_tokens_minus": tokens_minus_table,
    "study_compute": compute_table,
    "study_compute_minus": compute_minus_table,
    "study_ablations": ablation_table,
    "study_lattice": lattice_table,
    "study_rivals": rivals_table,
    "study_rates": rates_table,
    "study_deltas": deltas_table,
    "finetune": finetune_table,
    "growth": growth_table,
    "conversion": conversion_table,
    "routing": routing_table,
    "residuals": study_table,
    "gates": gates_table,
    "bench": bench_table,
}


def origin(result: Mapping[str, Any]) -> str:
    """Return where and when the numbers of a table were measured."""
    block = result["environment"]
    machine = block["machine"]
    cores = "1 processor" if machine["cpus"] == 1 else f"{machine['cpus']} processors"
    own = [str(block["commit"] or "unknown")]
    # What was measured beside uncommitted changes says so.
    commits = [commit[:7] + commit[40:] for commit in result.get("commits", own)]
    # A summary without the commits of its runs knows only its own.
    verb = "Measured" if "commits" in result or result["kind"] in OF_ONE_RUN else "Summed up"
    noun = "commit" if len(commits) == 1 else "commits"
    return f"{verb} {block['time'][:10]}, {machine['cpu']}, {cores}, {noun} {', '.join(commits)}."


def render_page(text: str, root: Path) -> str:
    """Return a page with every marked table written anew.

    Raises:
        ValueError: for a kind of table that does not exist.
    """

    def fill(match: re.Match[str]) -> str:
        head, kind, file, end = match.groups()
        if kind not in TABLES:
            raise ValueError(f"no table kind {kind!r} ({file}); the kinds are {', '.join(TABLES)}")
        content = json.loads((root / file).read_text(encoding="utf-8"))
        return f"{head}\n{TABLES[kind](content)}\n{origin(content)}\n\n{end}"

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
        results, images = (PACKAGE_FOLDER / "docs" / name for name in ("results", "images"))
        for result in sorted(results.glob("*_demo.json")):
            plot_ladder(read_evaluation(result), images / result.name)
        for result in sorted(results.glob("*_study.json")):
            study = json.loads(result.read_text(encoding="utf-8"))
            plot = plot_residuals if study["kind"] == RESIDUALS else plot_study
            plot(study, images / result.name)
        for result in sorted(results.glob("*_compute.json")):
            study = json.loads(result.read_text(encoding="utf-8"))
            plot_study(study, images / result.name, COMPUTE)


if __name__ == "__main__":
    main()
