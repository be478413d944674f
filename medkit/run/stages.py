"""Cases one after the other in this process, the next one read and the last one written while one is computed.

Three threads, one case in each and one waiting before each of the last two: the reader asks for the cases, claims
their names and prepares them, the main thread computes, the writer makes the files and prints the lines. Cases keep
their order, a failed one included; whichever stage a case fails in, the others go on.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from medkit.options import RunOptions
from medkit.pipe.records import Record
from medkit.run.claims import Claim, ResultFingerprint, Unclaimed, claim_of
from medkit.run.processes import Item
from medkit.run.task import Case, CasePlan, Result, Stages, Task
from medkit.run.worker import CaseWorker

log = logging.getLogger("medkit")


def possible(task: Task, options: RunOptions) -> bool:
    """Whether cases can overlap: a limit on a case's time needs it alone, and child processes overlap anyhow."""
    return task.staged and not options.workers and options.timeout_per_case is None


def run(
    items: Iterable[Item],
    task: Task,
    options: RunOptions,
    finished: Callable[[Record], bool],
    stopped: Callable[[], bool],
) -> bool:
    """Works on cases until there is none, `finished` says that nobody wants more, or `stopped` after a signal.

    `finished` is called with every record, in order, in the writer's thread, as soon as the files are complete; what it
    raises is raised here. After a signal the case that is computed is finished, and those before it. Gives whether a
    signal left work undone.
    """
    overlap = _Overlap(items, CaseWorker(task, options), finished, stopped)
    try:
        return overlap.work()
    finally:
        overlap.close()


@dataclass
class _Job:
    """A case on its way."""

    plan: CasePlan
    fingerprint: ResultFingerprint
    case: Case
    claim: Claim | Unclaimed
    held: ExitStack = field(default_factory=ExitStack)
    """Lets go of the claim."""
    value: Any = None
    """What the last stage gave."""
    seconds: float = 0.0
    """Spent in the stages, waiting apart."""

    @contextlib.contextmanager
    def timed(self) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds += time.perf_counter() - start


class _SetUp:
    """Asks the main thread to set the task up: the first case that needs work has come."""


_TICK = 0.2
"""Seconds between two looks at signals."""
AT_ONCE = 32
"""Small cases that are computed together at most."""
ROOM = 64 * 2**20
"""Bytes of images up to which small cases wait for each other."""


class _Prepared(queue.Queue[Any]):
    """Where prepared cases wait: one, or with `several` as many small ones as fit into `ROOM`."""

    several = False
    _bytes = 0

    def __init__(self) -> None:
        super().__init__(maxsize=2)

    def _qsize(self) -> int:
        """What `put` and `get` go by: nothing, some, or no room for more."""
        count = len(self.queue)
        if not count:
            return 0
        return 1 if self.several and count < AT_ONCE and self._bytes < ROOM else 2

    def _put(self, item: Any) -> None:
        self._bytes += item.case.held if isinstance(item, _Job) else 0
        super()._put(item)

    def _get(self) -> Any:
        item = super()._get()
        self._bytes -= item.case.held if isinstance(item, _Job) else 0
        return item

    def next_job(self) -> _Job | None:
        """The case that waits first; None where none waits, or something else comes before it."""
        with self.mutex:
            if not (self.queue and isinstance(self.queue[0], _Job)):
                return None
            item: _Job = self._get()
            self.not_full.notify()
            return item


