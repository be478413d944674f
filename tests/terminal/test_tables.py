"""Tables and trees: drawn on a terminal, the same lines as ever in a pipe."""

from __future__ import annotations

import fcntl
import io
import os
import pty
import re
import struct
import termios
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

import pytest

from medkit.terminal import screen
from medkit.terminal.tables import Node, aligned, columns_of, layout_on, tree_lines

ROWS = [["case", "Dice"], ["sub-01", "0.9"], [], ["mean", "0.912"]]
NODE = Node("/a/x.nii.gz", "(image)", ["medkit run x", "warning: odd"], [Node("y", "(image, missing)"), Node("z")])


@pytest.fixture
def on_terminal(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Callable[..., IO[str]]]:
    """Open a stream on a terminal of so many columns."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setattr(screen, "_screens", {})
    opened: list[int] = []
    streams = []

    def begin(columns: int, term: str = "xterm-256color") -> IO[str]:
        monkeypatch.setenv("TERM", term)
        master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        streams.append(open(slave, "w", encoding="utf-8"))  # noqa: SIM115
        opened.append(master)
        return streams[-1]

    yield begin
    for stream in streams:
        stream.close()
    for master in opened:
        os.close(master)


def plain(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


def test_a_table(on_terminal: Callable[..., IO[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = layout_on(on_terminal(60))(ROWS, 1)
    assert "\x1b[1m" in drawn
    assert [line.split() for line in plain(drawn).split("\n")] == ROWS
    narrow = layout_on(on_terminal(12))([["name", "n"], ["a-name-of-30-letters-and-figures", "7"]], 1)
    assert max(map(len, plain(narrow).split("\n"))) <= 12
    assert "".join(line.split()[0] for line in plain(narrow).split("\n")[1:]) == "a-name-of-30-letters-and-figures"


def test_names_are_no_markup(on_terminal: Callable[..., IO[str]]) -> None:
    assert "[red]x" in plain(layout_on(on_terminal(60))([["a"], ["[red]x"]], 1))
    (text,) = tree_lines(Node("[red]x"), on_terminal(60))
    assert "[red]x" in plain(text)


@pytest.mark.parametrize("term", ["dumb", ""])
def test_where_nothing_is_drawn(on_terminal: Callable[..., IO[str]], term: str) -> None:
    for stream in (on_terminal(60, term), io.StringIO(), None):
        assert columns_of(stream) is None
        assert layout_on(stream)(ROWS, 1) == aligned(ROWS, 1) == "case     Dice\nsub-01    0.9\n\nmean    0.912"


def test_a_tree(on_terminal: Callable[..., IO[str]]) -> None:
    lines = ["/a/x.nii.gz  (image)", "│   medkit run x", "│   warning: odd", "├─ y  (image, missing)", "└─ z"]
    assert list(tree_lines(NODE, io.StringIO())) == lines
    (drawn,) = tree_lines(NODE, on_terminal(60))
    words = [re.sub(r"[^\w/.:(),-]+", " ", line).strip() for line in plain(drawn).split("\n")]
    assert words == ["/a/x.nii.gz (image)", "medkit run x", "warning: odd", "y (image, missing)", "z"]
    assert re.search(r"\x1b\[33mwarning: odd", drawn)
