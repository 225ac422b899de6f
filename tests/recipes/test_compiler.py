"""Without a C++ compiler one line says so, and the eager path is taken."""

import logging

import pytest
from nestling.recipes import compiler


def test_a_missing_compiler_is_named_in_one_line(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert not compiler.has_cpp_compiler()
    with caplog.at_level(logging.WARNING):
        assert not compiler.compiles()
    (record,) = caplog.records
    assert "'no-such-compiler'" in record.message and "CXX" in record.message
    assert "\n" not in record.message
    assert compiler.why_eager("cuda") is None  # what a GPU runs is not built by it


def test_with_a_compiler_nothing_is_said(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(compiler, "has_cpp_compiler", lambda: True)
    with caplog.at_level(logging.WARNING):
        assert compiler.compiles() and not caplog.records
