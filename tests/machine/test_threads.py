"""The threads that this process may use, and what torch gets of them."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from medkit.machine.threads import granted_threads


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({"SLURM_CPUS_PER_TASK": "3", "OMP_NUM_THREADS": "5"}, 3),
        ({"OMP_NUM_THREADS": "5,2"}, 5),
        ({"SLURM_CPUS_PER_TASK": "none", "OMP_NUM_THREADS": "4"}, 4),
    ],
)
def test_what_the_scheduler_grants(environ: dict[str, str], expected: int) -> None:
    assert granted_threads(environ) == expected


def test_no_more_than_the_affinity() -> None:
    assert 1 <= granted_threads({}) <= len(os.sched_getaffinity(0))


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
