"""A terminal with an interactive bash, and what a person would see on it."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import select
import struct
import subprocess
import termios
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import pyte

PROMPT = "ready> "


class Terminal:
    """A pseudo-terminal; its screen is emulated by pyte."""

    def __init__(self, environment: Mapping[str, str], folder: Path, columns: int = 100, rows: int = 30) -> None:
        self.screen = pyte.HistoryScreen(columns, rows, history=1000)
        self._stream = pyte.ByteStream(self.screen)
        self.raw = b""
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        name = os.ttyname(slave)
        settings = {"TERM": "xterm-256color", "HISTFILE": "", "XDG_RUNTIME_DIR": str(folder)}
        # a session leader that opens a terminal gets it as its own
        # a bash that is not interactive takes PS1 away
        begin = f"exec env PS1='{PROMPT}' bash --norc --noprofile -i <{name} >{name} 2>&1"
        self._shell = subprocess.Popen(
            ["bash", "-c", begin], cwd=folder, env={**environment, **settings}, start_new_session=True
        )
        os.close(slave)
        self.wait(lambda: self.prompted)

    def close(self) -> None:
        """Close the terminal."""
        os.close(self._master)  # all that runs there gets SIGHUP
        self._shell.wait(30)

    def type(self, text: str) -> None:
        """Press keys."""
        os.write(self._master, text.encode())

    def run(self, line: str) -> None:
        """Clear the screen and run a line of shell, without waiting for its end."""
        self.type(f"clear; {line}\n")
        self.wait(lambda: not self.prompted)

    def read(self) -> None:
        """Take in what was printed."""
        while select.select([self._master], [], [], 0.02)[0]:
            with contextlib.suppress(OSError):
                data = os.read(self._master, 65536)
                self.raw += data
                self._stream.feed(data)

    def wait(self, condition: Callable[[], object], seconds: float = 40) -> None:
        """Return once a condition on the screen holds."""
        deadline = time.monotonic() + seconds
        while True:
            self.read()
            if condition():
                return
            assert time.monotonic() < deadline, "waited in vain:\n" + "\n".join(self.lines)

    @property
    def lines(self) -> list[str]:
        """What stands on the screen, without empty lines at its end."""
        found = [line.rstrip() for line in self.screen.display]
        while found and not found[-1]:
            found.pop()
        return found

    @property
    def history(self) -> list[str]:
        """The lines that have left the screen at its top."""
        return ["".join(row[n].data for n in range(self.screen.columns)).rstrip() for row in self.screen.history.top]

    @property
    def bars(self) -> list[str]:
        """The lines that are bars."""
        return [line for line in self.lines if "━" in line]

    @property
    def prompted(self) -> bool:
        """Whether the shell waits for a line: the cursor stands behind a prompt, with nothing below."""
        at = self.screen.cursor
        return (
            self.screen.display[at.y].rstrip() == PROMPT.rstrip()
            and at.x == len(PROMPT)
            and len(self.lines) == at.y + 1
        )
