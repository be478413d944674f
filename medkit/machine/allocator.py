"""Settings of the C library's allocator: freed memory is kept for the next tensor, in one place for all threads.

Asking the system for it again takes 10 % of a network's run; a store for each thread takes half as much memory again.
"""

from __future__ import annotations

import ctypes
import sys

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8
"""Numbers of settings in glibc's malloc.h."""
LARGEST = 256 * 2**20
"""Bytes of the largest piece that is kept; larger ones return to the system immediately."""
KEPT = 512 * 2**20
"""Bytes of free memory at the end of the heap that are kept; more returns to the system."""


def keep_freed_memory() -> bool:
    """Make the C library's allocator keep freed memory; return False if it is not glibc's, which has such settings.

    By default each tensor of more than 32 MiB is new memory, which the system clears page by page; that was 1.5 s of
    the 17 s in which three scans were segmented on two cores. Call this before threads start and before torch is
    imported: then one thread can use what another freed, and four registrations in sequence take 1.4 GB, not 2.5 GB.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library, such as musl
        return False
    wanted = ((_ARENA_MAX, 1), (_MMAP_THRESHOLD, LARGEST), (_TRIM_THRESHOLD, KEPT))
    return all(bool(mallopt(*setting)) for setting in wanted)
