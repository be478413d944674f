"""What has become of every input of a submission: done, failed with a reason, or still to do."""

from __future__ import annotations

import functools
import socket
import statistics
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

from medkit.cluster.deaths import Death, find_deaths
from medkit.cluster.folder import JobFolder, Submission, path_of
from medkit.cluster.outcomes import CaseOutcome, latest, read_outcomes
from medkit.cluster.request import Needs, needs_of
from medkit.cluster.schedulers import RUNNING, WAITING, queue
from medkit.cluster.stages import is_medkit_only, tasks_of

ENDED, LOST = "ended", "lost"
DONE, FAILED, TO_DO, UNKNOWN = "done", "failed", "to do", "unknown"


@dataclass(frozen=True)
class StageCount:
    """The cases of one task."""

    task: str
    done: int
    failed: int
    seconds: float
    """Median time of a case."""
    peak_rss_mb: float
    """The largest memory of a process, MiB."""


@dataclass(frozen=True)
class Failure:
    """A case that has failed."""

    path: str
    """The file that the task was given."""
    task: str
    error: str


@dataclass
class Progress:
    """The state of a submission, or of a folder of records, at one moment."""

    folder: JobFolder
    submission: Submission | None
    outcomes: list[CaseOutcome]
    """All that the records say, the earliest first."""
    queue: Mapping[int, str] | None
    """Shard -> RUNNING or WAITING; None if the scheduler cannot be asked."""
    cases: list[str] = field(init=False)
    """DONE, FAILED, TO_DO or UNKNOWN for each line of the list; UNKNOWN: its shard has ended, and nobody says how."""
    deaths: list[Death] = field(init=False)
    """Cases that a killed process has left unfinished."""

    def __post_init__(self) -> None:
        self._latest = latest(self.outcomes)
        self._by_source: dict[str, list[CaseOutcome]] = {}
        for (_, source), outcome in self._latest.items():
            self._by_source.setdefault(source, []).append(outcome)
        count = self.submission.shards if self.submission else 0
        self._codes = {k: self.folder.exit_code(k) for k in range(1, count + 1)}
        pipeline = self.submission.pipeline if self.submission else ""
        self._expected, self._records_tell_all = Counter(tasks_of(pipeline)), is_medkit_only(pipeline)
        workdir = Path(self.submission.workdir) if self.submission else Path.cwd()
        paths = [path_of(line, workdir) for line in self.folder.lines()]
        self.cases = [self._case(path, number) for number, path in enumerate(paths)]
        deaths = find_deaths({self.folder.root, *(Path(o.path).parent for o in self._latest.values() if not o.error)})
        # some network file systems hide the locks of other machines, so that a result in work would be called dead
        here, running = socket.gethostname(), RUNNING in self.shards.values()
        self.deaths = [death for death in deaths if not running or death.host == here]

    # ---- cases

    def _case(self, path: str, number: int) -> str:
        """Return what has become of the line with a number, counted from 0."""
        found = list(self._reached(path))
        if any(outcome.error is not None for outcome in found):
            return FAILED
        if self.submission is None:
            return DONE if found else TO_DO
        code = self._codes[number % self.submission.shards + 1]
        if code == 0 or (self._tasks_done(found) and (self._records_tell_all or code == 1)):
            return DONE
        return UNKNOWN if code == 1 else TO_DO

    def _tasks_done(self, found: list[CaseOutcome]) -> bool:
        """Return whether all tasks that stand in the commands are among the outcomes of a case."""
        return bool(self._expected) and not self._expected - Counter(outcome.task for outcome in found)

    def _reached(self, path: str) -> Iterator[CaseOutcome]:
        """Yield the outcomes of a case in all stages: a result is the input of the next stage."""
        waiting, seen = [path], set()
        while waiting:
            current = waiting.pop()
            if current not in seen:
                seen.add(current)
                for outcome in self._by_source.get(current, ()):
                    yield outcome
                    if outcome.error is None:
                        waiting.append(outcome.path)

    @functools.cached_property
    def failures(self) -> list[Failure]:
        """All cases that have failed, in any stage."""
        return [Failure(source, o.task, o.error) for (_, source), o in self._latest.items() if o.error is not None]

    @functools.cached_property
    def stages(self) -> list[StageCount]:
        """The tasks in the order in which they were first finished."""
        tasks = dict.fromkeys(outcome.task for outcome in self.outcomes)
        return [self._stage(task) for task in tasks]

    def _stage(self, task: str) -> StageCount:
        cases = [outcome for (name, _), outcome in self._latest.items() if name == task]
        worked = [o for o in self.outcomes if o.task == task and o.error is None and not o.skipped]
        failed = sum(outcome.error is not None for outcome in cases)
        seconds = statistics.median(o.seconds for o in worked) if worked else 0.0
        return StageCount(task, len(cases) - failed, failed, seconds, max((o.peak_rss_mb for o in worked), default=0.0))

    # ---- shards

    @functools.cached_property
    def shards(self) -> dict[int, str]:
        """Shard -> ENDED, RUNNING, WAITING, or LOST: neither has it an exit code nor is it in the queue."""
        return {k: self._shard(k) for k in self._codes}

    def _shard(self, k: int) -> str:
        if self._codes[k] is not None:
            return ENDED
        return LOST if self.queue is None else self.queue.get(k, LOST)

    @property
    def stopped_by_code(self) -> dict[int, list[int]]:
        """Exit code -> the shards that ended with it, of those that are not explained by cases that failed."""
        found: dict[int, list[int]] = {}
        for k, code in self._codes.items():
            if code not in (None, 0, 1):
                found.setdefault(code, []).append(k)
        return found

    @property
    def unfinished(self) -> list[int]:
        """The shards that are worth submitting again: lost, or ended with another exit code than 0."""
        return [k for k, state in self.shards.items() if state == LOST or (state == ENDED and self._codes[k])]

    @property
    def exit_code(self) -> int:
        """0 if all is done, 75 if there is work left, 1 if all has ended and something failed."""
        if TO_DO in self.cases:
            return 75
        bad = FAILED in self.cases or UNKNOWN in self.cases or bool(self.failures)
        if bad and {RUNNING, WAITING} & set(self.shards.values()):
            return 75
        return int(bad)

    # ---- time

    @property
    def cases_per_minute(self) -> float | None:
        """The rate of the last task since the last submission; None for fewer than two cases."""
        begin = self.submission.submitted if self.submission else ""
        since = [o for o in self.outcomes if not o.skipped and o.finished.isoformat() >= begin]
        worked = [o for o in since if o.task == self.stages[-1].task]
        if len(worked) < 2:
            return None
        start = min(o.finished - timedelta(seconds=o.seconds) for o in since)
        minutes = (worked[-1].finished - start).total_seconds() / 60
        return len(worked) / minutes if minutes > 0 else None

    @property
    def minutes_left(self) -> float | None:
        """How long it will take at this rate; None if that is unknown, or nothing runs."""
        rate = self.cases_per_minute
        if not rate or RUNNING not in self.shards.values():
            return None
        return self.cases.count(TO_DO) / rate

    @functools.cached_property
    def needs(self) -> Needs | None:
        """What the next request should ask for, from all that was worked on."""
        killed = bool(self.deaths) or any("SIGKILL" in failure.error for failure in self.failures)
        return needs_of(self.outcomes, self.submission.request if self.submission and killed else None)


def progress_of(folder: JobFolder) -> Progress:
    """Return the state of a folder. Raises InputError if its submission cannot be read."""
    submission = Submission.read(folder)
    # the queue first: a job that ends between the two looks has then left its exit code
    waiting = queue(submission) if submission and submission.jobs else None
    return Progress(folder, submission, read_outcomes(folder.records), waiting)
