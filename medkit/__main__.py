"""`python -m medkit` is `medkit`.

Until a command has its own handlers, SIGTERM and SIGUSR1 end medkit with 75: a scheduler that wants its node back while
modules are still imported, which may take seconds on a network disk, then starts the job again later.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
"""What schedulers send some time before they kill."""


def main() -> None:
    """Run a command and exit; entry point of the `medkit` script."""
    for number in SIGNALS:
        signal.signal(number, stop)
    try:
        from medkit import cli

        cli.main()
    finally:
        for number in SIGNALS:  # all is done, and while Python ends it would take back a handler
            signal.signal(number, signal.SIG_IGN)
        _leave_stdout()


def _leave_stdout() -> None:
    """Point stdout at stderr: what libraries and plugins print while Python ends is no line of a result."""
    with contextlib.suppress(OSError, ValueError):
        if sys.stdout is not None:
            sys.stdout.flush()
    with contextlib.suppress(OSError):
        os.dup2(2, 1)


def stop(number: int, frame: FrameType | None) -> None:
    """Exit with 75 at once: nothing has begun, and an exception might be swallowed by a module that is imported."""
    os.write(2, f"medkit: stopped by {signal.Signals(number).name}; run again\n".encode())
    os._exit(75)


if __name__ == "__main__":
    main()
