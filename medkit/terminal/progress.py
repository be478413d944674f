"""The bar of this process: what it counts, the case at hand, and steps within the case.

Code anywhere below a command may report steps; without a bar that does nothing.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from typing import TypeVar

from medkit.terminal.meeting import Shared
from medkit.terminal.screen import Screen, pipes, screen_of
from medkit.terminal.state import BarState, Lines

_T = TypeVar("_T")

_DELAY = 0.5
"""Seconds before a bar appears: what is done sooner needs none."""
_TICK = 0.2
"""Seconds between two looks at what the stages report, and between two drawings of the bars."""
_GAP = 0.05
"""Least seconds between two times that text is printed while bars are drawn."""
_REMEMBERED = 20
"""Finished cases that the rate is taken from: results that are kept take no time, and often come first."""


@dataclass
class _Activity:
    """What a thread does."""

    case: str
    doing: str
    steps: list[list[int]] = field(default_factory=list)
    """Done and total, the outermost steps first."""
    unit: str = ""

    @property
    def share(self) -> float:
        share = 0.0
        for done, total in reversed(self.steps):
            share = min(1.0, (done + share) / max(total, 1))
        return share


class Bar:
    """Counts the cases of this process."""

    def __init__(self, name: str, total: Callable[[], int | None], lines: Lines = "done", *, follows: bool) -> None:
        self._name, self._total, self._lines = name, total, lines
        self._done = self._failed = 0
        self._text = ""
        self._whole: float | None = None
        self._left: float | None = None
        self._earlier = deque([(time.monotonic(), 0)], _REMEMBERED)
        self._pipe_in, self._pipe_out = pipes[0] if follows else 0, pipes[1]
        self._activities: dict[int, _Activity] = {}

    def count(self, *, failed: bool = False) -> None:
        """Count one more case as done."""
        self._done += 1
        self._failed += failed
        self._earlier.append((time.monotonic(), self._done))

    def set(self, done: int, total: int | None, *, text: str, whole: float, left: float | None) -> None:
        """Set what is done; `text`: shown as the case; `whole`: the share of all, 0 to 1; `left`: seconds."""
        if self._whole is None:  # what an earlier run did says nothing of the rate
            self._earlier.clear()
        if not self._earlier or done > self._done:
            self._earlier.append((time.monotonic(), done))
        self._done, self._total, self._text, self._whole, self._left = done, lambda: total, text, whole, left

    @contextlib.contextmanager
    def activity(self, case: str, doing: str) -> Iterator[None]:
        """Within the block, this thread does something for a case."""
        thread = threading.get_ident()
        before = self._activities.get(thread)
        self._activities[thread] = _Activity(case or (before.case if before else ""), doing)
        try:
            yield
        finally:
            if before is None:
                del self._activities[thread]
            else:
                self._activities[thread] = before

    @contextlib.contextmanager
    def steps(self, total: int, unit: str) -> Iterator[Callable[[], None]]:
        """Yield what is to be called after each of `total` steps of what this thread does."""
        at = self._activities.get(threading.get_ident())
        if at is None:
            with self.activity("", ""), self.steps(total, unit) as outermost:
                yield outermost
            return
        step, outer = [0, total], at.unit
        at.steps.append(step)
        at.unit = unit

        def advance() -> None:
            step[0] += 1

        try:
            yield advance
        finally:
            at.steps.pop()
            at.unit = outer

    def state(self) -> BarState:
        """Return what to report."""
        found = list(self._activities.values())
        working = [activity for activity in found if activity.case]
        at = next(iter([*working, *found]), _Activity("", ""))
        steps = list(at.steps)
        return BarState(
            name=self._name,
            done=self._done,
            failed=self._failed,
            total=self._total(),
            lines=self._lines,
            pipe_in=self._pipe_in,
            pipe_out=self._pipe_out,
            earlier=self._earlier[0],
            case=at.case or self._text,
            doing=at.doing,
            more=max(0, len(working) - 1),
            step=(steps[-1][0], steps[-1][1], at.unit) if steps else None,
            share=at.share,
            whole=self._whole,
            left=self._left,
        )


class _Ticker:
    """The thread that reports the bar of this process, and draws those of all processes if nobody else does."""

    def __init__(self, bar: Bar, screen: Screen) -> None:
        self._bar, self._screen = bar, screen
        self._draw: Callable[[Shared, Screen], str] | None = None
        self._drawn_at = 0.0
        self._ended = False
        self._wake = threading.Event()
        self._thread = threading.Thread(target=self._run, name="medkit progress", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        self._wake.wait(_DELAY)
        try:
            with contextlib.suppress(OSError):  # the terminal or the folder is gone, or the disk is full
                while not self._ended:
                    self._wake.clear()
                    try:
                        self._tick()
                    except TimeoutError:  # another process keeps the file
                        self._screen.show(None, "")
                    self._wake.wait(_TICK)
                    if self._wake.is_set() and not self._ended:
                        time.sleep(_GAP)  # so that many lines are printed at once
        finally:
            self._screen.flusher = None

    def _tick(self) -> None:
        pid = os.getpid()
        self._screen.meeting.join()
        with self._screen.meeting.held() as shared:
            assert shared is not None, "a member has a meeting"
            shared.bars[pid] = asdict(self._bar.state())
            shared.drawer = shared.drawer or pid
            mine = shared.drawer == pid
            self._screen.flusher = self._wake.set
            frame = shared.frame
            if mine and self._draw and time.monotonic() > self._drawn_at + _TICK:
                frame, self._drawn_at = self._draw(shared, self._screen), time.monotonic()
            self._screen.show(shared, frame)
        if mine and self._draw is None:
            from medkit.terminal.bars import draw  # rich, only where bars are drawn

            self._draw = draw
            self._wake.set()

    def end(self) -> None:
        """Take the bar away; another process draws the others from now on."""
        self._ended = True
        self._wake.set()
        self._thread.join()
        screen = self._screen
        with contextlib.suppress(OSError), screen.meeting.held() as shared:
            if shared is not None:
                self._leave(shared)
        screen.write(b"")  # what is left, if that failed

    def _leave(self, shared: Shared) -> None:
        shared.bars.pop(os.getpid(), None)
        state = self._bar.state()
        shared.ended[state.pipe_out] = state.passed_on
        frame = shared.frame if shared.bars else ""
        if shared.drawer == os.getpid():
            shared.drawer = None
            frame = self._draw(shared, self._screen) if self._draw and shared.bars else ""
        self._screen.show(shared, frame)
        self._screen.meeting.leave()


_bar: Bar | None = None


@contextlib.contextmanager
def progress_bar(
    name: str,
    total: Callable[[], int | None] = lambda: None,
    *,
    wanted: bool = True,
    lines: Lines = "done",
    follows: bool = False,
) -> Iterator[Bar]:
    """Show a bar on stderr within the block, if that is a terminal.

    Args:
        name: of the command or task.
        total: returns the number of cases, None while it is not known.
        wanted: False for a bar that only counts.
        lines: how many lines the next stage of the pipe gets.
        follows: whether each line of the stage before is a case.
    """
    global _bar
    bar, outer = Bar(name, total, lines, follows=follows), _bar
    screen = screen_of(sys.stderr) if wanted and outer is None else None
    ticker = _Ticker(bar, screen) if screen is not None else None
    _bar = outer or (bar if ticker else None)
    try:
        yield bar
    finally:
        _bar = outer
        if ticker:
            ticker.end()


def bar_of(name: str, count: int) -> AbstractContextManager[Bar]:
    """Show a bar of a command for so many cases within the block, unless the user's variable says not to."""
    return progress_bar(name, lambda: count, wanted=not os.environ.get("MEDKIT_NO_PROGRESS"))


def has_bar() -> bool:
    """Return whether this process shows a bar."""
    return _bar is not None


def set_progress(done: int, total: int | None, *, text: str, whole: float, left: float | None) -> None:
    """Set what the bar shows of work that is no list of cases (see `Bar.set`)."""
    if _bar is not None:
        _bar.set(done, total, text=text, whole=whole, left=left)


@contextlib.contextmanager
def working_on(case: str, doing: str = "") -> Iterator[None]:
    """Within the block, the bar says that this thread works on a case; empty: on the one it works on already."""
    with _bar.activity(case, doing) if _bar else contextlib.nullcontext():
        yield


@contextlib.contextmanager
def steps(total: int, unit: str) -> Iterator[Callable[[], None]]:
    """Yield what is to be called after each of `total` steps within a case; `unit`: what they are, in plural."""
    with _bar.steps(total, unit) if _bar else contextlib.nullcontext(lambda: None) as advance:
        yield advance


def counted(items: Sequence[_T], unit: str) -> Iterator[_T]:
    """Yield items, each of which is a step within a case; `unit`: what they are, in plural."""
    with steps(len(items), unit) as advance:
        for item in items:
            yield item
            advance()
