"""Whether torch.compile can work on a processor: it writes C++ and calls a compiler. Torch-free."""

import logging
import os
import shutil
import sys

logger = logging.getLogger(__name__)


def cpp_compiler() -> str:
    """Return the compiler that torch.compile would call: ``CXX``, else that of the system."""
    return os.environ.get("CXX") or ("clang++" if sys.platform == "darwin" else "g++")


def has_cpp_compiler() -> bool:
    """Return whether that compiler is installed."""
    return shutil.which(cpp_compiler()) is not None


def why_eager(device: str = "cpu") -> str | None:
    """Return one line that says why compiled code cannot run on a device; None if it can."""
    if device != "cpu" or has_cpp_compiler():
        return None
    return (
        f"torch.compile needs a C++ compiler and {cpp_compiler()!r} is not installed: running "
        "without it; install it (for example the package g++), or name another one in the "
        "variable CXX"
    )


def compiles(device: str = "cpu") -> bool:
    """Return whether to compile; without a compiler a warning says so and the run is eager.

    Args:
        device: where the model runs.
    """
    reason = why_eager(device)
    if reason is not None:
        logger.warning(reason)
    return reason is None
