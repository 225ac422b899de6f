import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from nestling.recipes.explorer.app import SCREENS, ExplorerApp
from nestling.recipes.explorer.help_screen import HelpScreen
from nestling.recipes.explorer.line_chart_widget import LineChart
from nestling.recipes.explorer.run_rows import DASHBOARD_COLUMNS
from nestling.recipes.explorer.session import Session
from nestling.recipes.explorer.training_pane import SHOWN_LINES
from textual.pilot import Pilot
from textual.widgets import DataTable, Static, TabbedContent

Event = Callable[..., dict[str, Any]]
Write = Callable[..., Path]
Steps = Callable[[Pilot[None], ExplorerApp], Awaitable[None]]
NOW = 1772323220.0  # twenty seconds after the runs of these tests begin


def drive(paths: list[Path], steps: Steps, **options: Any) -> None:
    """Run the application without a terminal and do `steps` to it."""
    app = ExplorerApp(lambda: Session(paths, clock=lambda: NOW), "Explorer", **options)

    async def go() -> None:
        async with app.run_test(size=(140, 40)) as pilot:
            await pilot.pause()
            await steps(pilot, app)

    asyncio.run(go())


async def until(pilot: Pilot[None], holds: Callable[[], bool]) -> None:
    """Wait for what a timer or a layout brings; a slow machine may take its time."""
    for _ in range(100):
        await pilot.pause(0.05)
        if holds():
            return
    raise AssertionError("did not happen within five seconds")


def table_rows(app: ExplorerApp, name: str) -> list[list[str]]:
    table = app.query_one(name, DataTable)
    return [[cell.plain for cell in table.get_row_at(row)] for row in range(table.row_count)]


def active(app: ExplorerApp) -> str:
    return app.query_one(TabbedContent).active


def text_of(app: ExplorerApp, name: str) -> str:
    """The words that a part of the screen shows."""
    widget = app.query_one(name, Static)
    return "\n".join(
        "".join(segment.text for segment in strip) for strip in widget.render_lines(
            widget.size.region
        )
    )  # fmt: skip


@pytest.fixture
def runs(tmp_path: Path, start: Any, event: Event, write: Write) -> list[Path]:
    """Two runs with three log lines each."""
    return [
        write(
            tmp_path / name / "events.jsonl",
            start,
            *(
                event("log", step / 2, step=step, loss=loss, learning_rate=0.001)
                for step in (10, 20, 30)
            ),
        )
        for name, loss in (("first", 3.0), ("second", 2.5))
    ]


def test_keys_switch_screens(runs: list[Path]) -> None:
    async def steps(pilot: Pilot[None], app: ExplorerApp) -> None:
        for number, name in enumerate(SCREENS, 1):
            await pilot.press(str(number))
            assert active(app) == name
        for key, names in (("tab", SCREENS[:2]), ("shift+tab", (SCREENS[0], SCREENS[3]))):
            for name in names:
                await pilot.press(key)
                assert active(app) == name

    drive(runs, steps)


def test_keys_select_runs(runs: list[Path]) -> None:
    async def steps(pilot: Pilot[None], app: ExplorerApp) -> None:
        for key, selected in (("j", 1), ("j", 0), ("k", 1), ("up", 0), ("down", 1)):
            await pilot.press(key)
            assert app.selected == selected
            assert app.query_one("#runs", DataTable).cursor_row == selected
            assert f"run {selected + 1} of 2" in text_of(app, "#title")
        await pilot.press("2")
        losses = [row[1] for row in table_rows(app, "#log")]
        assert losses == ["2.5000"] * 3
        await pilot.press("k")
        assert [row[1] for row in table_rows(app, "#log")] == ["3.0000"] * 3

    drive(runs, steps)


def test_a_click_selects(runs: list[Path]) -> None:
    async def steps(pilot: Pilot[None], app: ExplorerApp) -> None:
        await pilot.click("#runs", offset=(3, 2))
        await pilot.pause()
        assert app.selected == 1

    drive(runs, steps)


def test_help_opens_and_closes(runs: list[Path]) -> None:
    async def steps(pilot: Pilot[None], app: ExplorerApp) -> None:
        for key in ("question_mark", "escape", "tab", "x"):
            await pilot.press("question_mark")
            assert isinstance(app.screen, HelpScreen)
            app.poll()
            await pilot.press(key)
            await pilot.pause()
            assert not isinstance(app.screen, HelpScreen)

    drive(runs, steps)


def test_q_quits(runs: list[Path]) -> None:
    async def steps(pilot: Pilot[None], app: ExplorerApp) -> None:
        await pilot.press("q")
        await pilot.pause()
        assert not app.is_running

    drive(runs, steps)


