"""The standard-library corpus is deterministic, split by module, and needs no heavy import."""

import subprocess
import sys
from pathlib import Path

import pytest
from nestling.recipes.data.documents import DataError, scan_documents
from nestling.recipes.data.embedded_corpus import EmbeddedCorpus, module_documents

SOURCE = '''"""Module docstring."""

import os

VALUE = 1


def first(x):
    """Docstring of first."""
    return x


@decorated
class Second:
    """Docstring of Second."""

    def method(self):
        return 2


print(VALUE)
'''


def test_a_module_is_cut_at_definitions(tmp_path: Path) -> None:
    file = tmp_path / "module.py"
    file.write_text(SOURCE)
    documents = module_documents(file)
    assert documents[0] == "Module docstring."
    assert documents[1] == "import os\n\nVALUE = 1"
    assert documents[2].startswith("def first(x):")
    assert documents[3].startswith("@decorated\nclass Second:")
    assert documents[4] == "print(VALUE)"
    assert len(documents) == 5


def test_a_long_class_is_cut_into_methods(tmp_path: Path) -> None:
    methods = "\n".join(f"    def m{i}(self):\n        return {i}\n" for i in range(20))
    file = tmp_path / "module.py"
    file.write_text(f"class Long:\n    size = 1\n\n{methods}")
    documents = module_documents(file)
    assert documents[0] == "class Long:\n    size = 1"
    assert documents[1:] == [f"def m{i}(self):\n    return {i}" for i in range(20)]


def test_every_line_is_in_one_document(tmp_path: Path) -> None:
    file = tmp_path / "module.py"
    file.write_text(SOURCE)
    lines = [line.strip() for line in SOURCE.replace('"""Module docstring."""', "").splitlines()]
    found = [line.strip() for text in module_documents(file)[1:] for line in text.splitlines()]
    assert sorted(filter(None, found)) == sorted(filter(None, lines))


def test_a_broken_source_is_left_out(tmp_path: Path) -> None:
    file = tmp_path / "broken.py"
    file.write_text("def (:\n")
    assert module_documents(file) == []


def test_limited_corpus() -> None:
    corpus = EmbeddedCorpus(max_bytes=200_000)
    documents = list(corpus.documents())
    size = sum(len(document.text.encode()) for document in documents)
    assert 150_000 < size <= 200_000
    assert documents == list(EmbeddedCorpus(max_bytes=200_000).documents())
    assert list(corpus.documents(7)) == documents[7:]
    assert len({document.group for document in documents}) > 3
    lengths = [len(document.text) for document in documents]
    assert min(lengths) * 20 < max(lengths)
    assert corpus.describe()["python"].startswith(f"3.{sys.version_info.minor}.")
    rule = scan_documents(corpus, 0.2).rule
    assert {rule.split_of(document.group) for document in documents} == {"train", "validation"}


def test_bad_limit() -> None:
    with pytest.raises(DataError, match=r"max_bytes=0 must be at least 1"):
        EmbeddedCorpus(max_bytes=0)


def test_light_imports() -> None:
    code = (
        "import sys, nestling.recipes.data.document_sources, nestling.recipes.data.packing, "
        "nestling.recipes.data.embedded_corpus; "
        "print([m for m in ('torch', 'transformers', 'datasets', 'pandas') if m in sys.modules])"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout == "[]\n"
