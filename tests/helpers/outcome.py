"""Run commands in this process; their exit code and output."""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from click.testing import CliRunner


@dataclass(frozen=True)
class Outcome:
    """The exit code and output of a command."""

    code: int
    out: str
    err: str

    @property
    def lines(self) -> list[str]:
        """The lines of stdout."""
        return self.out.splitlines()

    @property
    def paths(self) -> list[Path]:
        """The lines of stdout as paths."""
        return [Path(line) for line in self.lines]

    @property
    def records(self) -> list[dict[str, Any]]:
        """The lines of stdout as JSON."""
        return [json.loads(line) for line in self.lines]


def in_this_process(main: Callable[..., Any]) -> Callable[..., Outcome]:
    """Return a function that calls `main` with arguments, as a shell would."""

    def run(*arguments: object, input: str | bytes = "", env: dict[str, str] | None = None, **extra: Any) -> Outcome:
        with CliRunner().isolation(input=input, env=env) as (out, err, _), _LoggingTo(sys.stderr):
            try:
                main([str(a) for a in arguments], **extra)
                code = 0
            except SystemExit as stop:
                code = int(stop.code or 0)
            return Outcome(code, os.fsdecode(out.getvalue()), os.fsdecode(err.getvalue()))

    return run


class _LoggingTo:
    """Sends log lines to `stream`, as outside pytest, which has its own handlers."""

    def __init__(self, stream: Any) -> None:
        self._handler = logging.StreamHandler(stream)
        self._handler.setFormatter(logging.Formatter("medkit: %(message)s"))

    def __enter__(self) -> None:
        logging.getLogger("medkit").addHandler(self._handler)

    def __exit__(self, *_: object) -> None:
        logging.getLogger("medkit").removeHandler(self._handler)
