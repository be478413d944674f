"""How many threads this process may use, and how torch gets them."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from medkit.machine.cgroups import processors

_GRANTS = ("SLURM_CPUS_PER_TASK", "NCPUS", "PBS_NUM_PPN", "NSLOTS", "LSB_DJOB_NUMPROC", "OMP_NUM_THREADS")
"""Variables with a number of processors: of Slurm, PBS, Torque, Grid Engine, LSF and OpenMP."""


def granted_threads(environ: Mapping[str, str] = os.environ, root: Path = Path("/")) -> int:
    """Return how many processors this run may use: the least of all grants, since more threads wait for each other.

    Grants are the variables of the scheduler, OMP_NUM_THREADS, the quota of the control group (`root` is where the
    folders `proc` and `sys` are), and the CPU affinity.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    grants = [cores, processors(root), *(_number(environ, name) for name in _GRANTS), *_slurm_grants(environ)]
    return min(grant for grant in grants if grant)


def _slurm_grants(environ: Mapping[str, str]) -> Iterator[int | None]:
    """Yield what Slurm grants without `--cpus-per-task`: by GPU, and the job's processors here for its one task."""
    per_gpu = _number(environ, "SLURM_CPUS_PER_GPU")
    yield per_gpu and per_gpu * (_number(environ, "SLURM_GPUS_ON_NODE") or 1)
    tasks = environ.get("SLURM_STEP_TASKS_PER_NODE") or environ.get("SLURM_TASKS_PER_NODE")
    tasks = tasks or environ.get("SLURM_NTASKS") or "1"
    if set(re.sub(r"\(x\d+\)", "", tasks).split(",")) == {"1"}:  # "1(x3)": one task on each of three nodes
        yield _number(environ, "SLURM_CPUS_ON_NODE")


def _number(environ: Mapping[str, str], name: str) -> int | None:
    """Return the first number of a variable; None if it is missing, 0, or no number."""
    value = environ.get(name, "").split(",")[0].strip()
    return int(value) or None if value.isdecimal() else None


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
