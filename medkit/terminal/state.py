"""What a process reports about its bar to the one that draws."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Lines = Literal["done", "all"] | int
"""How many lines a stage passes on: one for each case that did not fail, for all cases, or a number."""


@dataclass(frozen=True)
class BarState:
    """A bar as it travels, as JSON: numbers, texts and lists only."""

    name: str
    done: int
    failed: int
    total: int | None
    """Number of cases; None if it is not known."""
    lines: Lines
    pipe_in: int
    """The pipe that the lines come from, by its inode; 0 if they do not come from one."""
    pipe_out: int
    earlier: tuple[float, int]
    """A moment, by the monotonic clock, which all processes share, and how many cases were done then: where the rate is
    measured from."""
    case: str
    """The case that has been in work longest."""
    doing: str
    more: int
    """Number of other cases in work."""
    step: tuple[int, int, str] | None
    """Steps of that case: done, in all, their name."""
    share: float
    """Share of that case that is done, 0 to 1, as its steps tell."""
    whole: float | None
    """Share of all that is done, 0 to 1, where the process knows it better than from its cases."""
    left: float | None
    """Seconds left, where the process knows them better than from its rate."""

    @property
    def passed_on(self) -> int:
        """How many lines the next stage has got."""
        return self.lines if isinstance(self.lines, int) else self.done - (self.failed if self.lines == "done" else 0)
