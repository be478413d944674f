"""Freed memory is used again instead of being requested from the system."""

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
    for before in ("", "from medkit.machine.allocator import keep_freed_memory; assert keep_freed_memory()"):
        done = subprocess.run(
            [sys.executable, "-c", COUNT.format(before=before)], capture_output=True, text=True, check=True
        )
        found.append(int(done.stdout))
    assert found[1] < found[0] / 2


TURNS = """
{before}
import resource, threading, torch
def work(number):
    torch.zeros(100)
    turns[number].wait()
    pieces = [torch.empty(1_000_000).fill_(1) for _ in range(50)]
    del pieces
    if number < 3:
        turns[number + 1].set()
        threads[number + 1].join()
turns = [threading.Event() for _ in range(4)]
threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for thread in threads:
    thread.start()
turns[0].set()
threads[0].join()
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - base) // 1024)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's allocator")
def test_what_one_thread_freed_serves_the_next() -> None:
    """Four threads, each with 200 MB in its turn."""
    before = "from medkit.machine.allocator import keep_freed_memory; assert keep_freed_memory()"
    done = subprocess.run(
        [sys.executable, "-c", TURNS.format(before=before)], capture_output=True, text=True, check=True
    )
    assert int(done.stdout) < 300
