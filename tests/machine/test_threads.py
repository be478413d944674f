"""The threads that this process may use, and what torch gets of them."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from pathlib import Path

import pytest

from medkit.machine.threads import granted_threads


@pytest.fixture(autouse=True)
def many_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with 64 processors."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(64)))


ALONE = ("SLURM_CPUS_PER_TASK", "SLURM_CPUS_PER_GPU", "SLURM_CPUS_ON_NODE", "NCPUS", "PBS_NUM_PPN", "NSLOTS")
ALONE += ("LSB_DJOB_NUMPROC", "OMP_NUM_THREADS")


@pytest.mark.parametrize("name", ALONE)
def test_each_grant_alone(name: str, tmp_path: Path) -> None:
    assert granted_threads({name: "3"}, tmp_path) == 3


@pytest.mark.parametrize(("one", "other"), list(itertools.permutations(ALONE, 2)))
def test_the_least_of_two_grants(one: str, other: str, tmp_path: Path) -> None:
    assert granted_threads({one: "2", other: "5"}, tmp_path) == 2


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, 64),
        ({"OMP_NUM_THREADS": "5,2"}, 5),
        ({"SLURM_CPUS_PER_TASK": "none", "OMP_NUM_THREADS": "4", "NSLOTS": "", "NCPUS": "0"}, 4),
        ({"NCPUS": "100"}, 64),
        ({"SLURM_CPUS_PER_GPU": "4", "SLURM_GPUS_ON_NODE": "2"}, 8),
        ({"SLURM_CPUS_ON_NODE": "8", "SLURM_TASKS_PER_NODE": "1(x3)"}, 8),
        ({"SLURM_CPUS_ON_NODE": "8", "SLURM_TASKS_PER_NODE": "4"}, 64),
        ({"SLURM_CPUS_ON_NODE": "8", "SLURM_NTASKS": "4"}, 64),
        ({"SLURM_CPUS_ON_NODE": "8", "SLURM_TASKS_PER_NODE": "4", "SLURM_STEP_TASKS_PER_NODE": "1"}, 8),
        ({"SLURM_CPUS_ON_NODE": "8", "SLURM_TASKS_PER_NODE": "2,1", "SLURM_CPUS_PER_TASK": "4"}, 4),
    ],
)
def test_what_the_scheduler_grants(environ: dict[str, str], expected: int, tmp_path: Path) -> None:
    assert granted_threads(environ, tmp_path) == expected


@pytest.mark.parametrize(
    ("environ", "cores", "expected"),
    [
        ({}, 64, 16),
        ({}, 8, 2),  # all that the tasks of this machine may run on together
        ({}, 2, 1),
        ({"SLURM_CPUS_PER_TASK": "3", "OMP_NUM_THREADS": "5"}, 64, 3),  # grants of each task
        ({"SLURM_CPUS_ON_NODE": "8", "SLURM_TASKS_PER_NODE": "4"}, 64, 2),
        ({"NSLOTS": "20"}, 64, 5),
        ({"NCPUS": "3"}, 64, 1),
    ],
)
def test_four_tasks_on_this_machine_share_what_is_granted_to_all(
    environ: dict[str, str], cores: int, expected: int, tmp_path: Path
) -> None:
    assert granted_threads(environ, tmp_path, tasks=4, cores=cores) == expected


@pytest.mark.parametrize(("before", "policy"), [({}, "PASSIVE"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "ACTIVE")])
def test_torch_gets_threads_that_sleep_while_they_wait(before: dict[str, str], policy: str) -> None:
    """In a new process, since torch reads the policy once; one that the user set stays."""
    script = (
        "import os, sys; from medkit.machine.threads import limit_torch; assert 'torch' not in sys.modules; "
        "limit_torch(3); import torch; print(torch.get_num_threads(), os.environ['OMP_WAIT_POLICY'])"
    )
    environ = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"} | before
    done = subprocess.run([sys.executable, "-c", script], env=environ, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["3", policy]
