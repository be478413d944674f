"""`--records`: each process of a pipe, or of many jobs, leaves its records in a file of its own in one folder."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from medkit.errors import OutputError
from medkit.options import RunOptions
from medkit.pipe.atomic import append
from medkit.pipe.records import Record

_JOBS = ("SLURM_JOB_ID", "PBS_JOBID", "LSB_JOBID", "JOB_ID")
"""Variables in which schedulers name the job."""


class RecordFile:
    """The file of one run in the folder of `--records`; a line is added as each case finishes.

    Nothing is written without `--records`. Raises OutputError if the folder or the file cannot be written.
    """

    def __init__(self, task: str, options: RunOptions, environ: Mapping[str, str] = os.environ) -> None:
        self.path: Path | None = None
        """The file; None without `--records`."""
        if options.records and not options.dry_run:
            self.path = options.records / _name(task, options.part, environ)
            try:
                options.records.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise OutputError(f"--records {options.records}: cannot be made: {error.strerror}") from None

    def add(self, record: Record) -> None:
        """Append a record with the time, `medkit.finished`, completely or not at all."""
        if self.path is None:
            return
        block = dict(record.medkit) | {"finished": datetime.now(UTC).isoformat(timespec="milliseconds")}
        line = replace(record, medkit=block).line().encode() + b"\n"
        try:
            append(self.path, line)
        except OSError as error:
            raise OutputError(f"--records: {self.path} cannot be written: {error.strerror}") from None


def _name(task: str, part: tuple[int, int] | None, environ: Mapping[str, str]) -> str:
    """Return a name that no other running process uses: containers may share host names and process numbers."""
    job = next((environ[name] for name in _JOBS if environ.get(name)), "")
    words = [
        task.replace(" ", "-"),
        "{}-of-{}".format(*part) if part else "",
        re.sub(r"\W+", "-", job),
        socket.gethostname(),
        str(os.getpid()),
    ]
    return ".".join(filter(None, words)) + ".jsonl"