class _Overlap:
    def __init__(
        self,
        items: Iterable[Item],
        worker: CaseWorker,
        finished: Callable[[Record], bool],
        stopped: Callable[[], bool],
    ) -> None:
        self._items, self._worker, self._finished, self._stopped = items, worker, finished, stopped
        self._prepared = _Prepared()
        self._computed: queue.Queue[_Job | Record | None] = queue.Queue(maxsize=1)
        self._stages: Stages | None = None
        self._ready = threading.Event()
        self._over = threading.Event()
        """No more cases are wanted."""
        self._trouble: BaseException | None = None
        """What ended the writer."""
        self._jobs: dict[int, _Job] = {}
        """Those whose names are claimed, by `id`."""
        self._reader = threading.Thread(target=self._read, name="medkit reader", daemon=True)
        self._writer = threading.Thread(target=self._write, name="medkit writer", daemon=True)

    # ---- the main thread

    def work(self) -> bool:
        """Computes what the reader brings, until its end; whether a signal came before it."""
        self._reader.start()
        self._writer.start()
        ended = False
        while not (ended or self._over.is_set() or self._stopped()):
            try:
                item = self._prepared.get(timeout=_TICK)
            except queue.Empty:
                continue
            if isinstance(item, BaseException):
                raise item
            if isinstance(item, _SetUp):
                self._set_up()
            elif item is None:
                ended = True
            elif isinstance(item, _Job):
                for done in self._compute(self._with_others(item)):
                    self._put(self._computed, done)
            else:
                self._put(self._computed, item)
        self._put(self._computed, None)
        while self._writer.is_alive():
            self._writer.join(_TICK)
        if self._trouble is not None:
            raise self._trouble
        return not ended and self._stopped()

    def _set_up(self) -> None:
        stages = self._worker.set_up()
        assert isinstance(stages, Stages), "a Task that is staged needs Stages"
        self._stages = stages
        if stages.together is not None:
            self._prepared.several, self._computed.maxsize = True, AT_ONCE
        self._ready.set()

    def _with_others(self, job: _Job) -> list[_Job]:
        """A case, and those that wait behind it, where cases are computed together."""
        jobs = [job]
        while self._prepared.several and len(jobs) < AT_ONCE and (more := self._prepared.next_job()) is not None:
            jobs.append(more)
        return jobs

    def _compute(self, jobs: list[_Job]) -> Iterator[_Job | Record]:
        assert self._stages is not None
        if len(jobs) > 1 and self._stages.together is not None:
            start = time.perf_counter()
            try:
                values = self._stages.together([job.case for job in jobs], [job.value for job in jobs])
            except Exception:  # whose fault it is shows when each is alone
                log.debug("%d cases could not be computed together", len(jobs), exc_info=True)
            else:
                for job, value in zip(jobs, values, strict=True):
                    job.value, job.seconds = value, job.seconds + (time.perf_counter() - start) / len(jobs)
                    yield job
                return
        yield from map(self._compute_alone, jobs)

    def _compute_alone(self, job: _Job) -> _Job | Record:
        assert self._stages is not None
        try:
            with job.timed():
                job.value = self._stages.compute(job.case, job.value)
        except (Exception, SystemExit) as error:
            return self._failed(job, error)
        return job

    def close(self) -> None:
        """Ends the threads, and lets go of the names of cases that come to nothing."""
        self._over.set()
        self._ready.set()
        self._writer.join(_PATIENCE)
        self._reader.join(0 if self._waiting else _PATIENCE)
        for job in list(self._jobs.values()):
            self._release(job)

    # ---- the reader

    def _read(self) -> None:
        try:
            for item in self._lines():
                self._put(self._prepared, item if isinstance(item, Record) else self._prepare(item))
            self._put(self._prepared, None)
        except BaseException as error:
            self._put(self._prepared, error)

    def _lines(self) -> Iterator[Item]:
        items = iter(self._items)
        while not (self._over.is_set() or self._stopped()):
            self._waiting = True
            item = next(items, None)
            self._waiting = False
            if item is None or self._over.is_set():  # whoever closes does not wait for what was just waiting
                return
            yield item

    _waiting = False
    """Whether the reader waits for the next line, and so may never come back."""

    def _prepare(self, plan: CasePlan) -> _Job | Record | None:
        fingerprint = self._worker.known(plan)
        if isinstance(fingerprint, Record):
            return fingerprint
        if not self._ready.is_set():
            self._put(self._prepared, _SetUp())
            self._ready.wait()
        if self._stages is None:  # the set-up has failed, or was interrupted
            return None
        claim = claim_of(plan.targets)
        job = _Job(plan, fingerprint, Case(plan, self._worker.task, self._worker.options, self._worker.runtime), claim)
        try:
            with job.timed():
                job.held.enter_context(claim)
                self._jobs[id(job)] = job
                self._worker.check(plan, fingerprint)
                job.value = self._stages.prepare(job.case)
        except (Exception, SystemExit) as error:
            return self._failed(job, error)
        return job

    # ---- the writer

    def _write(self) -> None:
        try:
            while (item := self._next_computed()) is not None:
                record = self._finish(item) if isinstance(item, _Job) else item
                if not self._finished(record):
                    return
        except BaseException as error:
            self._trouble = error
        finally:
            self._over.set()

    def _next_computed(self) -> _Job | Record | None:
        """What was computed next; None at the end, and where none will come since the run was given up."""
        while True:
            try:
                return self._computed.get(timeout=_TICK)
            except queue.Empty:
                if self._over.is_set():
                    return None

    def _finish(self, job: _Job) -> Record:
        assert self._stages is not None
        try:
            with job.timed():
                result: Result = self._stages.finish(job.case, job.value)
                job.value = None
                self._worker.write(job.plan, result, job.claim)
            record = self._worker.commit(job.plan, job.case, result, job.claim, job.fingerprint, job.seconds)
        except (Exception, SystemExit) as error:
            return self._failed(job, error)
        self._release(job)
        return record

    # ---- all

    def _failed(self, job: _Job, error: BaseException) -> Record:
        record = self._worker.failed(job.plan, error)
        self._release(job)
        return record

    def _release(self, job: _Job) -> None:
        job.value = None
        self._jobs.pop(id(job), None)
        job.held.close()

    def _put(self, place: queue.Queue[Any], item: Any) -> None:
        """Waits for room, unless nobody will make any."""
        while not self._over.is_set():
            with contextlib.suppress(queue.Full):
                place.put(item, timeout=_TICK)
                return


_PATIENCE = 5.0
"""Seconds that a stop waits for a thread to end what it is doing; whole files are safe without."""
