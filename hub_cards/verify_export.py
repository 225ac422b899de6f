"""Proves exported folders: one clean process loads them all and compares outputs.

The process cannot import this package, has an empty code cache and no network. What it loads and
how it compares is in ``verify_worker.py``.
"""

import json
import logging
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from ..modeling.families import PACKAGE
from .complete_folder import LADDER, MARKER, ExportError, read_json, write_json

logger = logging.getLogger(__name__)

TOLERANCE = 1e-5
_WORKER = Path(__file__).with_name("verify_worker.py")
_OFFLINE = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "PYTHONDONTWRITEBYTECODE": "1",
}


class VerifyError(RuntimeError):
    """An exported folder does not load, or does not reproduce the model it was cut from."""


@dataclass(frozen=True)
class Check:
    """One check of one folder.

    Attributes:
        folder: name of the folder.
        check: ``weights``, an Auto class, ``card``, ``pipeline("fill-mask")``,
            ``SentenceTransformer`` or ``slice``.
        status: ``passed``, ``failed`` or ``skipped``.
        difference: largest absolute difference of outputs; None if nothing was compared.
        remark: what was found.
    """

    folder: str
    check: str
    status: str
    difference: float | None
    remark: str


@dataclass(frozen=True)
class VerifyReport:
    """The checks of all folders, and the versions that ran them."""

    checks: tuple[Check, ...]
    python: str
    torch: str
    transformers: str

    @property
    def largest_difference(self) -> float:
        """Return the largest difference over all checks."""
        return max((c.difference for c in self.checks if c.difference is not None), default=0.0)

    def of_status(self, status: str) -> list[Check]:
        """Return the checks that passed, failed or were skipped."""
        return [check for check in self.checks if check.status == status]

    def write(self, path: Path) -> None:
        """Write the report as JSON."""
        write_json(path, {"schema_version": 1, "kind": "verification", **asdict(self)})


def verify_folder(
    folder: str | Path, python: str | None = None, tolerance: float = TOLERANCE
) -> VerifyReport:
    """Load a slice, an elastic model or a folder of slices in one clean process.

    Args:
        folder: what `export` or `export_elastic` wrote.
        python: interpreter to use, for example one with another version of transformers.
        tolerance: largest allowed absolute difference of outputs.

    Raises:
        ExportError: if ``folder`` is not an export.
        VerifyError: naming folder, class and largest difference of the first failed check.
    """
    folders = exported_folders(Path(folder))
    report = run_worker(folders, python or sys.executable, tolerance)
    for check in report.of_status("skipped"):
        logger.warning("%s: %s was not checked (%s)", check.folder, check.check, check.remark)
    failed = report.of_status("failed")
    if failed:
        first = failed[0]
        found = (
            first.remark
            if first.difference is None
            else f"outputs differ by {first.difference:.2e}, allowed {tolerance:.0e}"
        )
        more = f" (and {len(failed) - 1} more checks failed)" if len(failed) > 1 else ""
        raise VerifyError(
            f"{first.folder} through {first.check} on transformers {report.transformers}: "
            f"{found}{more}"
        )
    logger.info(
        "%d folders verified on transformers %s, largest difference %.1e",
        len(folders),
        report.transformers,
        report.largest_difference,
    )
    return report


def exported_folders(folder: Path) -> list[Path]:
    """Return the model folders in ``folder``: itself, or those its ``budgets.json`` lists.

    Raises:
        ExportError: if there is none.
    """
    if (folder / MARKER).is_file():
        return [folder.resolve()]
    if not (folder / LADDER).is_file():
        raise ExportError(
            f"{folder} has neither {MARKER} nor {LADDER}; "
            "give a folder that `nestling export` wrote"
        )
    entries = read_json(folder / LADDER)["budgets"]
    folders = [folder.resolve() / e["folder"] for e in entries if e["format"] != "state-dict"]
    if not folders:
        raise ExportError(f"{folder} holds bare state dicts only; there is nothing to load")
    return folders


def run_worker(folders: Sequence[Path], python: str, tolerance: float) -> VerifyReport:
    """Run the worker once for all folders.

    Raises:
        VerifyError: if the process itself fails.
    """
    with tempfile.TemporaryDirectory(prefix="verify-") as scratch:
        request, result = Path(scratch, "request.json"), Path(scratch, "result.json")
        write_json(
            request,
            {
                "blocked": PACKAGE,
                "folders": [str(folder) for folder in folders],
                "tolerance": tolerance,
            },
        )
        done = subprocess.run(
            [python, "-P", str(_WORKER), str(request), str(result)],
            env=clean_environment(Path(scratch)),
            cwd=scratch,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode or not result.is_file():
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise VerifyError(f"the verifying process {python} failed: {last}")
        content = json.loads(result.read_text(encoding="utf-8"))
    return VerifyReport(
        checks=tuple(Check(**check) for check in content["results"]),
        python=content["python"],
        torch=content["torch"],
        transformers=content["transformers"],
    )


def clean_environment(scratch: Path) -> dict[str, str]:
    """Return an environment with no network, an empty code cache and no extra import paths."""
    kept = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    caches = {"HF_HOME": str(scratch / "home"), "HF_MODULES_CACHE": str(scratch / "modules")}
    return {**kept, **_OFFLINE, **caches}
