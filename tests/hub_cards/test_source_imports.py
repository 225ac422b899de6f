"""What the flattener refuses, each the trap of a loader that reads text, not Python."""

from pathlib import Path

import pytest
from nestling.hub_cards.remote_code import FOOTER, check_flat_folder, flatten
from nestling.hub_cards.source_imports import RemoteCodeError, relative_imports


def toy(root: Path, **modules: str) -> Path:
    """Write ``modeling__net="text"`` as ``modeling/net.py``."""
    for name, text in modules.items():
        path = root / (name.replace("__", "/") + ".py")
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    return root


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("from . import sibling", "not seen by the loader"),
        ("from .. import modeling", "not seen by the loader"),
        ("from .sibling import *", "star import"),
        ("from ..trainers.losses import x", "configuration and modeling only"),
        ("from ..recipes.cli import x", "configuration and modeling only"),
        ("from ..hub_cards.card import x", "configuration and modeling only"),
        ("from ...elsewhere import x", "above the package"),
        ("import peft", "imports peft"),
        ("def lazy():\n    import numpy.linalg", "imports numpy"),
        ("from einops import rearrange", "imports einops"),
        ("import nestling.modeling", "use a relative import"),
        ("from nestling.modeling.net import x", "use a relative import"),
        ("x = 1; from .sibling import y", "start the line"),
        ("from .sibling \\\n    import y", "start the line"),
        ("from .families import FAMILIES", "leaf module"),
        ("from .absent import y", "leaf module"),
        ("from ..configuration import Config", "leaf module"),
    ],
)
def test_forbidden_import_is_named(tmp_path: Path, line: str, message: str) -> None:
    root = toy(
        tmp_path,
        modeling__net=f'"""Net."""\n{line}\n',
        modeling__sibling="y = 1\n",
        modeling__families="FAMILIES = {}\n",
        configuration__shape="Shape = 1\n",
    )
    with pytest.raises(RemoteCodeError, match=message) as caught:
        flatten(["modeling.net"], root, "nestling")
    assert "modeling.net" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_only_import_lines_change(tmp_path: Path) -> None:
    text = (
        '"""Net: ünïcode before an import must not shift it."""\r\n'
        "from typing import TYPE_CHECKING  # ß\n"
        "from ..configuration.shape import (  # why\n    Shape,\n    Size as S,\n)\n"
        "from   .parts   import part\n"
        "if TYPE_CHECKING:\n    from .kinds import Kind\n"
        "\ndef lazy():\n\tfrom .late import thing\n\treturn   thing\n\n\n"
    )
    root = toy(
        tmp_path,
        modeling__net="",
        modeling__parts="part = 1\n",
        modeling__kinds="Kind = int\n",
        modeling__late="thing = 2\n",
        configuration__shape="Shape = Size = 3\n",
    )
    (root / "modeling/net.py").write_bytes(text.encode())
    files = flatten(["modeling.net"], root, "nestling")
    header, _, body = files["net.py"].partition(b"\n")
    expected = text.replace("from ..configuration.shape import", "from .shape import")
    expected = expected.replace("from   .parts   import", "from .parts import")
    body, footer = body.decode().split(FOOTER)
    assert body == expected
    assert footer.count("\n") == 4 and "    from .shape import __doc__\n" in footer
    assert header.startswith(b"# Generated from nestling 0") and b"modeling/net.py" in header
    assert set(files) == {"net.py", "shape.py", "parts.py", "kinds.py", "late.py"}
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    check_flat_folder(tmp_path, list(files))


def test_two_modules_of_one_name_are_refused(tmp_path: Path) -> None:
    root = toy(
        tmp_path,
        modeling__net="from ..configuration.shape import a\nfrom .shape import b\n",
        modeling__shape="b = 1\n",
        configuration__shape="a = 1\n",
    )
    with pytest.raises(RemoteCodeError, match=r"both be shape\.py"):
        flatten(["modeling.net"], root, "nestling")


def test_several_roots_are_shipped_together(tmp_path: Path) -> None:
    root = toy(tmp_path, modeling__outer="a = 1\n", modeling__inner="b = 1\n")
    assert set(flatten(["modeling.outer", "modeling.inner"], root, "nestling")) == {
        "outer.py",
        "inner.py",
    }


def test_docstring_line_that_looks_like_an_import_is_found(tmp_path: Path) -> None:
    """The loader would look for a file ``ghost.py`` and fail on every user's machine."""
    root = toy(tmp_path, modeling__net='"""Net.\n\nfrom .ghost import nothing\n"""\n')
    files = flatten(["modeling.net"], root, "nestling")
    (tmp_path / "net.py").write_bytes(files["net.py"])
    with pytest.raises(RemoteCodeError, match="ghost"):
        check_flat_folder(tmp_path, ["net.py"])


def test_missing_file_is_found(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text("from .gone import x\n")
    with pytest.raises(RemoteCodeError, match=r"net\.py needs gone\.py"):
        check_flat_folder(tmp_path, ["net.py"])


def test_optional_kernels_and_torch_are_allowed() -> None:
    source = (
        b"import math\nimport torch\nfrom torch.nn import attention\nfrom transformers import X\n"
        b"try:\n    import flash_attn\nexcept ImportError:\n    flash_attn = None\n"
    )
    assert relative_imports("modeling.net", source, "nestling") == []