def test_the_dashboard_shows_runs(runs: list[Path]) -> None:
    async def steps(pilot: Pilot[None], app: ExplorerApp) -> None:
        first, second = (
            dict(zip(DASHBOARD_COLUMNS, row, strict=True)) for row in table_rows(app, "#runs")
        )
        assert (first["run"], first["step"], first["state"]) == ("first", "30/100", "running")
        assert (second["loss"], second["Δ first"]) == ("2.5000", "-0.5000")
        assert "masked_lm" in text_of(app, "#terms")
        assert "no recipe.yaml" in text_of(app, "#recipe")

    drive(runs, steps)


def test_appended_lines_appear(runs: list[Path], event: Event, write: Write) -> None:
    async def steps(pilot: Pilot[None], app: ExplorerApp) -> None:
        await pilot.press("2")
        log, table = app.query_one("#log", DataTable), app.query_one("#runs", DataTable)
        keys = list(log.rows), list(table.rows)
        write(runs[0], event("log", 20, step=40, loss=2.0, learning_rate=0.002))
        line = json.dumps(event("log", 25, step=50, loss=1.75)) + "\n"
        with runs[0].open("a") as file:
            file.write(line[:30])
        await until(pilot, lambda: table_rows(app, "#log")[-1][:2] == ["40", "2.0000"])
        with runs[0].open("a") as file:
            file.write(line[30:])
        await until(pilot, lambda: table_rows(app, "#log")[-1][:2] == ["50", "1.7500"])
        # Rows were appended and changed: the old ones are still the same rows.
        assert list(log.rows)[:3] == keys[0] and log.row_count == 5
        assert list(table.rows) == keys[1]
        row = dict(zip(DASHBOARD_COLUMNS, table_rows(app, "#runs")[0], strict=True))
        assert (row["step"], row["loss"]) == ("50/100", "1.7500")
        assert len(app.query_one("#losses", LineChart).curves[0].points) == 5

    drive(runs, steps)


def test_a_resume_replaces_rows(runs: list[Path], event: Event, write: Write) -> None:
    async def steps(pilot: Pilot[None], app: ExplorerApp) -> None:
        write(runs[0], event("resume", 60, step=10), event("log", 65, step=20, loss=1.0))
        app.poll()
        assert [row[:2] for row in table_rows(app, "#log")] == [["10", "3.0000"], ["20", "1.0000"]]
        app.poll()
        runs[0].write_text("")
        app.poll()
        assert table_rows(app, "#log") == []
        assert table_rows(app, "#runs")[0][3] == "waiting"

    drive(runs, steps, follows=False)


def test_a_run_that_begins_while_it_is_watched(
    tmp_path: Path, start: Any, event: Event, write: Write
) -> None:
    path = tmp_path / "later" / "events.jsonl"

    async def steps(pilot: Pilot[None], app: ExplorerApp) -> None:
        assert table_rows(app, "#runs")[0][3] == "waiting"
        write(path, start, event("log", 5, step=10, loss=2.0, **{"loss/masked_lm": 2.0}))
        app.poll()
        row = dict(zip(DASHBOARD_COLUMNS, table_rows(app, "#runs")[0], strict=True))
        assert (row["state"], row["step"]) == ("running", "10/100")
        assert table_rows(app, "#log")[0][:3] == ["10", "2.0000", "2.0000"]

    drive([path], steps, follows=False)


def test_the_log_table_is_bounded(tmp_path: Path, start: Any, event: Event, write: Write) -> None:
    lines = [event("log", step, step=step, loss=1.0) for step in range(1, SHOWN_LINES + 50)]
    path = write(tmp_path / "run" / "events.jsonl", start, *lines)

    async def steps(pilot: Pilot[None], app: ExplorerApp) -> None:
        write(path, event("log", 999, step=999, loss=1.0))
        app.poll()
        rows = table_rows(app, "#log")
        assert len(rows) == SHOWN_LINES and rows[-1][0] == "999"

    drive([path], steps, follows=False)


def test_the_newest_line_is_in_view_unless_the_user_reads_above(
    tmp_path: Path, start: Any, event: Event, write: Write
) -> None:
    lines = [event("log", step, step=step, loss=1.0) for step in range(1, 100)]
    path = write(tmp_path / "run" / "events.jsonl", start, *lines)

    async def steps(pilot: Pilot[None], app: ExplorerApp) -> None:
        table = app.query_one("#log", DataTable)
        await pilot.press("2")
        await until(pilot, lambda: table.scroll_y > 0 and table.is_vertical_scroll_end)
        for step in (100, 101, 102):  # faster than the layout
            write(path, event("log", step, step=step, loss=1.0))
            app.poll()
        await until(pilot, app.is_settled)
        assert table.is_vertical_scroll_end
        await pilot.press("pageup")
        await until(pilot, lambda: not table.is_vertical_scroll_end)
        place = table.scroll_y
        write(path, event("log", 110, step=110, loss=1.0))
        app.poll()
        await until(pilot, app.is_settled)
        assert table.scroll_y == place and not table.is_vertical_scroll_end

    drive([path], steps, follows=False)


