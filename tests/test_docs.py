"""Tables in docs/ are what the measured JSON says; recipes named there exist."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from nestling.recipes.docs_tables import render_page, study_table

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted((ROOT / "docs").glob("*.md"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_tables_are_generated(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert render_page(text, ROOT) == text, "run make docs"


def test_a_changed_number_is_noticed(tmp_path: Path) -> None:
    ratio = {"predicted": 2.5, "measured": 2.25, "target": 2.0, "met": True}
    (tmp_path / "r.json").write_text(json.dumps({"summary": {"packing": ratio}}))
    page = "<!-- table: bench r.json -->\n| old |\n<!-- end -->"
    assert "| packing | 2.5 | 2.25 | 2 | yes |" in render_page(page, tmp_path)


def test_study_table_shows_intervals_and_single_runs() -> None:
    measure = {"mean": 3.0, "low": 2.9, "high": 3.1}
    single = {"mean": 3.5, "low": None, "high": None}
    study = {
        "methods": {
            "nested": {"budgets": {"0.5:2:2": {"flops": 1, "cross_entropy": measure}}},
            "post-hoc": {"budgets": {"0.5:2:2": {"flops": 1, "cross_entropy": single}}},
            "separate-largest": {"budgets": {}},
        }
    }
    table = study_table(study)
    assert "| 0.5:2:2 | 3.000 [2.900, 3.100] | 3.500 (n = 1) | - |" in table


@pytest.mark.parametrize("page", [ROOT / "README.md", *PAGES], ids=lambda page: page.name)
def test_recipes_named_in_the_text_exist(page: Path) -> None:
    for name in re.findall(r"recipe=([\w/]+)", page.read_text(encoding="utf-8")):
        assert (ROOT / "recipes" / f"{name}.yaml").is_file(), name


def test_check_mode_agrees() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "nestling.recipes.docs_tables", "--check"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
