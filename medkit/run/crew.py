"""Threads that hand cases over to what works on them elsewhere: child processes, or the workers of a cluster."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Protocol

from medkit.errors import Stopped
from medkit.pipe.records import Record
from medkit.run.task import CasePlan, Item

TICK = 0.2
"""Seconds between two looks at whether to stop."""

_Done = Record | BaseException | None
"""A finished case, an error that ends the run, or None for the end of one thread."""


class Hand(Protocol):
    """What works on one case at a time for a thread of a crew, such as a child process."""

    def alive(self) -> bool:
        """Return whether it can take another case."""

    def work(self, plan: CasePlan, stopped: Callable[[], bool]) -> Record | BaseException:
        """Return the record of a case; Stopped if it began nothing, another exception if that ends the run."""

    def close(self) -> None:
        """End it, since no case is left."""

    def dismiss(self) -> None:
        """Make it drop its case and end."""


class Crew:
    """A thread that plans cases, and `size` threads that hand them over, each to a hand of its own.

    A hand that is no longer alive is replaced by a new one of `hire`. Once `stopped()` is true, no new case is started.
    """

    def __init__(self, items: Iterable[Item], size: int, hire: Callable[[], Hand], stopped: Callable[[], bool]) -> None:
        self._items, self._hire, self._stopped = items, hire, stopped
        self._waiting: queue.Queue[Item | None] = queue.Queue(maxsize=size)
        self._finished: queue.Queue[_Done] = queue.Queue()
        self._hands: list[Hand] = []
        self._dismissed = False
        self._feeder = threading.Thread(target=self._guard, args=(self._feed,), daemon=True)
        self._servers = [threading.Thread(target=self._guard, args=(self._serve,), daemon=True) for _ in range(size)]
        for thread in (self._feeder, *self._servers):
            thread.start()

    def _ending(self) -> bool:
        return self._dismissed or self._stopped()

    def _guard(self, work: Callable[[], None]) -> None:
        """Do the work of a thread; pass on its error, and report its end."""
        try:
            work()
        except BaseException as error:
            self._finished.put(error)
        finally:
            self._finished.put(None)

    def _feed(self) -> None:
        for item in self._items:
            self._put(item)
            if self._ending():
                return
        for _ in self._servers:
            self._put(None)

    def _put(self, item: Item | None) -> None:
        while not self._ending():
            with contextlib.suppress(queue.Full):
                self._waiting.put(item, timeout=TICK)
                return

    def _serve(self) -> None:
        """Give plans to one hand, and to its successor when it dies."""
        hand: Hand | None = None
        while not self._ending():
            try:
                item = self._waiting.get(timeout=TICK)
            except queue.Empty:
                continue
            if item is None:
                break
            if isinstance(item, Record):
                self._finished.put(item)
                continue
            if not (hand and hand.alive()):
                hand = self._hire()
                self._hands.append(hand)
                if self._dismissed:  # while it was starting, so `dismiss` may have missed it
                    hand.dismiss()
                    return
            answer = hand.work(item, self._stopped)
            if isinstance(answer, Stopped):  # it waited for another process, and began nothing
                break
            self._finished.put(answer)
        if hand:
            hand.close()

    def results(self) -> Iterator[Record]:
        """Yield records as they are finished; raise the error that ended a thread."""
        running = 1 + len(self._servers)
        while running:
            try:
                done = self._finished.get(timeout=TICK)  # short, so that a signal's handler can run
            except queue.Empty:
                if self._stopped() and not any(t.is_alive() for t in self._servers) and self._finished.empty():
                    return  # the feeder may still wait for a silent stdin
                continue
            if isinstance(done, BaseException):
                raise done
            if done is None:
                running -= 1
            else:
                yield done

    def dismiss(self) -> None:
        """End all hands; those at work drop their case."""
        self._dismissed = True
        for hand in self._hands:
            hand.dismiss()
