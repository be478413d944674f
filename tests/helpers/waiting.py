"""Wait for other processes; list them, and the temporary files that they leave."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path


def wait_for(condition: Callable[[], object], seconds: float = 30) -> None:
    """Return once `condition()` is true; fail the test after `seconds`."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


def handles(process: int, number: int) -> bool:
    """Return whether a process has a handler for a signal, so that it does not end with the signal's own code."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    caught = next(line.split()[1] for line in lines if line.startswith("SigCgt:"))
    return bool(int(caught, 16) >> (number - 1) & 1)


def leftovers(folder: Path) -> list[str]:
    """Return the names of temporary files and claims below a folder."""
    return [p.name for p in folder.rglob(".*.*") if p.name.endswith((".part", ".claim"))]


def processes_in(folder: Path) -> list[str]:
    """Return the command lines of all other processes that work in a folder."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if (process / "cwd").samefile(folder) and process.name != str(os.getpid()):
                found.append((process / "cmdline").read_bytes().replace(b"\0", b" ").decode())
        except OSError:  # it has ended
            continue
    return found
