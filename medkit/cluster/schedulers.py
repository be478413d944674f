"""Slurm, PBS, Grid Engine and LSF: submitting an array, and asking which of its jobs are still in the queue."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from medkit.cluster.folder import JobFolder, Submission
from medkit.cluster.scripts import job_name
from medkit.errors import MedkitError, UsageError

RUNNING, WAITING = "running", "waiting"
_SECONDS = 60
"""How long a scheduler may take to answer."""


@dataclass(frozen=True)
class Scheduler:
    """How to talk to one scheduler."""

    submit: Callable[[Submission, JobFolder, Sequence[int] | None], list[list[str]]]
    """Returns the commands that submit the given shards, all for None; some schedulers need several."""
    job: str
    """Pattern whose first group is the number of the job in what they print."""
    queue: list[str]
    """The command that lists the user's jobs."""
    read_queue: Callable[[str, Sequence[str]], dict[int, str]]
    """Returns shard -> RUNNING or WAITING, from what that command prints and the numbers of the jobs."""
    script_on_stdin: bool = False
    """Whether the job script is read from stdin."""


def spans(shards: Iterable[int]) -> list[tuple[int, int]]:
    """Return runs of successive numbers as (first, last).

    >>> spans([3, 7, 8, 9])
    [(3, 3), (7, 9)]
    """
    ordered = sorted(shards)
    starts = [ordered[0], *(b for a, b in pairwise(ordered) if b != a + 1)]
    ends = [*(a for a, b in pairwise(ordered) if b != a + 1), ordered[-1]]
    return list(zip(starts, ends, strict=True))


def array_text(shards: Iterable[int], max_running: int | None = None) -> str:
    """Return the numbers of an array's tasks as Slurm and LSF write them.

    >>> array_text([3, 7, 8, 9], 2)
    '3,7-9%2'
    """
    text = ",".join(str(a) if a == b else f"{a}-{b}" for a, b in spans(shards))
    return f"{text}%{max_running}" if max_running else text


# ---- Slurm


def _submit_slurm(submission: Submission, folder: JobFolder, shards: Sequence[int] | None) -> list[list[str]]:
    array = [] if shards is None else [f"--array={array_text(shards, submission.max_running)}"]
    return [["sbatch", "--parsable", *array, str(folder.job_script)]]


def _read_squeue(text: str, jobs: Sequence[str]) -> dict[int, str]:
    found = {}
    for line in text.splitlines():
        job, shard, state = line.split()
        if job in jobs and shard.isdecimal():
            found[int(shard)] = RUNNING if state in ("RUNNING", "COMPLETING") else WAITING
    return found


# ---- PBS


def _submit_pbs(submission: Submission, folder: JobFolder, shards: Sequence[int] | None) -> list[list[str]]:
    script = str(folder.job_script)
    commands = []
    for first, last in spans(shards or range(1, submission.shards + 1)):
        if first == last:  # PBS knows no array of one
            # `qstat` shows 16 characters of a name, and nothing else tells the shard
            commands.append(["qsub", "-v", f"K={first}", "-N", f"k{first}-{submission.sha256[:6]}", script])
        else:
            most = f"%{submission.max_running}" if submission.max_running else ""
            commands.append(["qsub", "-J", f"{first}-{last}{most}", script])
    return commands


def _read_pbs(text: str, jobs: Sequence[str]) -> dict[int, str]:
    numbers = {job.split(".")[0].removesuffix("[]") for job in jobs}
    found = {}
    for line in text.splitlines():
        words = line.split()
        match = re.match(r"(\d+)(?:\[(\d+)\])?[.\s]", line)
        if match is None or match[1] not in numbers or len(words) < 5 or words[-2] not in "RQHSWTBE":
            continue
        shard = match[2] or words[1].partition("-")[0].removeprefix("k")
        if shard.isdecimal():
            found[int(shard)] = RUNNING if words[-2] in "RE" else WAITING
    return found


# ---- Grid Engine


def _submit_sge(submission: Submission, folder: JobFolder, shards: Sequence[int] | None) -> list[list[str]]:
    script = str(folder.job_script)
    if shards is None:
        return [["qsub", "-terse", script]]
    return [["qsub", "-terse", "-t", f"{first}-{last}", script] for first, last in spans(shards)]


def _read_sge(text: str, jobs: Sequence[str]) -> dict[int, str]:
    found = {}
    for line in text.splitlines():
        words = line.split()
        if len(words) < 6 or words[0] not in jobs:
            continue
        for shard in _sge_tasks(words[-1]):
            found[shard] = RUNNING if words[4] in ("r", "t", "Rr", "Rt") else WAITING
    return found


