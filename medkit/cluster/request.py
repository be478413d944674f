"""What a job asks its scheduler for, and what records of earlier runs say it needs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from medkit.cluster.outcomes import CaseOutcome

START_UP = 60.0
"""Seconds that a stage may need before its first case, on a network disk."""
_PARENT_MB = 150.0
"""Memory of the process that plans the cases, next to the child process that works on them."""
_SPARE = 1.3
"""Factor of what is asked for to what was measured."""
_PLENTY = 8
"""From this multiple of the measured need on, more memory is no help."""
_SHORTEST_WARNING = 180
"""Least seconds from the signal to the end of a job: Slurm may send it a minute late."""


@dataclass(frozen=True)
class Request:
    """The resources of one job; None: what the cluster gives by default."""

    cpus: int = 1
    """Processors, shared by all stages of the pipe."""
    memory_mb: int | None = None
    """MiB."""
    minutes: int | None = None
    """The time limit."""
    gpus: int = 0
    """GPUs, shared by all stages of the pipe."""
    warning_seconds: int = _SHORTEST_WARNING
    """How long before the time limit the stages are told to stop."""
    arguments: tuple[str, ...] = ()
    """Further arguments for the scheduler, such as `--partition=long`."""


@dataclass(frozen=True)
class Needs:
    """What the cases of earlier runs needed."""

    memory_mb: int | None
    """MiB that a job should ask for: all stages run at once."""
    seconds_per_case: float
    """Mean time of a case in all stages, one after the other."""
    longest_case: float
    """Seconds of the longest case of a stage."""
    stages: int
    """The number of stages."""

    def minutes(self, cases: int) -> int:
        """Return the time limit for a shard of so many cases, in whole ten minutes."""
        seconds = self.stages * START_UP + _SPARE * (cases * self.seconds_per_case + self.longest_case)
        return 10 * math.ceil((seconds + self.warning_seconds) / 600)

    @property
    def warning_seconds(self) -> int:
        """How long before the time limit the stages should be told to stop, so that the longest case can end."""
        return max(_SHORTEST_WARNING, 120 + math.ceil(_SPARE * self.longest_case))


def needs_of(outcomes: Iterable[CaseOutcome], killed: Request | None = None) -> Needs | None:
    """Return what records say about the needs of a job; None if they say nothing.

    `killed`: the request of jobs in which processes were killed, likely for memory: twice as much is needed, unless
    that was plenty already.
    """
    by_task: dict[str, list[CaseOutcome]] = {}
    for outcome in outcomes:
        if outcome.error is None and not outcome.skipped:
            by_task.setdefault(outcome.task, []).append(outcome)
    if not by_task:
        return None
    peaks = [max(outcome.peak_rss_mb for outcome in cases) for cases in by_task.values()]
    memory = 100 * math.ceil(_SPARE * sum(peak + _PARENT_MB for peak in peaks) / 100) if all(peaks) else None
    if killed and killed.memory_mb:
        plenty = memory is not None and killed.memory_mb > _PLENTY * memory
        memory = max(memory or 0, killed.memory_mb if plenty else 2 * killed.memory_mb)
    seconds = [[outcome.seconds for outcome in cases] for cases in by_task.values()]
    return Needs(memory, sum(sum(s) / len(s) for s in seconds), max(map(max, seconds)), len(by_task))


def completed(request: Request, needs: Needs | None, cases: int) -> Request:
    """Return a request with what it leaves open taken from the needs of earlier runs; `cases`: in the largest shard."""
    if needs is None:
        return request
    return replace(
        request,
        memory_mb=request.memory_mb or needs.memory_mb,
        minutes=request.minutes or needs.minutes(cases),
        warning_seconds=max(request.warning_seconds, needs.warning_seconds),
    )


def raised(earlier: Request, asked: Mapping[str, Any], needs: Needs | None, cases: int) -> Request:
    """Return the request of a second try: what is asked for now, else the larger of the first one and the needs."""
    given = replace(earlier, **asked)
    if needs is None:
        return given
    memory, minutes = given.memory_mb, given.minutes
    if "memory_mb" not in asked:
        memory = max(memory or 0, needs.memory_mb or 0) or None
    if "minutes" not in asked:
        minutes = max(minutes or 0, needs.minutes(cases))
    warning = max(given.warning_seconds, needs.warning_seconds)
    return replace(given, memory_mb=memory, minutes=minutes, warning_seconds=warning)
