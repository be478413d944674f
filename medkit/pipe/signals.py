"""Stopping in an orderly way: what SIGTERM, SIGUSR1 and a case's time limit do to a run.

Schedulers send SIGTERM or SIGUSR1 some time before they kill. The first signal lets the current case finish; a second
one drops it, and further ones change nothing. A run that waits for input has nothing to finish and stops immediately.
Ctrl-C drops the current case at once. Whatever ends a run does so by one exception: another one, in the middle of what
the first one cleans up, would leave half of it.
"""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType

from medkit.errors import CaseTimeout, Stopped

_CLEANING = 15.0
"""Seconds for which further Ctrl-C change nothing; after that, what is cleaned up may hang."""


class _End:
    """The exception that ends all that goes on in this process: it is raised once."""

    def __init__(self) -> None:
        self._requests = 0
        """Number of `StopRequest` blocks that have begun and not ended."""
        self._raised: float | None = None

    def raise_once(self, number: int) -> None:
        """Raise KeyboardInterrupt or Stopped for a signal, unless that has been done."""
        now = time.monotonic()
        if self._raised is None or (number == signal.SIGINT and now - self._raised > _CLEANING):
            self._raised = now
            raise KeyboardInterrupt if number == signal.SIGINT else Stopped(signal.Signals(number).name)

    def begin(self) -> None:
        """Count a `StopRequest` block that begins; the outermost one may raise again."""
        if self._requests == 0:
            self._raised = None
        self._requests += 1

    def leave(self) -> None:
        """Count a `StopRequest` block that ends."""
        self._requests -= 1


_end = _End()


class StopRequest:
    """Whether the scheduler asked this run to stop; its handlers hold within `with StopRequest() as stop:`.

    Within the block Ctrl-C raises KeyboardInterrupt as always, but once.
    """

    def __init__(self, numbers: tuple[signal.Signals, ...] = (signal.SIGTERM, signal.SIGUSR1)) -> None:
        self.received = False
        """Whether a signal has come."""
        self.number: signal.Signals | None = None
        """The signal that came first."""
        self._numbers = numbers
        self._working = False
        self._previous: dict[int, object] = {}

    def __enter__(self) -> StopRequest:
        _end.begin()
        if threading.current_thread() is threading.main_thread():  # Python allows handlers only there
            for number in self._numbers:
                self._previous[number] = signal.signal(number, self._handle)
            if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
                self._previous[signal.SIGINT] = signal.signal(signal.SIGINT, _interrupt)
        return self

    def __exit__(self, *_: object) -> None:
        _end.leave()
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _handle(self, number: int, frame: FrameType | None) -> None:
        again, self.received = self.received, True
        self.number = self.number or signal.Signals(number)
        if again or not self._working:
            _end.raise_once(number)

    @contextlib.contextmanager
    def working(self) -> Iterator[None]:
        """Within the block, a case is worked on, and the first signal only sets `received`."""
        self._working = True
        try:
            yield
        finally:
            self._working = False


def _interrupt(number: int, frame: FrameType | None) -> None:
    _end.raise_once(number)


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
