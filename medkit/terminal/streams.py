"""The standard streams of a process that was started with closed ones, or whose messages go to a full disk."""

from __future__ import annotations

import io
import os
import select
import sys
from typing import Any


def open_closed_streams() -> None:
    """Open /dev/null in place of what the caller has closed of stdin, stdout and stderr (`>&-`).

    Otherwise the next file that is opened gets such a number, and what a library prints is written into it.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # the lowest free number
    # sys.stdin stays None: a command without arguments then fails as wrong use, instead of reading an empty list
    if sys.stdout is None:
        sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
    if sys.stderr is None:
        sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115


def write_all(descriptor: int, data: Any) -> None:
    """Write all bytes, also where another program has made a terminal or a pipe non-blocking. Raises OSError."""
    rest = memoryview(data).cast("B")
    while rest:
        try:
            rest = rest[os.write(descriptor, rest) :]
        except BlockingIOError:
            select.select([], [descriptor], [])


class Stream(io.RawIOBase):
    """A descriptor as an unbuffered stream, which does not close it.

    With a name, an error to write names it; without one, as for messages on stderr, what cannot be written is lost.
    """

    def __init__(self, descriptor: int, called: str = "") -> None:
        self._descriptor, self._called = descriptor, called

    def write(self, data: Any) -> int:
        """Write all bytes. Raises OSError if the stream has a name."""
        try:
            write_all(self._descriptor, data)
        except OSError as error:
            if self._called:
                raise OSError(error.errno, error.strerror, self._called) from None
        return memoryview(data).nbytes

    def writable(self) -> bool:
        """Return True."""
        return True

    def fileno(self) -> int:
        """Return the descriptor that the stream stands for."""
        return self._descriptor

    def isatty(self) -> bool:
        """Return whether it is a terminal."""
        return os.isatty(self._descriptor)


def guard_streams() -> None:
    """Let errors of stdout name it, and messages that cannot be written be lost (`2> log` on a full disk).

    Streams of an embedding program, and terminals with bars, stay as they are.
    """
    for name, guard in (("stdout", Stream(1, "stdout")), ("stderr", Stream(2))):
        stream = getattr(sys, name)
        if not isinstance(stream, io.TextIOWrapper):
            continue
        raw = getattr(stream.buffer, "raw", stream.buffer)  # under PYTHONUNBUFFERED there is no buffer
        if isinstance(raw, io.FileIO) and raw.fileno() == guard.fileno():
            guarded = io.TextIOWrapper(
                io.BufferedWriter(guard),
                stream.encoding,
                stream.errors,
                line_buffering=stream.line_buffering or stream.write_through,
            )
            setattr(sys, name, guarded)
