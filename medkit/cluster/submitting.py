"""From a list of inputs and shell commands to an array of jobs, and again for the shards that are not done."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from medkit.cluster.folder import JobFolder, Submission, digest_of, path_of
from medkit.cluster.outcomes import read_outcomes
from medkit.cluster.progress import progress_of
from medkit.cluster.request import Needs, Request, completed, needs_of, raised
from medkit.cluster.schedulers import array_text, check_array, require, submit, submit_commands
from medkit.cluster.scripts import check_syntax, job_script, shard_script
from medkit.errors import InputError, MedkitError, UsageError
from medkit.pipe.atomic import write_atomically
from medkit.run.folders import is_one_case, place_of


@dataclass(frozen=True)
class Prepared:
    """A submission that is ready; nothing is written yet."""

    submission: Submission
    folder: JobFolder
    lines: Sequence[str]
    """The frozen list."""
    shards: tuple[int, ...] | None = None
    """The shards to submit; None: all."""
    notes: tuple[str, ...] = ()
    """What the user should know."""

    def text(self) -> str:
        """Return the commands that submit the jobs, and the two scripts, for `--dry-run`."""
        job, shard = job_script(self.submission, self.folder), shard_script(self.submission, self.folder)
        commands = "".join(f"# {command}\n" for command in submit_commands(self.submission, self.folder, self.shards))
        return f"{commands}# ---- {self.folder.job_script}\n{job}\n# ---- {self.folder.shard_script}\n{shard}"

    def submit(self) -> list[str]:
        """Write list and scripts, submit the jobs, and return their numbers. Raises MedkitError if that fails."""
        if self.shards == ():
            return []
        require(self.submission.scheduler)
        try:
            self.folder.freeze(self.lines)
            for shard in self.shards or ():  # its last end says nothing about the next one
                (self.folder.exit_codes / str(shard)).unlink(missing_ok=True)
            write_atomically(self.folder.shard_script, shard_script(self.submission, self.folder))
            write_atomically(self.folder.job_script, job_script(self.submission, self.folder))
        except OSError as error:
            raise MedkitError(f"{self.folder.root}: cannot be written: {error.strerror}") from None
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        jobs = submit(self.submission, self.folder, self.shards)
        replace(self.submission, jobs=(*self.submission.jobs, *jobs), submitted=now).write(self.folder)
        return jobs


def prepare(
    folder: JobFolder,
    scheduler: str,
    pipeline: str,
    inputs: Sequence[str],
    shards: int,
    asked: Mapping[str, Any],
    max_running: int | None,
    records: Path,
) -> Prepared:
    """Return a first submission. `records`: folder with records of earlier runs.

    Raises UsageError for what cannot be submitted, and MedkitError if there is no input.
    """
    if Submission.read(folder):
        raise UsageError(
            f"{folder.root}: was submitted before; --only failed submits what is not done, or choose another -o"
        )
    if re.search(r"[^\w./+@=~-]", str(folder.root)):
        raise UsageError(f"-o {folder.root}: schedulers need a path without spaces and special characters")
    _check_pipeline(pipeline)
    workdir = Path.cwd()
    lines = list(dict.fromkeys(inputs))
    if not lines:
        raise MedkitError("submit: no input arrived")
    for line in lines:
        _check_line(line, workdir)
    n = min(shards, len(lines))
    check_array(scheduler, n)
    needs = needs_of(read_outcomes(records))
    request = completed(Request(**asked), needs, _largest(lines, n))
    _check_time(request)
    digest = digest_of(os.fsencode("".join(f"{line}\n" for line in lines)))
    submission = Submission(scheduler, pipeline, str(workdir), n, digest, request, max_running)
    notes = [f"{_counted(len(lines), 'input')} in {_counted(n, 'shard')}, sha256 {digest}"]
    notes += (
        [f"{_counted(len(inputs) - len(lines), 'line')} left out that came before"] if len(lines) < len(inputs) else []
    )
    notes.append(_asked(request, needs))
    if scheduler != "slurm" and request.minutes is None:
        notes.append("without --time, the jobs cannot be told to stop before their time is over")
    return Prepared(submission, folder, lines, notes=tuple(notes))


def prepare_again(
    folder: JobFolder, scheduler: str, asked: Mapping[str, Any], max_running: int | None, records: Path
) -> Prepared:
    """Return the submission of the shards that have failed or were lost.

    Raises UsageError if nothing was submitted there, or to another scheduler, and InputError if its list was changed.
    """
    earlier = Submission.read(folder)
    if earlier is None:
        raise UsageError(f"{folder.root}: nothing was submitted there")
    if earlier.scheduler != scheduler:
        raise UsageError(f"{folder.root}: was submitted to {earlier.scheduler}, not to {scheduler}")
    lines = folder.lines()
    if digest_of(folder.inputs.read_bytes()) != earlier.sha256:
        raise InputError(f"{folder.inputs}: was changed since it was submitted (sha256 {earlier.sha256})")
    progress = progress_of(folder)
    needs = progress.needs if records == folder.records else needs_of(read_outcomes(records))
    request = raised(earlier.request, asked, needs, _largest(lines, earlier.shards))
    _check_time(request)
    submission = replace(earlier, request=request, max_running=max_running or earlier.max_running)
    shards = tuple(progress.unfinished)
    queued = sum(state not in ("ended", "lost") for state in progress.shards.values())
    notes = [f"{_counted(queued, 'shard')} still in the queue"] if queued else []
    notes += (
        [f"shard {array_text(shards)} of {earlier.shards}", _asked(request, needs)]
        if shards
        else ["nothing to do again"]
    )
    return Prepared(submission, folder, lines, shards, tuple(notes))


def _check_pipeline(pipeline: str) -> None:
    check_syntax(pipeline)
    for option, reason in (
        ("--shard", "medkit submit deals the inputs out"),
        ("--list", "the inputs come on stdin"),
        ("--group-by", "the inputs of a group might be dealt out to several jobs"),
    ):
        if re.search(rf"(?<!\S){option}(?![\w-])", pipeline):
            raise UsageError(f"{option} in the commands: {reason}")


def _check_line(line: str, workdir: Path) -> None:
    if "\n" in line or "\0" in line:
        raise UsageError(f"{line!r}: expected one name per line")
    path = Path(path_of(line, workdir))
    place = None if line.startswith("{") else place_of(path)
    if place is not None and not (place.is_dir() and is_one_case(place)):
        raise UsageError(
            f"{line}: a folder of several cases cannot be dealt out: pipe the names of its files (find {line}), or of "
            f"its DICOM series (medkit dicom list {line} --json)"
        )


def _check_time(request: Request) -> None:
    if request.minutes is not None and 60 * request.minutes <= request.warning_seconds:
        raise UsageError(
            f"--time {request.minutes}: the jobs are told to stop {request.warning_seconds} s before the end, "
            f"so that no time is left"
        )


def _largest(lines: Sequence[str], shards: int) -> int:
    """Return the number of inputs in the largest shard."""
    return -(-len(lines) // shards)


def _asked(request: Request, needs: Needs | None) -> str:
    memory = f"{request.memory_mb} MB" if request.memory_mb else "the cluster's default memory"
    time = f"{request.minutes} minutes" if request.minutes else "its default time"
    source = ", from records" if needs else ""
    return f"each job asks for {_counted(request.cpus, 'CPU')}, {memory}, {time}{source}"


def _counted(count: int, word: str) -> str:
    return f"{count} {word}{'' if count == 1 else 's'}"
