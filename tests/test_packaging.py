"""setup.cfg against the folders it names, and the few files the root may hold."""

import ast
import configparser
import re
from importlib.metadata import entry_points
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("configuration", "modeling", "trainers", "recipes", "hub_cards")


@pytest.fixture(scope="module")
def setup() -> configparser.ConfigParser:
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg", encoding="utf-8")
    return parser


def _lines(value: str) -> list[str]:
    return [line.strip() for line in value.splitlines() if line.strip() and line[:1] != "#"]


def _pairs(value: str) -> dict[str, str]:
    return {k.strip(): v.strip() for k, v in (line.split("=", 1) for line in _lines(value))}


def test_packages_are_the_folders_with_code(setup: configparser.ConfigParser) -> None:
    folders = {path.parent for room in ROOMS for path in (ROOT / room).rglob("*.py")} | {ROOT}
    found = {".".join(["nestling", *folder.relative_to(ROOT).parts]) for folder in folders}
    listed = _lines(setup["options"]["packages"])
    assert len(set(listed)) == len(listed)
    assert set(listed) == found


def test_every_package_has_an_init(setup: configparser.ConfigParser) -> None:
    missing = [
        name
        for name in _lines(setup["options"]["packages"])
        if not ROOT.joinpath(*name.split(".")[1:], "__init__.py").is_file()
    ]
    assert missing == []


def test_package_folders_are_mapped(setup: configparser.ConfigParser) -> None:
    mapping = _pairs(setup["options"]["package_dir"])
    assert mapping.pop("nestling") == "."
    assert mapping == {f"nestling.{room}": room for room in ROOMS}


def test_the_root_holds_no_other_module() -> None:
    """The root is the package, so a wheel would swallow any .py file beside its ``__init__``."""
    assert [path.name for path in ROOT.glob("*.py")] == ["__init__.py"]


def test_test_folders_are_no_packages() -> None:
    assert list((ROOT / "tests").rglob("__init__.py")) == []


def test_the_version_is_a_literal(setup: configparser.ConfigParser) -> None:
    """Setuptools reads it without importing anything only if it is one."""
    tree = ast.parse((ROOT / "__init__.py").read_text(encoding="utf-8"))
    docstring, assignment = tree.body
    assert isinstance(docstring, ast.Expr)
    assert isinstance(assignment, ast.Assign)
    assert ast.unparse(assignment.targets[0]) == "__version__"
    assert isinstance(assignment.value, ast.Constant)
    assert re.fullmatch(r"\d+\.\d+\.\d+", assignment.value.value)
    assert setup["metadata"]["version"] == "attr: nestling.__version__"


def test_the_command_exists(setup: configparser.ConfigParser) -> None:
    listed = _pairs(setup["options.entry_points"]["console_scripts"])
    assert listed == {"nestling": "nestling.recipes.cli:main"}
    tree = ast.parse((ROOT / "recipes" / "cli.py").read_text(encoding="utf-8"))
    assert "main" in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    (installed,) = entry_points(group="console_scripts", name="nestling")
    assert installed.value == "nestling.recipes.cli:main"


def test_package_data_is_there(setup: configparser.ConfigParser) -> None:
    for package, value in setup["options.package_data"].items():
        folder = ROOT.joinpath(*package.split(".")[1:])
        for pattern in _lines(value):
            assert list(folder.glob(pattern)), f"{package}: nothing matches {pattern}"


def test_data_files_of_the_package_are_shipped(setup: configparser.ConfigParser) -> None:
    shipped = {
        path
        for package, value in setup["options.package_data"].items()
        for pattern in _lines(value)
        for path in ROOT.joinpath(*package.split(".")[1:]).glob(pattern)
    }
    kinds = [(room, kind) for room in ROOMS for kind in ("*.yaml", "*.md")]
    used = {path for room, kind in kinds for path in (ROOT / room).rglob(kind)}
    assert {path for path in used if path.name != "README.md"} <= shipped


def test_floors_and_tested_versions_agree(setup: configparser.ConfigParser) -> None:
    text = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    pins = dict(line.split("==") for line in _lines(text) if "==" in line)
    pins = {name.lower().replace("_", "-"): version for name, version in pins.items()}
    assert pins["torch"] == "2.13.0"
    for requirement in _lines(setup["options"]["install_requires"]):
        name, floor = re.fullmatch(r"([\w.-]+)>=([\d.]+)(?:,.*)?", requirement).groups()
        pinned = pins[name.lower().replace("_", "-")]
        assert _numbers(pinned) >= _numbers(floor), requirement


def _numbers(version: str) -> list[int]:
    return [int(part) for part in re.findall(r"\d+", version.split("+")[0])]
