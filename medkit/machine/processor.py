"""The name of the processor."""

from __future__ import annotations

import functools
import platform


@functools.cache
def processor_name() -> str:
    """Return the processor's name, such as `AMD EPYC 9654`; that of its architecture where the system tells no other.

    Other than Linux, systems tell it through Python.
    """
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
            names = (line.partition(":")[2].strip() for line in file if line.startswith("model name"))
            stated = next(names, "")
    except OSError:
        stated = ""
    return stated or platform.processor() or platform.machine()
