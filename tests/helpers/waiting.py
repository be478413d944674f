"""Wait for other processes; list the temporary files that they leave."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path


def wait_for(condition: Callable[[], object], seconds: float = 30) -> None:
    """Return once `condition()` is true; fail the test after `seconds`."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


def leftovers(folder: Path) -> list[str]:
    """Return the names of temporary files and claims below a folder."""
    return [p.name for p in folder.rglob(".*.*") if p.name.endswith((".part", ".claim"))]
