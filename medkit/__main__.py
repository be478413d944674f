"""`python -m medkit` is `medkit`.

While modules are still imported, which may take seconds on a network disk, SIGTERM and SIGUSR1 end medkit with 75, so
that a scheduler that wants its node back starts the job again later, and Ctrl-C with 130. After that signals are
exceptions, and a command removes what it has begun.
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
    interrupt = signal.getsignal(signal.SIGINT)
    if interrupt is not signal.SIG_IGN:  # ignored in the background of a script
        signal.signal(signal.SIGINT, stop)
    try:
        from medkit import cli

        signal.signal(signal.SIGINT, interrupt)
        cli.main()
    finally:
        for number in (*SIGNALS, signal.SIGINT):  # all is done, and while Python ends it would take back a handler
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
    """Exit with 75 or 130 at once: nothing has begun, and a module that is imported might swallow an exception."""
    if number == signal.SIGINT:
        os.write(2, b"medkit: stopped by Ctrl-C\n")
        os._exit(130)
    os.write(2, f"medkit: stopped by {signal.Signals(number).name}; run again\n".encode())
    os._exit(75)


if __name__ == "__main__":
    main()
