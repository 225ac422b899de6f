"""Who may import whom, read from the syntax trees, and what the package never does."""

import ast
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("configuration", "modeling", "trainers", "recipes", "hub_cards")
MAY_IMPORT = {
    "configuration": set(),
    "modeling": {"configuration"},
    "trainers": {"configuration", "modeling"},
    "hub_cards": {"configuration", "modeling"},
    "recipes": {"configuration", "modeling", "trainers", "hub_cards"},
}
FILES = sorted(path for room in ROOMS for path in (ROOT / room).rglob("*.py"))
EXPORTED = [
    path
    for path in FILES
    if path.parts[len(ROOT.parts)] in ("configuration", "modeling")
    and path.name not in ("__init__.py", "families.py")
]
LIGHT = (
    "configuration/budget.py",
    "configuration/delta_budget.py",
    "configuration/delta_lattice.py",
    "modeling/families.py",
    "trainers/budget_sampling.py",
    "trainers/event_log.py",
    "recipes/recipe_schema.py",
    "recipes/explorer/explore.py",
)
# Runs the snippet of a model card in a process of its own, to prove that it works.
RUNS_CODE = {"hub_cards/verify_worker.py"}
HEAVY = {"torch", "transformers", "datasets", "peft", "accelerate", "sentence_transformers"}


def _label(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


by_file = pytest.mark.parametrize("path", FILES, ids=_label)


@cache
def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def _imports(tree: ast.Module, package: list[str]) -> Iterator[str]:
    """Absolute dotted names of everything a module imports, at any depth of nesting."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = [*base, *(node.module.split(".") if node.module else [])]
            yield ".".join(module)
            yield from (".".join([*module, alias.name]) for alias in node.names)


def _imported_modules(path: Path) -> Iterator[str]:
    return _imports(_tree(path), ["nestling", *path.relative_to(ROOT).parts[:-1]])


def _calls(path: Path) -> Iterator[ast.Call]:
    return (node for node in ast.walk(_tree(path)) if isinstance(node, ast.Call))


def test_the_reader_sees_relative_and_nested_imports() -> None:
    """The other tests are only as good as this reader."""
    code = (
        "from ..modeling import a\ndef f():\n    from .b import c\nimport os.path\nfrom .. import d"
    )
    found = set(_imports(ast.parse(code), ["nestling", "trainers", "losses"]))
    assert {"nestling.trainers.modeling.a", "nestling.trainers.losses.b.c", "os.path"} <= found
    assert "nestling.trainers.d" in found


@by_file
def test_rooms_import_only_what_is_below_them(path: Path) -> None:
    room = path.relative_to(ROOT).parts[0]
    used = {
        name.split(".")[1]
        for name in _imported_modules(path)
        if name.startswith("nestling.") and name.split(".")[1] in ROOMS
    }
    assert used <= MAY_IMPORT[room] | {room}


@by_file
def test_imports_inside_the_package_are_relative(path: Path) -> None:
    for node in ast.walk(_tree(path)):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names = [node.module or ""]
        assert "nestling" not in {name.split(".")[0] for name in names}, f"line {node.lineno}"


@pytest.mark.parametrize("path", EXPORTED, ids=_label)
def test_exported_modules_need_only_torch_and_transformers(path: Path) -> None:
    allowed = {"torch", "transformers", "nestling", *sys.stdlib_module_names}
    # What stands in a `try` may be absent; the remote-code loader does not ask for it either.
    optional = {
        alias.name.split(".")[0]
        for node in ast.walk(_tree(path))
        if isinstance(node, ast.Try)
        and any(ast.unparse(handler).startswith("except ImportError") for handler in node.handlers)
        for inner in node.body
        if isinstance(inner, ast.Import)
        for alias in inner.names
    }
    assert optional <= {"triton"}
    found = {name.split(".")[0] for name in _imported_modules(path)}
    assert found <= allowed | optional


@pytest.mark.parametrize("path", EXPORTED, ids=_label)
def test_exported_modules_import_names_from_modules(path: Path) -> None:
    """``from . import x`` and ``import a.b`` of our own are dropped by the remote-code loader."""
    for node in ast.walk(_tree(path)):
        if isinstance(node, ast.ImportFrom) and node.level:
            assert node.module, f"line {node.lineno}: name the module, not the package"
            assert "families" not in node.module, "the table is never exported"


def test_file_names_are_unique_where_folders_are_flattened() -> None:
    names = Counter(path.name for path in EXPORTED)
    assert [name for name, count in names.items() if count > 1] == []
    assert len(EXPORTED) >= 10


def test_no_file_is_called_after_nothing() -> None:
    vague = {"utils.py", "common.py", "helpers.py", "misc.py", "core.py", "base.py"}
    assert [_label(path) for path in FILES if path.name in vague] == []


@by_file
def test_no_pickle_and_no_evaluation_of_text(path: Path) -> None:
    modules = {name.split(".")[0] for name in _imported_modules(path)}
    assert modules.isdisjoint({"pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"})
    for call in _calls(path):
        if isinstance(call.func, ast.Name):
            forbidden = {"eval"} if _label(path) in RUNS_CODE else {"eval", "exec", "compile"}
            assert call.func.id not in forbidden, f"line {call.lineno}"
        if isinstance(call.func, ast.Attribute) and ast.unparse(call.func) == "torch.load":
            safe = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
            assert safe.get("weights_only") == "True", f"line {call.lineno}: torch.load unpickles"


@by_file
def test_only_the_command_line_prints(path: Path) -> None:
    if _label(path).startswith("recipes/cli"):
        return
    called = [call.func for call in _calls(path)]
    assert [f.lineno for f in called if isinstance(f, ast.Name) and f.id == "print"] == []


@by_file
def test_no_probing_for_attributes(path: Path) -> None:
    """``getattr`` with a fixed name hopes for an attribute; only ``__name__`` and such may lack."""
    for call in _calls(path):
        name = call.func.id if isinstance(call.func, ast.Name) else ""
        assert name != "hasattr", f"line {call.lineno}"
        if name == "getattr" and isinstance(call.args[1], ast.Constant):
            assert str(call.args[1].value).startswith("__"), f"line {call.lineno}"


@pytest.mark.parametrize("module", LIGHT)
def test_light_modules_stay_light(module: str, tmp_path: Path) -> None:
    """Read by the command line before anything heavy; checked in a process of its own."""
    dotted = "nestling." + module.removesuffix(".py").replace("/", ".")
    code = f"import sys, {dotted}; heavy = {HEAVY!r} & set(sys.modules); assert not heavy, heavy"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert done.returncode == 0, done.stderr
