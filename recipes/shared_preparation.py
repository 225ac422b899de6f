"""One process of a distributed run prepares; the others wait for what it writes.

The launchers (`accelerate launch`, `torchrun`) tell a process its rank through the environment, so
nothing has to be initialised before the data are there.
"""

import os
import time
from pathlib import Path

from .data.manifest import MANIFEST_FILE, Manifest

POLL_SECONDS = 0.5


def is_first_process() -> bool:
    """Whether this is rank 0, or the only process."""
    return int(os.environ.get("RANK", "0")) == 0


def wait_until_prepared(folder: Path) -> None:
    """Return when the manifest in ``folder`` says that the rows are complete.

    A launcher ends all processes when one fails, so there is no time limit here.
    """
    path = folder / MANIFEST_FILE
    while not (path.is_file() and Manifest.load(folder).complete):
        time.sleep(POLL_SECONDS)
