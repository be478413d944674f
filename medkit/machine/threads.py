"""How many threads this process may use, and how torch gets them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path


def granted_threads(environ: Mapping[str, str] = os.environ) -> int:
    """Return how many processors this run may use: what SLURM or OMP_NUM_THREADS grants, else the CPU affinity.

    The CPU quota of a container (cgroup v2) limits the affinity: more threads than that only wait for each other.
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


def limit_torch(threads: int) -> None:
    """Import torch and make it compute with this many threads, which sleep while they wait.

    Call it before anything else imports torch, which reads OMP_WAIT_POLICY when it is loaded; a policy that the user
    set stays. By default waiting threads spin, which takes the processor from other programs: two simultaneous
    registrations on two cores took 18 s with the default and 6 s without spinning, `medkit evaluate --resample` took
    six times as long on busy cores.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    import torch

    torch.set_num_threads(threads)
