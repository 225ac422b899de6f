"""Tables in docs/ are what the measured JSON says; recipes named there exist."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from nestling.recipes.docs_tables import origin, render_page

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted((ROOT / "docs").glob("*.md"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_tables_are_generated(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert render_page(text, ROOT) == text, "run make docs"


def test_a_changed_number_is_noticed(tmp_path: Path) -> None:
    ratio = {"predicted": 2.5, "measured": 2.25, "target": 2.0, "met": True}
    environment = {
        "time": "2026-01-02T03:04:05+00:00", "commit": "0123456789",
        "machine": {"cpu": "Some CPU", "cpus": 2},
    }  # fmt: skip
    content = {"kind": "benchmark", "summary": {"packing": ratio}, "environment": environment}
    (tmp_path / "r.json").write_text(json.dumps(content))
    page = "<!-- table: bench r.json -->\n| old |\n<!-- end -->"
    found = render_page(page, tmp_path)
    assert "| packing | 2.5 | 2.25 | 2 | yes |" in found
    assert "Measured 2026-01-02, Some CPU, 2 processors, commit 0123456." in found


def test_a_summary_names_the_commits_of_its_runs_or_says_what_it_knows() -> None:
    machine = {"cpu": "Some CPU", "cpus": 1}
    environment = {"time": "2026-01-02T03:04:05+00:00", "commit": "cccccccccc", "machine": machine}
    study = {"kind": "study", "environment": environment}
    assert origin(study) == "Summed up 2026-01-02, Some CPU, 1 processor, commit ccccccc."
    runs = {**study, "commits": ["aaaaaaaaaa", "bbbbbbbbbb"]}
    assert origin(runs) == "Measured 2026-01-02, Some CPU, 1 processor, commits aaaaaaa, bbbbbbb."


def test_an_unknown_table_is_named(tmp_path: Path) -> None:
    (tmp_path / "r.json").write_text("{}")
    with pytest.raises(ValueError, match=r"no table kind 'ladders'.*ladder"):
        render_page("<!-- table: ladders r.json -->\n<!-- end -->", tmp_path)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_recipes_named_in_the_text_exist(page: Path) -> None:
    for name in re.findall(r"recipe=([\w/]+)", page.read_text(encoding="utf-8")):
        assert (ROOT / "recipes" / f"{name}.yaml").is_file(), name


def test_check_mode_agrees() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "nestling.recipes.docs_tables", "--check"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
