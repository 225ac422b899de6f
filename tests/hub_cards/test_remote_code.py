"""The flat code of every family: complete, unchanged but for imports, named by its auto_map."""

import ast
import re
from pathlib import Path

import pytest
from nestling.hub_cards.remote_code import (
    FOOTER,
    SOURCE_ROOT,
    auto_map,
    family_roots,
    flatten,
    source_commit,
    write_remote_code,
)
from nestling.modeling.families import FAMILIES
from transformers.dynamic_module_utils import get_relative_imports

TYPES = list(FAMILIES)


@pytest.mark.parametrize("model_type", TYPES)
def test_every_auto_class_finds_its_class_in_the_folder(model_type: str, tmp_path: Path) -> None:
    family = FAMILIES[model_type]
    entries = write_remote_code(tmp_path, family)
    assert set(entries) == {"AutoConfig", *family.auto_classes}
    assert entries == auto_map(family)
    for entry in entries.values():
        module, name = entry.split(".")
        tree = ast.parse((tmp_path / f"{module}.py").read_text())
        assert name in {node.name for node in tree.body if isinstance(node, ast.ClassDef)}


@pytest.mark.parametrize("model_type", TYPES)
def test_code_is_the_source_but_for_import_lines(model_type: str) -> None:
    files = flatten(family_roots(FAMILIES[model_type]))
    for name, content in files.items():
        source = next(p for p in SOURCE_ROOT.glob(f"[cm]*/{name}")).read_bytes()
        shipped = content.split(b"\n", 1)[1].splitlines(keepends=True)
        changed = [
            (old, new)
            for old, new in zip(source.splitlines(keepends=True), shipped, strict=False)
            if old != new
        ]
        footer = b"".join(shipped[len(source.splitlines()) :])
        assert footer == b"" or footer.startswith(FOOTER.encode())
        for old, new in changed:
            assert re.match(rb"\s*from \.\.\w+\.\w+ import", old), old
            assert re.sub(rb"\.\.\w+\.", b".", old, count=1) == new


@pytest.mark.parametrize("model_type", TYPES)
def test_each_entry_names_every_file_itself(model_type: str, tmp_path: Path) -> None:
    """transformers 4.57 does not follow the imports of imports when it loads a local folder."""
    entries = write_remote_code(tmp_path, FAMILIES[model_type]).values()
    everything = {path.stem for path in tmp_path.glob("*.py")}
    for module in {entry.split(".")[0] for entry in entries}:
        seen = set(get_relative_imports(tmp_path / f"{module}.py"))
        assert seen == everything - {module}


def test_two_families_in_one_folder(tmp_path: Path) -> None:
    family = FAMILIES["delta_encoder"]
    assert write_remote_code(tmp_path, family, parts=[family]) == auto_map(family)


def test_commit_is_this_checkout_or_unknown(tmp_path: Path) -> None:
    assert re.fullmatch(r"[0-9a-f]{40}|unknown", source_commit())
    assert source_commit(tmp_path) == "unknown"
