"""``nestling doctor``: what this machine has, and what a missing thing would limit."""

import importlib
import os
import shutil
import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import Literal, NamedTuple

from .environment import (
    available_memory,
    cpu_flags,
    cpu_has_bf16,
    cpu_model,
    package_version,
    total_memory,
    usable_cpus,
)

GIGABYTE = 1024**3
LEAST_DISK, LEAST_MEMORY = 2 * GIGABYTE, 4 * GIGABYTE
REQUIRED_PACKAGES = (
    "torch",
    "transformers",
    "datasets",
    "accelerate",
    "peft",
    "evaluate",
    "huggingface_hub",
    "sentence-transformers",
    "hydra-core",
)


class Check(NamedTuple):
    """One line of the report.

    Attributes:
        status: ok, limited (something optional is missing) or missing (work will fail).
        limits: what does not work, and what to do; empty when ok.
    """

    name: str
    status: Literal["ok", "limited", "missing"]
    found: str
    limits: str = ""


def examine(folder: Path = Path()) -> list[Check]:
    """Return all checks.

    Args:
        folder: where runs would be written; its free space is reported.
    """
    checks = [_package(name) for name in ("nestling", *REQUIRED_PACKAGES)]
    on_torch: tuple[Callable[[], Check], ...] = (_threads, _accelerator)
    single: tuple[Callable[[], Check], ...] = (_bf16, _compiler, _memory, _hub_cache, _neuron)
    if package_version("torch") is not None:
        single = on_torch + single
    return [*checks, *(check() for check in single), _disk(folder)]


def _package(name: str) -> Check:
    found = package_version(name)
    if found is None:
        return Check(name, "missing", "not installed", "nothing runs; pip install nestling")
    return Check(name, "ok", found)


def _threads() -> Check:
    torch = importlib.import_module("torch")
    threads, cpus = torch.get_num_threads(), usable_cpus()
    found = f"{threads} torch threads on {cpus} CPUs ({cpu_model()})"
    if threads > cpus:
        return Check(
            "threads",
            "limited",
            found,
            f"threads wait for each other; export OMP_NUM_THREADS={cpus}",
        )
    if threads < cpus:
        return Check(
            "threads", "limited", found, "training uses part of the CPU; unset OMP_NUM_THREADS"
        )
    return Check("threads", "ok", found)


def _accelerator() -> Check:
    torch = importlib.import_module("torch")
    if torch.cuda.is_available():
        return Check("accelerator", "ok", torch.cuda.get_device_name(0))
    if torch.backends.mps.is_available():
        return Check("accelerator", "ok", "Apple GPU (mps)")
    return Check("accelerator", "limited", "none", "training runs on the CPU")


def _bf16() -> Check:
    found = " ".join(cpu_flags()) or "unknown"
    if cpu_has_bf16():
        return Check("CPU bf16", "ok", found)
    return Check("CPU bf16", "limited", found, "training on this CPU runs in fp32")


def _compiler() -> Check:
    compiler = next(
        (c for c in (os.environ.get("CXX"), "g++", "clang++") if c and shutil.which(c)), ""
    )
    header = Path(sysconfig.get_paths()["include"]) / "Python.h"
    if not compiler:
        return Check(
            "C++ compiler", "limited", "none", "training.torch_compile=true fails; install g++"
        )
    if not header.is_file():
        return Check(
            "C++ compiler",
            "limited",
            f"{compiler}, no Python.h",
            "training.torch_compile=true may fail; install the Python headers (python3-dev)",
        )
    return Check("C++ compiler", "ok", str(shutil.which(compiler)))


def _memory() -> Check:
    total, available = total_memory(), available_memory()
    if total is None or available is None:
        return Check("memory", "limited", "unknown", "the free memory cannot be read here")
    found = f"{available / GIGABYTE:.1f} GB free of {total / GIGABYTE:.1f} GB"
    if available < LEAST_MEMORY:
        return Check("memory", "limited", found, "lower training.batch_size if a run is killed")
    return Check("memory", "ok", found)


def _disk(folder: Path) -> Check:
    free = shutil.disk_usage(folder).free
    found = f"{free / GIGABYTE:.1f} GB free in {folder.resolve()}"
    if free < LEAST_DISK:
        return Check(
            "disk", "limited", found, "checkpoints may not fit; set output_dir= to another disk"
        )
    return Check("disk", "ok", found)


def _hub_cache() -> Check:
    default = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")) / "huggingface"
    cache = Path(os.environ.get("HF_HOME", default)).expanduser()
    # The folder may not exist yet; then its nearest existing parent decides.
    existing = next(place for place in (cache, *cache.absolute().parents) if place.exists())
    if not os.access(existing, os.W_OK):
        return Check(
            "Hub cache", "limited", f"{cache} is read-only", "downloads fail; set HF_HOME elsewhere"
        )
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "TRUE", "YES", "ON"):
        return Check(
            "Hub cache", "limited", f"{cache}, offline", "only cached models and data load"
        )
    return Check("Hub cache", "ok", str(cache))


def _neuron() -> Check:
    found = package_version("optimum-neuron")
    if found is None:
        return Check(
            "optimum-neuron",
            "limited",
            "not installed",
            "nestling compile builds no Trainium graphs (compile --check works); "
            'pip install "nestling[neuron]" in its own environment',
        )
    return Check("optimum-neuron", "ok", found)
