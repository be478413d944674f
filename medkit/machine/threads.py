"""How many threads this process may use, and how torch gets them."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

from medkit.machine.cgroups import processors

_FOR_A_TASK = ("SLURM_CPUS_PER_TASK", "OMP_NUM_THREADS")
"""Variables with a number of processors for one process: of Slurm and OpenMP."""
_FOR_A_JOB = ("NCPUS", "PBS_NUM_PPN", "NSLOTS", "LSB_DJOB_NUMPROC")
"""Variables with a number of processors that all processes of a job share: of PBS, Torque, Grid Engine and LSF."""


def granted_threads(
    environ: Mapping[str, str] = os.environ, root: Path = Path("/"), tasks: int = 1, cores: int | None = None
) -> int:
    """Return how many processors this run may use: the least of all grants, since more threads wait for each other.

    Grants are the variables of the scheduler, OMP_NUM_THREADS, the quota of the control group (`root` is where the
    folders `proc` and `sys` are), and the CPU affinity. If the run consists of several `tasks` on this machine, each
    gets an equal share of what is granted to all; `cores` is then the number that they may run on together.
    """
    return min(grants(environ, root, tasks, cores).values())


def grants(
    environ: Mapping[str, str] = os.environ, root: Path = Path("/"), tasks: int = 1, cores: int | None = None
) -> dict[str, int]:
    """Return what grants processors to this run -> how many, each at least 1; see `granted_threads`."""
    shared = {"processor affinity": cores or len(affinity()), "control group": processors(root)}
    shared |= {name: _number(environ, name) for name in _FOR_A_JOB} | _slurm_grants(environ, tasks)
    own = {name: _number(environ, name) for name in _FOR_A_TASK}
    found = own | {name: n and n // tasks for name, n in shared.items()}
    return {name: max(1, n) for name, n in found.items() if n is not None}


def affinity() -> set[int]:
    """Return the numbers of the processors that this process may run on."""
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))


def _slurm_grants(environ: Mapping[str, str], tasks: int) -> dict[str, int | None]:
    """Return what Slurm grants without `--cpus-per-task`: by GPU, and the job's processors here for all its tasks."""
    per_gpu = _number(environ, "SLURM_CPUS_PER_GPU")
    found = {"SLURM_CPUS_PER_GPU": per_gpu and per_gpu * (_number(environ, "SLURM_GPUS_ON_NODE") or 1)}
    here = environ.get("SLURM_STEP_TASKS_PER_NODE") or environ.get("SLURM_TASKS_PER_NODE")
    here = here or environ.get("SLURM_NTASKS") or "1"
    # "1(x3)": one task on each of three nodes; other tasks than those of this run may need the rest
    if set(re.sub(r"\(x\d+\)", "", here).split(",")) == {"1"} or tasks > 1:
        found["SLURM_CPUS_ON_NODE"] = _number(environ, "SLURM_CPUS_ON_NODE")
    return found


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
