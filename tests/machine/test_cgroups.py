"""Limits of control groups, as Linux shows them in both versions, inside and outside containers."""

from __future__ import annotations

from pathlib import Path

import pytest

from medkit.machine.cgroups import memory_left, processors
from medkit.machine.threads import granted_threads

JOB = "slurm/uid_1/job_2/step_0"


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def version_2(group: str, **limits: str) -> dict[str, str]:
    """A machine whose process is in the job's group; `group`: the folder that holds the limits."""
    names = {name.replace("_", ".", 1): value + "\n" for name, value in limits.items()}
    folder = f"sys/fs/cgroup/{group}".rstrip("/")
    return {"proc/self/cgroup": f"0::/{JOB}\n", **{f"{folder}/{name}": value for name, value in names.items()}}


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, None),
        (version_2(JOB, cpu_max="max 100000"), None),
        (version_2(JOB, cpu_max="300000 100000"), 3),
        (version_2("slurm/uid_1/job_2", cpu_max="300000 100000"), 3),
        (version_2("", cpu_max="250000 100000"), 2),  # in a container, which sees only its own group
        (version_2(JOB, cpu_max="50000 100000"), 1),
        (version_2(JOB, cpu_max="400000 100000") | version_2("slurm", cpu_max="200000 100000"), 2),
        (
            {
                "proc/self/cgroup": f"5:memory:/x\n4:cpu,cpuacct:/{JOB}\n0::/init\n",
                f"sys/fs/cgroup/cpu,cpuacct/{JOB}/cpu.cfs_quota_us": "150000\n",
                f"sys/fs/cgroup/cpu,cpuacct/{JOB}/cpu.cfs_period_us": "50000\n",
            },
            3,
        ),
        (
            {
                "proc/self/cgroup": "4:cpu,cpuacct:/docker/1234\n",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "200000",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000",
            },
            2,
        ),
        (
            {
                "proc/self/cgroup": "4:cpu:/\n",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            },
            None,
        ),
    ],
)
def test_processors(tmp_path: Path, files: dict[str, str], expected: int | None) -> None:
    assert processors(write(tmp_path, files)) == expected


def test_a_quota_limits_the_threads(tmp_path: Path) -> None:
    write(tmp_path, version_2(JOB, cpu_max="100000 100000"))
    assert granted_threads({"SLURM_CPUS_PER_TASK": "2"}, tmp_path) == 1


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, None),
        (version_2(JOB, memory_max="max", memory_current="5"), None),
        (version_2(JOB, memory_max="1000", memory_current="400"), 600),
        (version_2(JOB, memory_max="1000", memory_current="900", memory_stat="anon 1\ninactive_file 700"), 800),
        (version_2("slurm", memory_max="1000", memory_current="1200"), 0),
        (
            {
                "proc/self/cgroup": f"9:memory:/{JOB}\n",
                f"sys/fs/cgroup/memory/{JOB}/memory.limit_in_bytes": "9223372036854771712\n",
                f"sys/fs/cgroup/memory/{JOB}/memory.usage_in_bytes": "77\n",
                "sys/fs/cgroup/memory/slurm/uid_1/job_2/memory.limit_in_bytes": "5000\n",
                "sys/fs/cgroup/memory/slurm/uid_1/job_2/memory.usage_in_bytes": "3000\n",
                "sys/fs/cgroup/memory/slurm/uid_1/job_2/memory.stat": "cache 9\ntotal_inactive_file 500\n",
            },
            2500,
        ),
    ],
)
def test_memory(tmp_path: Path, files: dict[str, str], expected: int | None) -> None:
    assert memory_left(write(tmp_path, files)) == expected
