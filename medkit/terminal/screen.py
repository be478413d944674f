"""A terminal that several processes write on: text appears above the bars, which one of them draws below the cursor.

The cursor rests at the start of an empty line above the bars. So nothing needs to be known of the screen to draw again
or to clear it, also after a process was killed or stopped, and what other programs print begins on that empty line.
"""

from __future__ import annotations

import contextlib
import io
import os
import stat
import sys
import threading
from collections.abc import Callable, Sequence
from typing import IO, Any, BinaryIO, cast

from medkit.terminal.meeting import Meeting, Shared, meeting_on
from medkit.terminal.streams import Stream, write_all

_CLEAR = "\r\x1b[J"
"""Clears from the start of the cursor's line to the end of the screen."""
_WITHOUT_CURSOR = ("", "dumb", "unknown")
"""Values of TERM for terminals that cannot move the cursor."""


class Screen:
    """A terminal as this process sees it."""

    def __init__(self, terminal: int, meeting: Meeting) -> None:
        self._terminal = os.dup(terminal)
        self.meeting = meeting
        self.flusher: Callable[[], None] | None = None
        """Has `flush` called soon, by a thread that draws; None if there is none: text is written immediately."""
        self._pending = b""
        self._lock = threading.Lock()
        os.register_at_fork(after_in_child=self._forget)

    def _forget(self) -> None:
        """Be the screen of a forked child, which has no other threads."""
        self._lock, self.flusher, self._pending = threading.Lock(), None, b""

    @property
    def in_foreground(self) -> bool:
        """Whether this process group has the terminal; bars would disturb another one that has."""
        try:
            return os.tcgetpgrp(self._terminal) == os.getpgrp()
        except OSError:  # the terminal of another session
            return False

    @property
    def size(self) -> tuple[int, int]:
        """Columns and rows."""
        found = os.get_terminal_size(self._terminal)
        return found.columns or 80, found.lines or 24

    def write(self, text: bytes) -> None:
        """Print text above the bars; while there are any, a line that has not ended waits for its end.

        Raises OSError if the terminal is gone.
        """
        with self._lock:
            self._pending += text
        if self.flusher is not None:
            self.flusher()
            return
        try:
            with self.meeting.held() as shared:
                self.show(shared, shared.frame if shared and shared.bars else "")
        except OSError:  # no folder, or somebody keeps the file
            self.show(None, "")

    def show(self, shared: Shared | None, frame: str) -> None:
        """Print the text that waits, and the bars if they have changed; within `Meeting.held`.

        `shared`: None if there is no meeting. `frame`: what `frame_of` returns; empty for no bars.
        """
        drawn = shared.frame if shared else ""
        if (drawn or frame) and not self.in_foreground:  # the screen belongs to another program now
            drawn = frame = ""
        text = self._taken(whole=self.flusher is None)
        if frame and text and not text.endswith(b"\n"):
            text += b"\n"
        if shared:
            shared.frame = frame
        if text or frame != drawn:
            self._write(os.fsencode(_CLEAR if drawn or frame else "") + text + os.fsencode(frame))

    def _taken(self, *, whole: bool) -> bytes:
        """Return the text that waits, up to the end of its last line unless `whole`."""
        with self._lock:
            end = len(self._pending) if whole else self._pending.rfind(b"\n") + 1
            text, self._pending = self._pending[:end], self._pending[end:]
        return text

    def _write(self, data: bytes) -> None:
        write_all(self._terminal, data)


def frame_of(lines: Sequence[str]) -> str:
    """Return what draws lines below the cursor's empty line, and leaves the cursor where it was."""
    return "".join(f"\n{line}" for line in lines) + (f"\r\x1b[{len(lines)}A" if lines else "")


class _Output(Stream):
    """A stream that prints above the bars."""

    def __init__(self, descriptor: int, screen: Screen) -> None:
        super().__init__(descriptor)
        self._screen = screen

    def write(self, data: Any) -> int:
        """Print bytes above the bars."""
        text = bytes(data)
        self._screen.write(text)
        return len(text)


_screens: dict[int, Screen | None] = {}


def screen_of(stream: IO[Any] | None) -> Screen | None:
    """Return the screen that a stream prints on; None if it is not a terminal that can move its cursor."""
    try:
        return _screen_at(stream.fileno()) if stream is not None else None
    except (OSError, ValueError, AttributeError):  # closed, or the stream of an embedding program
        return None


def _screen_at(descriptor: int) -> Screen | None:
    if os.environ.get("TERM", "") in _WITHOUT_CURSOR or not os.isatty(descriptor):
        return None
    device = os.fstat(descriptor).st_rdev
    if device not in _screens:
        meeting = meeting_on(descriptor)
        _screens[device] = Screen(descriptor, meeting) if meeting is not None else None
    return _screens[device]


def binary_output(descriptor: int) -> BinaryIO:
    """Return a descriptor of stdout as an unbuffered stream, which does not close it; on a terminal, above the bars."""
    screen = _screen_at(descriptor)
    if screen is not None:
        return cast(BinaryIO, _Output(descriptor, screen))
    return cast(BinaryIO, Stream(descriptor, "stdout"))


pipes = [0, 0]
"""The pipes at stdin and stdout when this process began, by their inodes; 0 for what is no pipe."""


def attach() -> None:
    """Let `sys.stdout` and `sys.stderr`, where they are terminals, print above the bars of all stages of the pipe.

    To be called before stdin and stdout are replaced: the order of the stages is read from them.
    """
    pipes[:] = map(_pipe, (0, 1))
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        screen = screen_of(stream)
        if screen is not None:
            raw = io.BufferedWriter(_Output(stream.fileno(), screen))
            setattr(sys, name, io.TextIOWrapper(raw, stream.encoding, stream.errors, line_buffering=True))


def _pipe(descriptor: int) -> int:
    with contextlib.suppress(OSError):
        found = os.fstat(descriptor)
        return found.st_ino if stat.S_ISFIFO(found.st_mode) else 0
    return 0
