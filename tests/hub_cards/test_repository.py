"""An export as a Hub repository, resolved through a cache built by hand; no network."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from nestling.hub_cards.export_slices import export_elastic
from nestling.hub_cards.verify_export import clean_environment

MAIN, OLDER = "a" * 40, "b" * 40
STRANGER = Path(__file__).with_name("stranger.py")


def fake_hub(home: Path, folder: Path) -> None:
    """Lay a folder out as the Hub client would after a download, at two revisions."""
    repo = home / "hub" / "models--acme--toy"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text(MAIN)
    for commit in (MAIN, OLDER):
        shutil.copytree(folder, repo / "snapshots" / commit)


@pytest.fixture(scope="module")
def facts(elastic_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a stranger sees of ``acme/toy``."""
    scratch = tmp_path_factory.mktemp("hub")
    fake_hub(scratch / "home", elastic_folder)
    found = scratch / "facts.json"
    python = os.environ.get("NESTLING_OTHER_PYTHON", sys.executable)
    done = subprocess.run(
        [python, "-P", str(STRANGER), "acme/toy", OLDER, str(scratch / "saved"), str(found)],
        env=clean_environment(scratch),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(found.read_text())


def test_loads_by_repository_and_by_revision(facts: dict[str, Any]) -> None:
    assert facts["revision"] == 0.0 and facts["budgets"] == 27
    assert facts["config_is_one_class"], "from the Hub the configuration is imported once"
    assert facts["refused_without_trust"]
    assert facts["override_layers"] == 2


def test_saved_again_it_still_loads(facts: dict[str, Any]) -> None:
    """The code travels with a re-saved model, whatever class it was loaded through."""
    assert facts["resaved_head"] == facts["resaved_trunk"] == facts["resaved_slice"] == 0.0
    assert "AutoConfig" in facts["head_map"] and "AutoModelForMaskedLM" in facts["head_map"]


@pytest.mark.parametrize("name", ["head", "trunk", "cut"])
def test_saved_again_it_names_no_code_that_is_absent(facts: dict[str, Any], name: str) -> None:
    assert facts[f"{name}_dangling"] == []


def test_package_saves_no_map(
    elastic_folder: Path, lively_encoder: Any, tmp_path: Path
) -> None:
    """A model loaded from an export and saved inside the package must not keep its auto_map."""
    model = type(lively_encoder).from_pretrained(elastic_folder)
    model.save_pretrained(tmp_path)
    assert "auto_map" not in json.loads((tmp_path / "config.json").read_text())
    assert not list(tmp_path.glob("*.py"))


def test_export_of_an_export_has_its_code(
    elastic_folder: Path, lively_encoder: Any, tmp_path: Path
) -> None:
    model = type(lively_encoder).from_pretrained(elastic_folder)
    folder = export_elastic(model, None, tmp_path / "again")
    mapped = json.loads((folder / "config.json").read_text())["auto_map"].values()
    assert all((folder / f"{entry.split('.')[0]}.py").is_file() for entry in mapped)
