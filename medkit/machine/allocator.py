"""Freed memory is kept for the next tensor, in one place for all threads.

To ask the system for it again costs a tenth of a network's run; each thread's own store of it a half more memory.
"""

from __future__ import annotations

import ctypes
import sys

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8
"""Of glibc's malloc.h."""
LARGEST = 256 * 2**20
"""Bytes of the largest piece that is kept; larger ones go back to the system at once."""
KEPT = 512 * 2**20
"""Bytes at the end of the heap beyond which they do as well."""


def keep_freed_memory() -> bool:
    """Tells the C library's allocator to keep what is freed; False where it is not glibc's, which has no such switch.

    By default each tensor of more than 32 MiB is new memory, which the system clears page by page: of 17 s that the
    segmentation of three scans took on two cores 1.5 s. To be called before there are threads and before torch: what
    one thread freed is of use to the others then (four registrations, one after the other: 1.4 GB instead of 2.5).
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library, such as musl
        return False
    wanted = ((_ARENA_MAX, 1), (_MMAP_THRESHOLD, LARGEST), (_TRIM_THRESHOLD, KEPT))
    return all(bool(mallopt(*setting)) for setting in wanted)
