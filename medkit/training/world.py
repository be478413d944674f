"""Which of how many processes this one is in a training over several ranks, as torchrun or Slurm says."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from medkit.errors import UsageError

_FIRST_PORT, _PORTS = 16000, 16384
"""Ports below those that systems hand out by themselves (32768 and more)."""


@dataclass(frozen=True)
class World:
    """One rank among those that train together, and where all of them meet."""

    rank: int = 0
    """From 0 to `size` - 1; rank 0 writes all files and messages."""
    size: int = 1
    local_rank: int = 0
    """Number of this rank among those of its machine."""
    address: str = ""
    """Name or address of rank 0's machine."""
    port: int = 0
    """Port there at which the ranks meet."""

    @property
    def first(self) -> bool:
        """Whether this is rank 0."""
        return self.rank == 0


def find_world(environ: Mapping[str, str]) -> World:
    """Return this process's rank: that of RANK and WORLD_SIZE, else that of its task in a job step of Slurm.

    Only `srun` starts several tasks of one command; a batch script runs once, however many tasks its job has. Raises
    UsageError for variables that contradict each other, or that are incomplete.
    """
    if "RANK" in environ or "WORLD_SIZE" in environ:
        return _of_torchrun(environ)
    if _number(environ, "SLURM_STEP_NUM_TASKS", 1) > 1 and "SLURM_PROCID" in environ:
        return _of_slurm(environ)
    return World()


def _of_torchrun(environ: Mapping[str, str]) -> World:
    for name in ("RANK", "WORLD_SIZE"):
        if name not in environ:
            raise UsageError(f"{name} is not set; training over several ranks needs both RANK and WORLD_SIZE")
    rank, size = (_number(environ, name) for name in ("RANK", "WORLD_SIZE"))
    if not 0 <= rank < size:
        raise UsageError(f"RANK={rank}, WORLD_SIZE={size}: expected a rank from 0 to {size - 1}")
    if size == 1:
        return World()
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        if name not in environ:
            raise UsageError(f"RANK={rank}, WORLD_SIZE={size}: {name} is not set, so the ranks cannot meet")
    local = _number(environ, "LOCAL_RANK", rank)
    return World(rank, size, local, environ["MASTER_ADDR"], _number(environ, "MASTER_PORT"))


def _of_slurm(environ: Mapping[str, str]) -> World:
    if _number(environ, "SLURM_STEP_NUM_NODES", 1) == 1:
        address = "127.0.0.1"  # so that nothing listens on the network
    else:
        address = first_host(environ.get("SLURM_STEP_NODELIST", ""))
    # two steps of a job may run side by side, and so may two jobs on a node
    step = 64 * _number(environ, "SLURM_JOB_ID", 0) + _number(environ, "SLURM_STEP_ID", 0)
    return World(
        rank=_number(environ, "SLURM_PROCID"),
        size=_number(environ, "SLURM_STEP_NUM_TASKS"),
        local_rank=_number(environ, "SLURM_LOCALID", 0),
        address=environ.get("MASTER_ADDR", address),
        port=_number(environ, "MASTER_PORT", _FIRST_PORT + step % _PORTS),
    )


def first_host(nodes: str) -> str:
    """Return the first name of Slurm's list of nodes.

    >>> first_host("gpu[003-005,9],cpu1"), first_host("rack1-n7,rack2-n[1-2]")
    ('gpu003', 'rack1-n7')
    """
    first = re.match(r"(?:[^,\[]|\[[^\]]*\])*", nodes)
    return re.sub(r"\[([^\],-]*)[^\]]*\]", r"\1", first[0] if first else "")


def _number(environ: Mapping[str, str], name: str, default: int | None = None) -> int:
    """Return a variable's number, or `default` if it is not set. Raises UsageError for anything else."""
    value = environ.get(name)
    if value is None and default is not None:
        return default
    if value is None or not value.isdecimal():
        raise UsageError(f"{name}={value or ''}: expected a number")
    return int(value)
