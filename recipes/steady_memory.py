"""A process without the page faults of an allocator that changes its mind.

glibc hands large blocks back to the system and takes them anew, or keeps them, by a threshold that
moves with the history of the process. A kernel of a millisecond then takes one or three, for the
whole life of a process: two runs of equal code differ by that. A training step frees and takes the
same blocks over and over, so a run on a processor keeps them; so do timings.
"""

import ctypes
from collections.abc import Callable

# Parameters of mallopt in malloc.h: never map blocks, never shrink the heap.
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
LARGEST_INT = 2**31 - 1


def keep_freed_memory() -> bool:
    """Tell the allocator to keep what is freed, for the rest of this process.

    Returns:
        Whether there is an allocator that understood; others are left as they are.
    """
    mallopt = find_mallopt()
    return mallopt is not None and all(
        mallopt(parameter, value) == 1
        for parameter, value in ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, LARGEST_INT))
    )


def find_mallopt() -> Callable[[int, int], int] | None:
    """Return what sets options of the allocator of this process, or None where nothing does."""
    try:
        mallopt: Callable[[int, int], int] = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):
        return None
    return mallopt
