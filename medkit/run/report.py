"""What a run reports to people: a line for each finished case, failures and looks at the end, the exit code."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from medkit.errors import InputError, OutputError, Stopped
from medkit.options import RunOptions
from medkit.pipe.atomic import write_atomically
from medkit.pipe.records import Record
from medkit.run.failures import printable, with_name
from medkit.run.looks import CasesToLookAt, need_a_look, reason_to_look
from medkit.run.task import Task

log = logging.getLogger("medkit")


@dataclass
class RunReport:
    """The finished cases of a run, counted; everything it prints goes to stderr."""

    task: Task
    options: RunOptions
    total: Callable[[], int | None]
    """Returns how many cases there are in all; None while more may be piped in."""
    failures: list[Record] = field(default_factory=list)
    """The records of failed cases, in the order in which they failed."""
    counts: Counter[str] = field(default_factory=Counter)
    """Status -> cases: `ok`, `skipped`, `failed`, or `refused` for inputs that the checks before the work rejected."""
    looks: CasesToLookAt = field(default_factory=CasesToLookAt)
    """The cases whose results a person should look at."""

    def add(self, record: Record, *, reported_before: bool) -> None:
        """Count a case and print its line; `reported_before`: an earlier stage of the pipe has reported its failure."""
        status = "skipped" if record.medkit.get("skipped") else str(record.medkit.get("status"))
        if record.failed:
            self.failures.append(record)
            if not reported_before:
                status = "refused" if record.medkit.get("refused") else status
                log.error("%s: %s", self.task.name, with_name(record))
        self.counts[status] += 1
        self.looks.add(record)
        if self.options.progress and self.options.verbosity >= 0 and not record.failed:
            say(self._line(record))

    def _line(self, record: Record) -> str:
        """Return the progress line of a finished case: its number, its image, seconds, summary, the reason to look."""
        number, total = self.counts.total(), self.total()
        source = record.sources[0] if record.sources and self.task.arity == "each" else record.path
        parts = [
            f"{self.task.name} [{number if total is None else f'{number}/{total}'}] {printable(source.name)}",
            "kept" if record.medkit.get("skipped") else f"{record.medkit.get('seconds', 0):.1f} s",
            self.task.summary(record) if self.task.summary else "",
            f"needs a look: {reason}" if (reason := reason_to_look(record)) else "",
        ]
        return "  ".join(filter(None, parts))

    def exit_code(self) -> int:
        """Return the code for the cases so far: 0, 1 for a failure, 3 if every input was refused.

        With `--strict`, a result that needs a look counts as a failure.
        """
        if not self.failures:
            return int(self.options.strict and bool(self.looks.sources))
        return InputError.exit_code if self.counts["refused"] == self.counts.total() else 1

    def stopped(self, reason: str, code: int = Stopped.exit_code) -> int:
        """Report that the run was stopped with work left, and return the exit code for that."""
        done = self.counts.total()
        cases = "1 case" if done == 1 else f"{done} cases"
        log.error("%s: stopped by %s after %s; run again with --skip-existing", self.task.name, reason, cases)
        return code

    def close(self) -> None:
        """Print all failures once more in one place, then the looks; write the failures to the file of `--failed`."""
        if self.failures and self.counts.total() > 1:
            say(f"medkit: {self.task.name}: {len(self.failures)} of {self.counts.total()} failed:")
            for record in self.failures:
                say("  " + with_name(record).split("\n")[0])
        if names := self.looks.names:  # also with -q: without it, nothing would be said of a doubtful result
            say(f"medkit: {self.task.name}: {need_a_look(names, self.counts.total())}")
        if self.options.failed and not self.options.dry_run:
            end = b"\0" if self.options.null else b"\n"
            try:
                write_atomically(self.options.failed, b"".join(os.fsencode(r.path) + end for r in self.failures))
            except OSError as error:
                raise OutputError(f"--failed {self.options.failed}: cannot be written: {error.strerror}") from None


def say(text: str) -> None:
    """Print a line on stderr, which may be closed: that must not stop the work."""
    with contextlib.suppress(OSError, AttributeError):
        print(text, file=sys.stderr, flush=True)
