"""How much memory this process uses, and how much is left for it."""

from __future__ import annotations

import os
import resource
from pathlib import Path
from typing import TYPE_CHECKING

from medkit.machine.cgroups import memory_left

if TYPE_CHECKING:
    import torch


def available(limit: int | None, device: torch.device) -> int:
    """Return how many bytes the work on a case may still take, of the GPU's memory or of this machine's.

    `limit` is what this process may take in total; None: what is free, within the limits of its job (cgroup, ulimit).
    """
    if device.type == "cuda":
        import torch

        free = torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device)
        free -= torch.cuda.memory_allocated(device)
        return min(free, limit) if limit else free
    if limit:
        return limit - resident()
    left = [machine_left(), memory_left()]
    space = resource.getrlimit(resource.RLIMIT_AS)[0]
    if space != resource.RLIM_INFINITY:
        left.append(space - _statm(0))
    return min(n for n in left if n is not None)


def resident() -> int:
    """Return how many bytes of memory this process holds now."""
    return _statm(1)


def _statm(column: int) -> int:
    """Return bytes from Linux's record of this process: 0 is the address space, 1 the resident memory."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[column]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:  # not Linux: the most that it has held so far
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def machine_left() -> int:
    """Return how many bytes of memory this machine can still give; if unknown, half of what it has."""
    try:
        lines = Path("/proc/meminfo").read_text().split("\n")
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except OSError:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2


def ran_out(error: BaseException) -> bool:
    """Return whether an error means that there was not enough memory."""
    import torch

    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    words = ("not enough memory", "can't allocate memory", "out of memory", "bad_alloc", "Cannot allocate memory")
    return isinstance(error, RuntimeError) and any(word in str(error) for word in words)
