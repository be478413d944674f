"""Drawing the bars of all stages of a pipe: one line each, in the order of the pipe.

Importing this imports rich, so only the process that draws does.
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from medkit.terminal.meeting import Shared
from medkit.terminal.rendering import rendered
from medkit.terminal.screen import Screen, frame_of
from medkit.terminal.state import BarState
from medkit.terminal.words import duration, rate_text

_NARROW = 80
"""Columns below which there is no rate, and bars are short."""
_SMALLEST = (20, 4)
"""Columns and rows below which nothing is drawn."""


def draw(shared: Shared, screen: Screen) -> str:
    """Return the frame of all bars; within `Meeting.held`."""
    columns, rows = screen.size
    # a shell starts the stages of a pipe in their order, which is all that is left if one between them has died
    bars = in_order([BarState(**state) for _, state in sorted(shared.bars.items())])
    if columns < _SMALLEST[0] or rows < _SMALLEST[1]:
        return ""
    return frame_of(lines_of(bars, totals(bars, shared.ended), columns - 1, rows - 2))


def in_order(bars: Sequence[BarState]) -> list[BarState]:
    """Return bars with the stages of a pipe one after another; all others keep their order."""
    waiting = list(bars)
    sources = {bar.pipe_out for bar in bars if bar.pipe_out}
    out: list[BarState] = []
    while waiting:
        # a pipe that several processes share, as those of xargs do, may lead in a circle
        bar: BarState | None = next((bar for bar in waiting if bar.pipe_in not in sources), waiting[0])
        while bar is not None:
            waiting.remove(bar)
            out.append(bar)
            fed = bar.pipe_out
            bar = next((other for other in waiting if fed and other.pipe_in == fed), None)
    return out


def totals(bars: Sequence[BarState], ended: Mapping[int, int]) -> list[int | None]:
    """Return the number of cases of each bar; one that does not know it gets as many as the stage before passes on.

    `ended`: pipe -> lines that a stage which has ended passed on.
    """
    writers = Counter(bar.pipe_out for bar in bars)
    passed = dict(ended)
    found = []
    for bar in bars:
        total = bar.total
        if total is None and bar.pipe_in and writers[bar.pipe_in] < 2:  # those of xargs come one after another
            total = passed.get(bar.pipe_in)
        found.append(total)
        if total is not None:
            passed[bar.pipe_out] = bar.passed_on + (0 if isinstance(bar.lines, int) else total - bar.done)
    return found


def lines_of(bars: Sequence[BarState], totals: Sequence[int | None], columns: int, rows: int) -> list[str]:
    """Return lines of text, with colours, that fit into columns and rows; `totals`: numbers of cases, in all."""
    wide = columns >= _NARROW - 1
    now = time.monotonic()
    table = Table.grid(padding=(0, 2 if wide else 1), expand=True)
    table.add_column(no_wrap=True, max_width=16 if wide else 10, overflow="ellipsis", style="bold")
    table.add_column(width=24 if wide else 10)
    table.add_column(no_wrap=True, justify="right")
    if wide:
        table.add_column(no_wrap=True, justify="right")
    table.add_column(no_wrap=True, justify="right")
    table.add_column(no_wrap=True, overflow="ellipsis", ratio=1)
    for bar, total in list(zip(bars, totals, strict=True))[:rows]:
        table.add_row(*_cells(bar, total, now, wide=wide))
    return rendered(table, columns, _encoding()).rstrip("\n").split("\n")


def _encoding() -> str:
    return sys.stderr.encoding if sys.stderr is not None else "utf-8"


def _cells(bar: BarState, total: int | None, now: float, *, wide: bool) -> list[Any]:
    then, before = bar.earlier
    speed = (bar.done + bar.share - before) / max(now - then, 1e-9)
    left = (total - bar.done - bar.share) / speed if total is not None and speed > 0 else None
    left = bar.left if bar.whole is not None else left
    done = (bar.done + bar.share) / max(total, 1) if total is not None else None
    done = bar.whole if bar.whole is not None else done
    size = 24 if wide else 10
    strip = ProgressBar(1.0, done or 0.0, size, pulse=done is None, animation_time=now)
    count = f"{bar.done}" if total is None else f"{bar.done}/{total}"
    rate = [_text(rate_text((bar.done - before) / max(now - then, 1e-9)) if bar.done > before else "")]
    return [_text(bar.name), strip, _text(count), *(rate if wide else []), _text(_left(left)), _text(_case(bar))]


def _left(seconds: float | None) -> str:
    return "" if seconds is None else f"{duration(max(0.0, seconds))} left"


def _case(bar: BarState) -> str:
    """Return what is said of the case at hand."""
    step = f"{bar.step[2]} {bar.step[0]}/{bar.step[1]}" if bar.step else ""
    more = f"+{bar.more}" if bar.more else ""
    failed = f"{bar.failed} failed" if bar.failed else ""
    return "  ".join(filter(None, [failed, " ".join(filter(None, [step or bar.doing, bar.case, more]))]))


def _text(text: str) -> Text:
    """Return text as it stands: a name may hold rich's markup, and what a terminal would take for a command."""
    plain = "".join(c if c.isprintable() else "?" for c in text)
    return Text(plain.encode(_encoding(), "replace").decode(_encoding()))
