"""One process of a distributed run prepares; the others wait for what it writes.

The launchers (`accelerate launch`, `torchrun`) tell a process its rank through the environment, so
nothing has to be initialised before the data are there.
"""

import os
import time
from collections.abc import Callable
from pathlib import Path

from .cli_errors import UsageError
from .data.manifest import MANIFEST_FILE, Manifest

POLL_SECONDS = 0.5


def is_first_process() -> bool:
    """Whether this is rank 0, or the only process."""
    return int(os.environ.get("RANK", "0")) == 0


def require_one_process(command: str) -> None:
    """Refuse to run where a launcher has started several processes.

    Raises:
        UsageError: if there are several.
    """
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    if processes > 1:
        raise UsageError(
            f"{command} runs in one process, and WORLD_SIZE={processes} says that a launcher "
            "started several; start it without one"
        )


def wait_until_prepared(folder: Path) -> None:
    """Return when the manifest in ``folder`` says that the rows are complete."""
    path = folder / MANIFEST_FILE
    wait_until(lambda: path.is_file() and Manifest.load(folder).complete)


def wait_until(is_done: Callable[[], bool]) -> None:
    """Return when ``is_done`` says so.

    A launcher ends all processes when one fails, so there is no time limit here.
    """
    while not is_done():
        time.sleep(POLL_SECONDS)
