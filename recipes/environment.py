"""What a result was measured with: the environment block of every JSON file we write.

Versions come from package metadata, so nothing heavy is imported for them.
"""

import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGE_FOLDER = Path(__file__).resolve().parent.parent
RECORDED_PACKAGES = (
    "nestling",
    "torch",
    "transformers",
    "tokenizers",
    "datasets",
    "accelerate",
    "peft",
    "sentence-transformers",
    "huggingface_hub",
    "safetensors",
    "numpy",
)
# The instruction sets that decide how fast small models run.
RECORDED_CPU_FLAGS = (
    "avx2",
    "avx512f",
    "avx512_vnni",
    "avx512_bf16",
    "amx_bf16",
    "amx_int8",
    "asimd",
    "bf16",
    "i8mm",
)


def environment_block(seeds: Sequence[int] = ()) -> dict[str, Any]:
    """Return versions, commit, machine, threads, load and seeds as plain JSON values.

    Args:
        seeds: the seeds the result was made with.
    """
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "versions": {name: package_version(name) for name in RECORDED_PACKAGES},
        "commit": commit_of(PACKAGE_FOLDER),
        "machine": {
            "system": platform.system(),
            "architecture": platform.machine(),
            "cpu": cpu_model(),
            "cpu_flags": cpu_flags(),
            "cpus": usable_cpus(),
            "memory_bytes": total_memory(),
        },
        "threads": thread_settings(),
        "load_average": load_average(),
        "seeds": list(seeds),
    }


def package_version(name: str) -> str | None:
    """Return the installed version of a package, or None."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def commit_of(folder: Path) -> str | None:
    """Return the git commit of a checkout, with ``-dirty`` for uncommitted changes, or None.

    A folder that is not the root of a checkout has none, so that an installed package never
    reports the commit of a project it happens to lie in.
    """
    if not (folder / ".git").exists():
        return None
    try:
        commit = _git(folder, "rev-parse", "HEAD")
        changes = _git(folder, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.SubprocessError):
        return None
    return f"{commit}-dirty" if changes else commit


def _git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(folder), *arguments],
        capture_output=True,
        text=True,
        timeout=10,
        check=True,
    )
    return done.stdout.strip()


def cpu_model() -> str:
    """Return the name of the processor."""
    return _cpu_fields().get("model name") or platform.processor() or platform.machine()


def cpu_flags() -> list[str]:
    """Return those of `RECORDED_CPU_FLAGS` that the processor has; empty where it is unknown."""
    fields = _cpu_fields()
    present = set((fields.get("flags") or fields.get("Features") or "").split())
    return [flag for flag in RECORDED_CPU_FLAGS if flag in present]


def _cpu_fields() -> dict[str, str]:
    # Only Linux has this file; elsewhere the flags stay unknown.
    path = Path("/proc/cpuinfo")
    if not path.is_file():
        return {}
    first_processor = path.read_text(encoding="utf-8", errors="replace").split("\n\n")[0]
    pairs = (line.partition(":") for line in first_processor.splitlines())
    return {name.strip(): value.strip() for name, _, value in pairs}


def cpu_has_bf16() -> bool:
    """Whether the processor multiplies bfloat16 natively; emulated bf16 is slower than fp32."""
    return bool({"avx512_bf16", "amx_bf16", "bf16"} & set(cpu_flags()))


def usable_cpus() -> int:
    """Return the number of CPUs this process may run on."""
    if sys.platform == "linux":
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def thread_settings() -> dict[str, Any]:
    """Return the thread variables, and the threads of torch where it is already imported."""
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "TOKENIZERS_PARALLELISM")
    torch = sys.modules.get("torch")
    return {
        **{name: os.environ.get(name) for name in names},
        "torch": None if torch is None else torch.get_num_threads(),
    }


def load_average() -> list[float] | None:
    """Return the load of the last 1, 5 and 15 minutes; None where the system has none."""
    if sys.platform == "win32":
        return None
    return [round(load, 2) for load in os.getloadavg()]


def total_memory() -> int | None:
    """Return the physical memory in bytes; None where the system does not tell."""
    if sys.platform == "win32":
        return None
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def available_memory() -> int | None:
    """Return the memory that can still be used, in bytes; None outside Linux."""
    path = Path("/proc/meminfo")
    if not path.is_file():
        return None
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return None