def _sge_tasks(text: str) -> Iterator[int]:
    """Yield the tasks that `qstat` writes as `3`, `5-8:1` or `1,4`."""
    for part in text.split(","):
        if match := re.fullmatch(r"(\d+)(?:-(\d+):(\d+))?", part):
            first, last, step = int(match[1]), int(match[2] or match[1]), int(match[3] or 1)
            yield from range(first, last + 1, step)


# ---- LSF


def _submit_lsf(submission: Submission, folder: JobFolder, shards: Sequence[int] | None) -> list[list[str]]:
    if shards is None:
        return [["bsub"]]
    most = f"%{submission.max_running}" if submission.max_running else ""
    return [["bsub", "-J", f"{job_name(submission)}[{array_text(shards)}]{most}"]]


def _read_bjobs(text: str, jobs: Sequence[str]) -> dict[int, str]:
    found = {}
    for line in text.splitlines():
        match = re.match(r"(\d+)(?:\[\d+\])?\s+(\d+)\s+(\w+)", line)
        if match and match[1] in jobs and match[3] not in ("DONE", "EXIT", "ZOMBI"):
            found[int(match[2])] = RUNNING if match[3] == "RUN" else WAITING
    return found


SCHEDULERS = {
    "slurm": Scheduler(
        _submit_slurm, r"^(\d+)", ["squeue", "--me", "--noheader", "--array", "--format=%F %K %T"], _read_squeue
    ),
    "pbs": Scheduler(_submit_pbs, r"^(\S+)", ["qstat", "-t"], _read_pbs),
    "sge": Scheduler(_submit_sge, r"^(\d+)", ["qstat"], _read_sge),
    "lsf": Scheduler(
        _submit_lsf, r"Job <(\d+)>", ["bjobs", "-noheader", "-o", "jobid jobindex stat"], _read_bjobs, True
    ),
}


def submit(submission: Submission, folder: JobFolder, shards: Sequence[int] | None = None) -> list[str]:
    """Submit shards, all for None, and return the numbers of the jobs.

    Raises UsageError if the scheduler is not installed here, MedkitError if it refuses.
    """
    scheduler = SCHEDULERS[submission.scheduler]
    jobs = []
    for command in scheduler.submit(submission, folder, shards):
        require(submission.scheduler)
        text = folder.job_script.read_text() if scheduler.script_on_stdin else None
        done = subprocess.run(command, input=text, capture_output=True, text=True)
        number = re.search(scheduler.job, done.stdout, re.MULTILINE)
        if done.returncode or number is None:
            raise MedkitError(f"{command[0]} refused the job: {(done.stderr or done.stdout).strip()}")
        jobs.append(number[1])
    return jobs


def submit_commands(submission: Submission, folder: JobFolder, shards: Sequence[int] | None) -> list[str]:
    """Return the commands that submit shards, as the shell reads them; none if there is nothing to submit."""
    if shards is not None and not shards:
        return []
    scheduler = SCHEDULERS[submission.scheduler]
    end = f" < {folder.job_script}" if scheduler.script_on_stdin else ""
    return [shlex.join(command) + end for command in scheduler.submit(submission, folder, shards)]


def require(name: str) -> None:
    """Raise UsageError if a scheduler's commands are not installed here."""
    program = {"slurm": "sbatch", "lsf": "bsub"}.get(name, "qsub")
    if shutil.which(program) is None:
        raise UsageError(f"{name}: there is no {program} on this machine; --dry-run prints the scripts")


def check_array(name: str, shards: int) -> None:
    """Raise UsageError if Slurm's arrays are shorter than the number of shards."""
    if name != "slurm" or (text := _answer(["scontrol", "show", "config"])) is None:
        return
    match = re.search(r"^MaxArraySize\s*=\s*(\d+)", text, re.MULTILINE)
    if match and shards >= int(match[1]):
        raise UsageError(f"--shards {shards}: this cluster's arrays have at most {int(match[1]) - 1} jobs")


def queue(submission: Submission) -> dict[int, str] | None:
    """Return shard -> RUNNING or WAITING for those in the queue; None if the scheduler cannot be asked here."""
    scheduler = SCHEDULERS[submission.scheduler]
    text = _answer(scheduler.queue)
    return None if text is None else scheduler.read_queue(text, submission.jobs)


def _answer(command: list[str]) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS)
    except (OSError, subprocess.TimeoutExpired):
        return None
    nothing = "job found" in done.stderr  # how LSF says that there are none
    return None if done.returncode and not nothing else done.stdout
