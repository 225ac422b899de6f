"""Begin and end of a distributed run: every process leaves, and none hangs or aborts.

A worker thread of torch's gloo backend drops a finished collective while it holds the lock of its
group, and to drop it needs Python's global lock. A process that destroys the group while it holds
the global lock can so wait for ever: that happens where `DistributedDataParallel` is the last
holder of a group that was destroyed before it. A group that is never destroyed keeps its threads
beyond the interpreter instead, and the process can abort. Hence the order here: first what holds
the group, then a barrier, then the group, whose own destructor releases the global lock.
"""

import gc
import os
from datetime import timedelta

import torch.distributed


def start_process_group(backend: str, timeout: int) -> None:
    """Start the group that a launcher asks for; nothing happens where there is one or none.

    Args:
        backend: such as gloo.
        timeout: seconds that a process waits for the others.
    """
    asked = int(os.environ.get("WORLD_SIZE", "1")) > 1 and "RANK" in os.environ
    if asked and torch.distributed.is_available() and not in_process_group():
        torch.distributed.init_process_group(backend, timeout=timedelta(seconds=timeout))


def wait_for_all_processes() -> None:
    """Return when every process is here; at once where there is only one.

    Reference cycles around a trainer are collected first, so a trainer that the caller has dropped
    holds the process group no longer.
    """
    if in_process_group():
        gc.collect()
        torch.distributed.barrier()


def leave_process_group() -> None:
    """Wait for every process and end the process group; nothing happens where there is none.

    The caller drops its trainer and model before.
    """
    if in_process_group():
        wait_for_all_processes()
        torch.distributed.destroy_process_group()


def in_process_group() -> bool:
    """Whether this is one of several processes, or one that was started like them."""
    return torch.distributed.is_available() and torch.distributed.is_initialized()
