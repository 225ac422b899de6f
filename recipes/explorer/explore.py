"""Opens paths in the explorer, on the terminal or as a picture. The seam of `nestling explore`."""

import asyncio
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory

from ..cli_errors import UsageError
from ..whole_file import write_whole_file
from .app import SCREENS, ExplorerApp
from .demo_data import write_demo
from .session import Session

# Columns and lines of a picture.
SNAPSHOT_SIZE = (140, 40)
SETTLING_SECONDS = 0.01
TITLE = "Nestling explorer"
DEMO_TITLE = f"{TITLE}: DEMO DATA, made up, not measured"


def explore(
    paths: Sequence[Path] = (), snapshot: Path | None = None, screen: str = SCREENS[0]
) -> Path | None:
    """Show runs and results; without paths, demo data in a temporary folder.

    Args:
        paths: Run folders, folders of runs, events.jsonl, or JSON files of results.
        snapshot: SVG file to write in place of opening the terminal. Its content depends on the
            opened files only: the time is that of their newest event.
        screen: The first screen, one of `SCREENS`.

    Returns:
        The picture, if one was written.

    Raises:
        UsageError: For an unknown screen, another suffix than .svg, or no terminal.
        DataError: If a path is missing, damaged or nothing that can be shown.
    """
    if screen not in SCREENS:
        raise UsageError(f"screen {screen!r} does not exist; screens: {', '.join(SCREENS)}")
    if snapshot is not None and snapshot.suffix.lower() != ".svg":
        raise UsageError(f"--snapshot {snapshot} must end in .svg, the only format written")
    if paths:
        return _show(list(paths), TITLE, snapshot, screen, is_live=True)
    with TemporaryDirectory(prefix="nestling-demo-") as folder:
        return _show(write_demo(Path(folder)), DEMO_TITLE, snapshot, screen, is_live=False)


def _show(
    paths: Sequence[Path], title: str, snapshot: Path | None, screen: str, is_live: bool
) -> Path | None:
    # Demo runs end at a fixed time: by the clock of this machine they would have stopped.
    clock = time.time if is_live and snapshot is None else None

    def open_session() -> Session:
        return Session(paths, clock=clock, waits=snapshot is None)

    if snapshot is None:
        app = ExplorerApp(open_session, title, screen)
        if not (sys.stdin.isatty() and sys.stdout.isatty()):
            raise UsageError("no terminal to show runs on; write a picture: --snapshot out.svg")
        app.run()
        if app.return_code:
            raise RuntimeError("the explorer stopped; what happened stands above")
        return None
    session = open_session()
    when = datetime.fromtimestamp(session.now(), UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    shown = f"{title}   as of {when}" if session.now() else title
    app = ExplorerApp(lambda: session, shown, screen, follows=False)
    write_whole_file(snapshot, asyncio.run(_picture(app)))
    return snapshot


async def _picture(app: ExplorerApp) -> str:
    async with app.run_test(size=SNAPSHOT_SIZE) as pilot:
        # Widths and scrolling settle after the first layout.
        await pilot.pause()
        while not app.is_settled():
            await pilot.pause(SETTLING_SECONDS)
        await pilot.pause()
        return app.export_screenshot(title=TITLE)
