"""Freed memory is used again instead of being asked for anew."""

from __future__ import annotations

import subprocess
import sys

import pytest

COUNT = """
import resource, torch
{before}
def faults():
    begin = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        torch.empty(12_500_000).fill_(1)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - begin
faults()
print(faults())
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's allocator")
def test_pages_are_not_cleared_again() -> None:
    """50 MB ten times over: with the default each piece is new memory."""
    found = []
    for before in ("", "from medkit.allocator import keep_freed_memory; assert keep_freed_memory()"):
        done = subprocess.run(
            [sys.executable, "-c", COUNT.format(before=before)], capture_output=True, text=True, check=True
        )
        found.append(int(done.stdout))
    assert found[1] < found[0] / 2
