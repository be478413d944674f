"""How many threads this process may use."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path


def granted_threads(environ: Mapping[str, str] = os.environ) -> int:
    """The processors this run may use: what the scheduler or OMP_NUM_THREADS grants, else the CPU affinity.

    A container's CPU quota (cgroup v2) counts as well: more threads than that only wait for each other.
    """
    for variable in ("SLURM_CPUS_PER_TASK", "OMP_NUM_THREADS"):
        value = environ.get(variable, "").split(",")[0]
        if value.isdigit() and int(value) > 0:
            return int(value)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return min(cores, max(1, int(quota) // int(period)))
    except (OSError, ValueError):  # no cgroup v2, or "max": no quota
        return cores
