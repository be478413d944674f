"""Stopping in an orderly way: what SIGTERM, SIGUSR1 and a case's time limit do to a run.

Schedulers send SIGTERM or SIGUSR1 some time before they kill. The first signal lets the current case finish; a second
one drops it, and further ones change nothing. A run that waits for input has nothing to finish and stops immediately.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

from medkit.errors import CaseTimeout, Stopped


class StopRequest:
    """Whether the scheduler asked this run to stop; its handlers hold within `with StopRequest() as stop:`."""

    def __init__(self, numbers: tuple[signal.Signals, ...] = (signal.SIGTERM, signal.SIGUSR1)) -> None:
        self.received = False
        """Whether a signal has come."""
        self.number: signal.Signals | None = None
        """The signal that came first."""
        self._numbers = numbers
        self._working = False
        self._ending = False
        self._previous: dict[int, object] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():  # Python allows handlers only there
            for number in self._numbers:
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _handle(self, number: int, frame: FrameType | None) -> None:
        again, self.received = self.received, True
        self.number = self.number or signal.Signals(number)
        if (again or not self._working) and not self._ending:
            self._ending = True  # an exception in the middle of what the first one has cleaned up would undo that
            raise KeyboardInterrupt if number == signal.SIGINT else Stopped(signal.Signals(number).name)

    @contextlib.contextmanager
    def working(self) -> Iterator[None]:
        """Within the block, a case is worked on, and the first signal only sets `received`."""
        self._working = True
        try:
            yield
        finally:
            self._working = False


@contextlib.contextmanager
def time_limit(seconds: float | None) -> Iterator[None]:
    """Raise CaseTimeout inside the block once `seconds` have passed (None: never). Works in the main thread only."""
    if seconds is None:
        yield
        return

    def expire(number: int, frame: FrameType | None) -> None:
        raise CaseTimeout

    previous = signal.signal(signal.SIGALRM, expire)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
