"""What bars say: their order, their totals, their columns."""

from __future__ import annotations

import re
import time
from typing import Any

import pytest

from medkit.terminal.bars import in_order, lines_of, totals
from medkit.terminal.progress import Bar
from medkit.terminal.state import BarState
from medkit.terminal.words import duration, rate_text


def state(name: str = "label", **values: Any) -> BarState:
    """A bar of which nothing is done."""
    empty = {"done": 0, "failed": 0, "total": None, "lines": "done", "pipe_in": 0, "pipe_out": 0, "case": "",
             "doing": "", "more": 0, "step": None, "share": 0.0, "whole": None, "left": None}  # fmt: skip
    now = time.monotonic()
    return BarState(**({"name": name, "earlier": (now, 0)} | empty | values))


def shown(*bars: BarState, columns: int = 99, rows: int = 20) -> list[str]:
    """The lines without colours."""
    return [re.sub(r"\x1b\[[0-9;]*m", "", line) for line in lines_of(bars, totals(bars, {}), columns, rows)]


def test_stages_stand_in_the_order_of_the_pipe() -> None:
    """Other processes of the group keep their order."""
    first, second = state("1", pipe_out=7), state("2", pipe_in=7, pipe_out=8)
    third, other = state("3", pipe_in=8), state("other")
    assert [bar.name for bar in in_order([other, third, first, second])] == ["other", "1", "2", "3"]
    assert [bar.name for bar in in_order([first, third])] == ["1", "3"]
    assert [bar.name for bar in in_order([state("a", pipe_in=1, pipe_out=1), state("b", pipe_in=1)])] == ["a", "b"]


def test_a_total_comes_down_the_pipe() -> None:
    """Cases that failed send no line, but with --json they do; a table is one line."""
    first = state(total=10, done=4, failed=1, pipe_out=7)
    second = state(pipe_in=7, pipe_out=8, done=2, failed=1)
    assert totals([first, second, state(pipe_in=8)], {}) == [10, 9, 8]
    with_json = state(total=10, failed=1, lines="all", pipe_out=7)
    assert totals([with_json, second], {}) == [10, 10]
    assert totals([state(total=10, lines=1, pipe_out=7), second], {}) == [10, 1]
    assert totals([state(pipe_out=7), second], {}) == [None, None]
    assert totals([first, first, second], {})[2] is None, "xargs starts others later"


def test_a_total_stays_when_the_stage_before_has_ended() -> None:
    assert totals([state(pipe_in=7, pipe_out=8), state(pipe_in=8)], {7: 5}) == [5, 5]


def test_what_stands_on_a_line() -> None:
    now = time.monotonic()
    bar = state(done=4, failed=1, total=10, earlier=(now - 60, 2), case="a.nii.gz", doing="computing", more=2)
    assert re.fullmatch(r"label +━+[╸╺]?━+ +4/10 +2.0/min +3 min left +1 failed  computing a.nii.gz \+2", shown(bar)[0])
    steps = state(total=2, case="a.nii.gz", doing="computing", step=(3, 8, "windows"), share=0.375)
    assert shown(steps)[0].endswith("windows 3/8 a.nii.gz")
    half = state(total=2, earlier=(now - 30, 0), share=0.5)
    assert "90 s left" in shown(half)[0]
    training = state(done=3, total=100, whole=0.9, left=45.0, case="loss 0.1")
    assert "3/100" in shown(training)[0]
    assert "45 s left" in shown(training)[0]


@pytest.mark.parametrize("columns", [59, 40, 120])
def test_lines_are_never_wider_than_the_terminal(columns: int) -> None:
    long = state("multi-structure", done=5, total=9, case="sub-01_ses-02_acq-highres_T1w.nii.gz" * 3, doing="computing")
    lines = shown(long, state(case="脳" * 40), columns=columns)
    assert max(map(len, lines)) <= columns
    assert "5/9" in lines[0]


def test_more_bars_than_rows() -> None:
    assert len(shown(*[state(str(n)) for n in range(9)], rows=4)) == 4


def test_names_cannot_command_the_terminal() -> None:
    """Neither the terminal nor rich: `[red]` is a part of the name."""
    line = lines_of([state(case="\x1b[2Jx[red]\n", total=1)], [1], 99, 5)[0]
    assert "\x1b[2J" not in line
    assert line.endswith("?[2Jx[red]?")


def test_steps_within_steps() -> None:
    """The innermost are named, and all count."""
    bar = Bar("label", lambda: 2, follows=False)
    with bar.activity("a", "computing"), bar.steps(4, "tiles") as tile:
        tile()
        with bar.steps(10, "windows") as window:
            for _ in range(5):
                window()
            assert bar.state().step == (5, 10, "windows")
            assert bar.state().share == pytest.approx(1.5 / 4)
        assert bar.state().step == (1, 4, "tiles")
    assert (bar.state().case, bar.state().share) == ("", 0.0)


def test_words() -> None:
    assert [duration(s) for s in (0, 99, 100, 5999, 6000)] == ["0 s", "99 s", "2 min", "100 min", "1.7 h"]
    assert [rate_text(r) for r in (120, 1, 0.9, 0.01, 0.0001)] == ["120/s", "1.0/s", "54/min", "36/h", "0.4/h"]
