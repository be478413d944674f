"""What the control groups of a job grant it: Linux's limits on processors and memory, in version 1 and version 2.

A scheduler or a container puts a job into a group, whose limit may also stand in one of the groups around it; the
least of them holds. Source: the kernel's documentation, admin-guide/cgroup-v1 and cgroup-v2.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

_NO_LIMIT = 2**60
"""Version 1 states "no limit" as a number of bytes near 2^63."""


def processors(root: Path = Path("/")) -> int | None:
    """Return how many processors the quotas of this process's groups come to, at least 1; None without a quota.

    `root` is where the folders `proc` and `sys` are.
    """
    quotas = [quota for group in _groups("cpu", root) if (quota := _quota(group)) is not None]
    return max(1, int(min(quotas))) if quotas else None


def memory_left(root: Path = Path("/")) -> int | None:
    """Return how many bytes this process's groups can still take; None without a limit.

    What the system keeps of files that were read counts as free, since it gives that up when memory is short.
    """
    left = [room for group in _groups("memory", root) if (room := _room(group)) is not None]
    return min(left) if left else None


def _groups(controller: str, root: Path) -> Iterator[Path]:
    """Yield the folders of the groups of this process that hold limits of a controller, from the inmost one outwards.

    Inside a container the folder of the job's own group may be missing; then the outermost folder is its group.
    """
    base = root / "sys/fs/cgroup"
    for line in filter(None, _text(root / "proc/self/cgroup").split("\n")):
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        mounts = (base / controllers, base / controller) if controllers else (base, base / "unified")
        for mount in mounts:
            if mount.is_dir():
                own = mount / path.strip("/")
                yield from (own, *(p for p in own.parents if p == mount or p.is_relative_to(mount)))
                break


def _quota(group: Path) -> float | None:
    """Return the processors of one group: `cpu.max` holds quota and period of version 2, in microseconds."""
    words = _text(group / "cpu.max").split()
    if not words:
        words = [_text(group / f"cpu.cfs_{name}_us").strip() for name in ("quota", "period")]
    try:
        quota, period = map(int, words)
    except ValueError:  # "max", or no such file
        return None
    return quota / period if quota > 0 and period > 0 else None  # version 1 states "no quota" as -1


def _room(group: Path) -> int | None:
    """Return the bytes that one group has left."""
    for most, held, cache in (
        ("memory.max", "memory.current", "inactive_file"),
        ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ):
        limit, used = _text(group / most).strip(), _text(group / held).strip()
        if limit.isdigit() and used.isdigit() and int(limit) < _NO_LIMIT:
            facts = dict(line.split(maxsplit=1) for line in _text(group / "memory.stat").split("\n") if " " in line)
            return max(0, int(limit) - int(used) + int(facts.get(cache, 0)))
    return None


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
