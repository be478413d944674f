"""The memory on which a thread handles signals, kept from libraries that replace it."""

from __future__ import annotations

import contextlib
import ctypes
import sys
from collections.abc import Iterator


class _Stack(ctypes.Structure):
    """`stack_t` of Linux's signal.h."""

    _fields_ = (("start", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t))


@contextlib.contextmanager
def same_signal_stack() -> Iterator[None]:
    """Put back, at the end of the block, the memory on which this thread handles signals.

    OpenVINO gives each network it loads such memory, and frees it with the network. When a network is freed before a
    later one, the memory of the first stays in use: the next signal, such as a scheduler's SIGTERM, ends medkit with a
    segmentation fault. With the thread's own memory put back, OpenVINO leaves it alone.
    Does nothing on other systems than Linux.
    """
    if not sys.platform.startswith("linux"):
        yield
        return
    change = ctypes.CDLL(None).sigaltstack
    before = _Stack()
    known = change(None, ctypes.byref(before)) == 0
    try:
        yield
    finally:
        if known:
            change(ctypes.byref(before), None)
