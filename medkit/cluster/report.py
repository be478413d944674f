"""The state of a submission for people, and as JSON."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from medkit.cluster.progress import DONE, ENDED, FAILED, LOST, TO_DO, UNKNOWN, Progress
from medkit.cluster.schedulers import RUNNING, WAITING, array_text

_MEANING = {
    2: "wrong usage; see",
    3: "every input was refused; see",
    4: "weights are missing; see",
    5: "a plugin is not available; see",
    127: "a command was not found; see",
}
"""Exit codes of a shard that no record explains."""


def as_json(progress: Progress) -> dict[str, Any]:
    """Return the state as a JSON object."""
    cases, shards, needs = Counter(progress.cases), Counter(progress.shards.values()), progress.needs
    submission = progress.submission
    return {
        "folder": str(progress.folder.root),
        "sha256": submission.sha256 if submission else None,
        "pipeline": submission.pipeline if submission else None,
        "inputs": len(progress.cases),
        "done": cases[DONE],
        "failed": cases[FAILED],
        "to_do": cases[TO_DO],
        "unknown": cases[UNKNOWN],
        "stages": [asdict(stage) for stage in progress.stages],
        "failures": [asdict(failure) for failure in progress.failures],
        "killed": [asdict(death) for death in progress.deaths],
        "shards": {state: shards[state] for state in (ENDED, RUNNING, WAITING, LOST)},
        "unfinished_shards": progress.unfinished,
        "cases_per_minute": progress.cases_per_minute,
        "minutes_left": progress.minutes_left,
        "advice": needs and {"memory_mb": needs.memory_mb, "minutes": _minutes(progress)},
    }


def lines(progress: Progress) -> Iterator[str]:
    """Yield the state in lines for people."""
    cases = Counter(progress.cases)
    for stage in progress.stages:
        needed = f", {stage.seconds:.1f} s a case, {stage.peak_rss_mb:.0f} MB" if stage.peak_rss_mb else ""
        yield f"{stage.task}: {stage.done} done, {stage.failed} failed{needed}"
    for failure in progress.failures:
        error = failure.error.split("\n")[0]
        yield f"failed: {failure.task}: {error if failure.path in error else f'{failure.path}: {error}'}"
    for death in progress.deaths:
        yield f"killed: {death.result}: process {death.pid} on {death.host}"
    if progress.submission:
        yield from _shard_lines(progress)
    if progress.cases:
        counts = f"{cases[DONE]} done, {cases[FAILED]} failed, {cases[TO_DO]} to do"
        unknown = f", {cases[UNKNOWN]} neither in the records nor failed by name" if cases[UNKNOWN] else ""
        yield f"inputs: {counts}{unknown}, {len(progress.cases)} in all"
    if rate := progress.cases_per_minute:
        left = progress.minutes_left
        yield f"{rate:.1f} cases a minute" + (f", about {left:.0f} minutes left" if left is not None else "")
    yield from _advice(progress)


def _shard_lines(progress: Progress) -> Iterator[str]:
    states = Counter(progress.shards.values())
    named = [f"{states[state]} {state}" for state in (ENDED, RUNNING, WAITING, LOST) if states[state]]
    yield f"shards: {', '.join(named)}"
    for code, ended in sorted(progress.stopped_by_code.items()):
        yield f"exit code {code}: shard {array_text(ended)}: {_MEANING.get(code, 'see')} logs/"
    if lost := [k for k, state in progress.shards.items() if state == LOST]:
        why = (
            "not in the queue, and without an exit code"
            if progress.queue is not None
            else "the queue is not known here"
        )
        yield f"lost: shard {array_text(lost)}: {why}; see logs/"


def _advice(progress: Progress) -> Iterator[str]:
    submission, needs = progress.submission, progress.needs
    if submission and progress.unfinished:
        again = f"medkit submit {submission.scheduler} -o {progress.folder.root} --only failed"
        yield f"again: {again}  (shard {array_text(progress.unfinished)})"
    if needs:
        memory = f"--mem {needs.memory_mb}M " if needs.memory_mb else ""
        yield f"next request: {memory}--time {_minutes(progress)}"


def _minutes(progress: Progress) -> int | None:
    """Return the time limit for a shard like those of this submission."""
    shards = progress.submission.shards if progress.submission else 1
    return progress.needs.minutes(-(-len(progress.cases) // shards)) if progress.needs else None