def test_bars_follow_the_width_of_the_terminal(tmp_path: Path, evaluation: Any) -> None:
    path = tmp_path / "metrics.json"
    path.write_text(json.dumps(evaluation))

    async def steps(pilot: Pilot[None], app: ExplorerApp) -> None:
        await pilot.press("3")
        wide = text_of(app, "#spectrum").count("█")
        await pilot.resize_terminal(80, 24)
        await pilot.pause()
        assert text_of(app, "#spectrum").count("█") < wide

    drive([path], steps, follows=False)


def test_a_line_that_breaks_while_watching(runs: list[Path], event: Event, write: Write) -> None:
    async def steps(pilot: Pilot[None], app: ExplorerApp) -> None:
        with runs[1].open("a") as file:
            file.write("broken\n")
        write(runs[0], event("log", 20, step=40, loss=2.0))
        app.poll()
        await pilot.pause()
        rows = table_rows(app, "#runs")
        assert rows[1][3] == "unreadable" and rows[0][2] == "40/100"
        assert "line 5 is no JSON" in text_of(app, "#keys-line")
        await pilot.press("r")
        await pilot.pause()
        assert "line 5 is no JSON" in text_of(app, "#keys-line")

    drive(runs, steps, follows=False)


def test_reading_again_keeps_the_selection(tmp_path: Path, runs: list[Path], write: Write) -> None:
    async def steps(pilot: Pilot[None], app: ExplorerApp) -> None:
        await pilot.press("j")
        write(tmp_path / "a new one" / "events.jsonl", json.loads(runs[0].open().readline()))
        await pilot.press("r")
        assert [row[0] for row in table_rows(app, "#runs")] == ["a new one", "first", "second"]
        assert app.selected == 2 and app.query_one("#runs", DataTable).cursor_row == 2

    drive([tmp_path], steps, follows=False)


def test_spectral_ladder_or_one_line(
    tmp_path: Path,
    runs: list[Path],
    event: Event,
    write: Write,
    spectral_layer: Any,
    evaluation: Any,
) -> None:
    write(runs[0], event("spectral", 15, step=30, layers=[spectral_layer]))
    (runs[1].parent / "metrics.json").write_text(json.dumps(evaluation))
    third = write(tmp_path / "third" / "events.jsonl", event("train_start", total_steps=5))

    async def steps(pilot: Pilot[None], app: ExplorerApp) -> None:
        await pilot.press("3")
        assert "3 attention" in text_of(app, "#spectrum")
        await pilot.press("j")
        assert "ladder of budgets" in text_of(app, "#spectrum")
        await pilot.press("j")
        assert "Nothing measured here" in text_of(app, "#spectrum")
        assert text_of(app, "#spectrum").strip().count("\n") == 0

    drive([*runs, third], steps, follows=False)


def test_results_without_runs(tmp_path: Path, benchmark_file: Any, study: Any) -> None:
    paths = [tmp_path / "packing.json", tmp_path / "study.json"]
    for path, content in zip(paths, (benchmark_file, study), strict=True):
        path.write_text(json.dumps(content))

    async def steps(pilot: Pilot[None], app: ExplorerApp) -> None:
        assert "naive" in text_of(app, "#studies")
        await pilot.press("j", "pagedown", "2", "pagedown", "3", "4")
        assert "packed over padded" in text_of(app, "#ratios")
        changed = {**benchmark_file, "summary": {"new ratio": {"measured": 2.0, "target": 1.0}}}
        paths[0].write_text(json.dumps(changed))
        app.poll()
        await pilot.pause()
        assert "new ratio" in text_of(app, "#ratios")

    drive(paths, steps, follows=False)


def test_brackets_in_names_are_text(tmp_path: Path, start: Any, write: Write) -> None:
    path = write(tmp_path / "run[bold]x" / "events.jsonl", start)

    async def steps(pilot: Pilot[None], app: ExplorerApp) -> None:
        assert table_rows(app, "#runs")[0][0] == "run[bold]x"
        assert "run[bold]x" in text_of(app, "#title")

    drive([path], steps, follows=False)
