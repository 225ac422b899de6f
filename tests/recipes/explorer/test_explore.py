import asyncio
import html
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from nestling.recipes import cli
from nestling.recipes.cli_errors import UsageError
from nestling.recipes.explorer import explore as module
from nestling.recipes.explorer.app import SCREENS
from nestling.recipes.explorer.demo_data import RUNS, write_demo
from nestling.recipes.explorer.explore import explore
from nestling.recipes.explorer.session import Session

HEAVY = ("torch", "transformers", "datasets", "hydra", "matplotlib")
SNAPSHOT = """
import json, sys
from nestling.recipes.cli import _run
code = _run(["explore", "--snapshot", sys.argv[1]])
print(json.dumps([code, [name for name in {heavy!r} if name in sys.modules]]))
"""
Write = Callable[..., Path]


def words_of(svg: Path) -> str:
    return html.unescape(svg.read_text(encoding="utf-8")).replace("\N{NO-BREAK SPACE}", " ")


def test_no_torch_and_a_quick_start(tmp_path: Path) -> None:
    begin = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", SNAPSHOT.format(heavy=HEAVY), str(tmp_path / "out.svg")],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    seconds = time.perf_counter() - begin
    print(f"demo snapshot: {seconds:.2f} s")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == [0, []]
    assert (tmp_path / "out.svg").is_file()
    # Wide: machines differ, and other work may run beside the tests.
    assert seconds < 5


def test_help_imports_no_textual() -> None:
    code = (
        "import sys\nfrom nestling.recipes.cli import _run\n_run(['explore', '--help'])\n"
        "assert 'textual' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "--snapshot" in done.stdout


@pytest.mark.parametrize("screen", SCREENS)
def test_a_snapshot_is_the_same_twice(screen: str, tmp_path: Path) -> None:
    one, two = (explore([], tmp_path / f"{name}.svg", screen) for name in ("one", "two"))
    assert one is not None and two is not None
    assert one.read_bytes() == two.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one.svg", "two.svg"]
    assert "DEMO DATA" in words_of(one)


def test_a_snapshot_shows_the_runs(
    tmp_path: Path, start: Any, event: Callable[..., Any], write: Write
) -> None:
    for name in ("nested-0", "nested-1"):
        write(
            tmp_path / "tokens" / name / "events.jsonl", start, event("log", 5, step=10, loss=2.0)
        )
    output = explore([tmp_path], tmp_path / "pictures" / "out.svg")
    assert output is not None
    words = words_of(output)
    for text in ("tokens/nested-0", "tokens/nested-1", "10/100", "2.0000", "as of 2026-03-01"):
        assert text in words
    assert "DEMO" not in words


def test_snapshots_of_every_screen_of_the_demo(tmp_path: Path) -> None:
    expected = {
        "dashboard": [*(name for name, *_ in RUNS), "non-finite loss", "running", "finished"],
        "training": ["learning rate", "eval_loss", "causal_lm"],
        "spectral": ["near projection", "eigenvalue", "coherence", "3 mlp"],
        "benchmark": ["packed over padded", "predicted"],
    }
    for screen, texts in expected.items():
        output = explore([], tmp_path / f"{screen}.svg", screen)
        assert output is not None
        words = words_of(output)
        for text in texts:
            assert text in words, (screen, text)


def test_demo_data_is_seeded(tmp_path: Path) -> None:
    first, second = write_demo(tmp_path / "a"), write_demo(tmp_path / "b")
    for one, two in zip(first, second, strict=True):
        files = sorted(one.rglob("*")) if one.is_dir() else [one]
        for path in files:
            other = two / path.relative_to(one) if one.is_dir() else two
            assert path.read_bytes() == other.read_bytes()
    session = Session(first)
    states = [run.state for run in session.runs]
    assert [bool(state and state.spectral) for state in states] == [True, True, False, False, False]
    assert [bool(state and state.non_finite) for state in states] == [False] * 4 + [True]


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["nowhere"], 3, "nowhere does not exist"),
        (["budgets.json"], 3, "kind 'budgets', which is not shown; accepted: metrics.json"),
        (["broken.json"], 3, "is no JSON"),
        (["empty"], 3, "holds nothing that can be shown"),
        (["events.jsonl"], 3, "line 2 is no JSON"),
        (["later/events.jsonl", "--snapshot", "a.svg"], 3, "holds no events"),
        (["--snapshot", "a.png"], 2, "must end in .svg"),
        (["--screen", "wardrobe"], 2, "dashboard"),
        (["--colour"], 2, "--colour"),
        (["good.jsonl"], 2, "--snapshot out.svg"),
        ([], 2, "--snapshot out.svg"),
    ],
)
def test_errors_are_one_line(
    arguments: list[str],
    code: int,
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    start: Any,
    write: Write,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "budgets.json").write_text('{"kind": "budgets", "schema_version": 1}')
    (tmp_path / "broken.json").write_text("{")
    write(tmp_path / "good.jsonl", start)
    write(tmp_path / "events.jsonl", start).open("a").write("broken\n")
    assert cli._run(["explore", *arguments]) == code
    line = capsys.readouterr().err
    assert line.startswith("nestling: error: ") and line.count("\n") == 1
    assert words in line


def test_an_unknown_screen_is_named() -> None:
    with pytest.raises(UsageError, match="'wardrobe' does not exist; screens: dashboard, training"):
        explore([], None, "wardrobe")


@pytest.mark.parametrize("crashes", [False, True])
def test_the_terminal_opens(
    crashes: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, start: Any, write: Write
) -> None:
    path = write(tmp_path / "run" / "events.jsonl", start)
    terminal = SimpleNamespace(isatty=lambda: True)
    monkeypatch.setattr(module, "sys", SimpleNamespace(stdin=terminal, stdout=terminal))
    opened: list[str] = []

    def run(app: module.ExplorerApp) -> None:
        async def look() -> None:
            async with app.run_test() as pilot:
                await pilot.pause()
                opened.extend(run.name for run in app.session.runs)

        asyncio.run(look())
        app._return_code = int(crashes)

    monkeypatch.setattr(module.ExplorerApp, "run", run)
    if crashes:
        with pytest.raises(RuntimeError, match="the explorer stopped"):
            explore([path])
    else:
        assert explore([path]) is None
    assert opened == ["run"]


def test_the_verb_hands_over(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls: list[tuple[Any, ...]] = []

    def stand_in(paths: Any, snapshot: Path | None, screen: str) -> Path | None:
        calls.append((paths, snapshot, screen))
        return snapshot

    monkeypatch.setattr(module, "explore", stand_in)
    assert cli._run(["explore", "a", "b", "--snapshot", "out.svg", "--screen", "training"]) == 0
    assert calls == [([Path("a"), Path("b")], Path("out.svg"), "training")]
    assert "Written: out.svg" in capsys.readouterr().out
    assert cli._run(["explore"]) == 0
    assert calls[1] == ([], None, "dashboard")
