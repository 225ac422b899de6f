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


def test_study_table_compares_the_methods() -> None:
    def measure(mean: float, low: float | None = None) -> dict[str, float | None]:
        return {"mean": mean, "low": low, "high": None if low is None else 2 * mean - low}

    budgets = {"0.5:2:2": {"flops": 1, "cross_entropy": measure(3.0)}}
    nested = {"budgets": budgets, "autc": measure(0.4), "raw_violations": [0, 2]}
    costs = {"nested": (1, 4e12), "post-hoc": (1, 2e12), "separate": (3, 5e12)}
    study = {
        "methods": {"nested": nested},
        "comparison": {
            "autc": {"nested": measure(0.4), "post-hoc": measure(0.2), "separate": measure(0.5)},
            "autc_ratio": {"post-hoc": measure(2.0, 1.5), "separate": None},
            "gap_percent": {"smallest": measure(0.5), "middle": measure(3.25, 3.0)},
        },
        "training": {
            "methods": {
                name: {"runs": runs, "tokens": 1000 * runs, "training_flops": flops}
                for name, (runs, flops) in costs.items()
            }
        },
    }
    table = study_table(study)
    assert "nested: raw violations 0, 2." in table
    assert "| AUTC | 0.400 (n = 1) | 0.200 (n = 1) | 0.500 (n = 1) |" in table
    assert "| AUTC, nested over this | - | 2.000 [1.500, 2.500] | - |" in table
    assert "| tokens seen | 1,000 | 1,000 | 3,000 |" in table
    assert "| training FLOPs, nested over this | - | 2.00 | 0.80 |" in table
    assert "| cross-entropy of nested above separate, % | smallest | middle |" in table
    assert "| mean | 0.50 (n = 1) | 3.25 [3.00, 3.50] |" in table


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
