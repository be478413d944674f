"""Cases in this process with overlapping stages: the next one is read and the last one written while one is computed.

There are three threads, with one case in each and one waiting in front of each of the last two: the reader asks for the
cases, claims their names and prepares them, the main thread computes, the writer makes the files and prints the lines.
Cases keep their order, failed ones too; in whichever stage a case fails, the others continue.
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

from medkit.errors import RUN_ENDS
from medkit.options import RunOptions
from medkit.pipe.records import Record
from medkit.run.claims import claim_of
from medkit.run.task import CasePlan, Item, Result, Stages, Task
from medkit.run.worker import CaseInWork, CaseWorker, pause_until
from medkit.terminal.progress import working_on

log = logging.getLogger("medkit")

AT_ONCE = 32
"""Most small cases that are computed together."""
ROOM = 64 * 2**20
"""Bytes of images up to which small cases wait for each other."""
_TICK = 0.2
"""Seconds between two looks at signals."""
_PATIENCE = 5.0
"""Seconds that a stop waits for a thread to end; longer is not needed, since files appear complete or not at all."""


def runs_staged(task: Task, options: RunOptions) -> bool:
    """Return whether the stages of a task overlap.

    They do not with a limit on the time of a case, which only the main thread can keep, nor in child processes, which
    overlap anyway.
    """
    return task.staged and not options.parallel and options.timeout_per_case is None


def run_staged(
    items: Iterable[Item],
    task: Task,
    options: RunOptions,
    finished: Callable[[Record], bool],
    stopped: Callable[[], bool],
) -> bool:
    """Work on cases until none is left, `finished` returns False, or `stopped` returns True after a signal.

    `finished` is called with every record, in order, in the writer's thread, as soon as the files are complete; what it
    raises is raised here. After a signal the case that is computed is finished, and those before it. Returns whether a
    signal left cases undone.
    """
    staged = _StagedRun(items, CaseWorker(task, options, pause_until(stopped)), finished, stopped)
    try:
        return staged.work()
    finally:
        staged.close()


@dataclass
class _Job:
    """A case on its way through the stages."""

    work: CaseInWork
    held: ExitStack = field(default_factory=ExitStack)
    """Releases the claim when it is closed."""
    value: Any = None
    """What the last stage returned."""
    seconds: float = 0.0
    """Time spent in the stages, without waiting."""

    @contextlib.contextmanager
    def timed(self, doing: str) -> Iterator[None]:
        """Add the time that the block takes; the bar says what it is `doing`."""
        start = time.perf_counter()
        try:
            with working_on(self.work.plan.record.path.name, doing):
                yield
        finally:
            self.seconds += time.perf_counter() - start


class _SetUp:
    """Asks the main thread to set up the task: the first case that needs work has come."""


class _Prepared(queue.Queue[Any]):
    """Where prepared cases wait: one, or with `several` as many small ones as fit into `ROOM`."""

    several = False
    _bytes = 0

    def __init__(self) -> None:
        super().__init__(maxsize=2)

    def _qsize(self) -> int:
        """Return what `put` and `get` go by: 0 if it is empty, 1 if there is room for more, 2 if it is full."""
        count = len(self.queue)
        if not count:
            return 0
        return 1 if self.several and count < AT_ONCE and self._bytes < ROOM else 2

    def _put(self, item: Any) -> None:
        self._bytes += item.work.case.held if isinstance(item, _Job) else 0
        super()._put(item)

    def _get(self) -> Any:
        item = super()._get()
        self._bytes -= item.work.case.held if isinstance(item, _Job) else 0
        return item

    def next_job(self) -> _Job | None:
        """Take the first case that waits; None if there is none, or something else comes before it."""
        with self.mutex:
            if not (self.queue and isinstance(self.queue[0], _Job)):
                return None
            item: _Job = self._get()
            self.not_full.notify()
            return item


class _StagedRun:
    """The three threads of a run, and the queues between them."""

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
        """The set-up has ended, well or not."""
        self._over = threading.Event()
        """No more cases are wanted."""
        self._writer_error: BaseException | None = None
        """The error that ended the writer."""
        self._jobs: dict[int, _Job] = {}
        """Cases whose names are claimed, by `id`."""
        self._waiting_for_line = False
        """Whether the reader waits for the next line, and so may never come back."""
        # `Thread.join` takes a thread that lives for ended when a signal interrupts it
        self._all_read, self._all_written = threading.Event(), threading.Event()
        """Set when the reader and the writer have ended."""
        self._reader = threading.Thread(target=self._read, name="medkit reader", daemon=True)
        self._writer = threading.Thread(target=self._write, name="medkit writer", daemon=True)

    # ---- the main thread

    def work(self) -> bool:
        """Compute what the reader brings, until its end; return whether a signal came before it."""
        self._reader.start()
        self._writer.start()
        ended = self._compute_all()
        self._put(self._computed, None)
        while not self._all_written.wait(_TICK):
            pass
        if self._writer_error is not None:
            raise self._writer_error
        return not ended and self._stopped()

    def _compute_all(self) -> bool:
        """Pass on what the reader brings, computed; return whether it has come to its end."""
        while not (self._over.is_set() or self._stopped()):
            try:
                item = self._prepared.get(timeout=_TICK)
            except queue.Empty:
                continue
            if item is None:
                return True
            if isinstance(item, BaseException):
                raise item
            if isinstance(item, _SetUp):
                self._set_up()
            elif isinstance(item, _Job):
                for done in self._compute(self._with_others(item)):
                    self._put(self._computed, done)
            else:
                self._put(self._computed, item)
        return False

    def _set_up(self) -> None:
        stages = self._worker.set_up()
        assert isinstance(stages, Stages), "a Task that is staged needs Stages"
        self._stages = stages
        if stages.together is not None:
            self._prepared.several, self._computed.maxsize = True, AT_ONCE
        self._ready.set()

    def _with_others(self, job: _Job) -> list[_Job]:
        """Return a case, and those that wait behind it if cases are computed together."""
        jobs = [job]
        while self._prepared.several and len(jobs) < AT_ONCE and (more := self._prepared.next_job()) is not None:
            jobs.append(more)
        return jobs

    def _compute(self, jobs: list[_Job]) -> Iterator[_Job | Record]:
        assert self._stages is not None
        if len(jobs) > 1 and self._stages.together is not None:
            start = time.perf_counter()
            try:
                with working_on(f"{len(jobs)} cases", "computing"):
                    values = self._stages.together([job.work.case for job in jobs], [job.value for job in jobs])
            except Exception:  # computed separately, each case gets its own error
                log.debug("%d cases could not be computed together", len(jobs), exc_info=True)
            else:
                for job, value in zip(jobs, values, strict=True):
                    job.value, job.seconds = value, job.seconds + (time.perf_counter() - start) / len(jobs)
                    yield job
                return
        yield from map(self._compute_one, jobs)

    def _compute_one(self, job: _Job) -> _Job | Record:
        assert self._stages is not None
        try:
            with job.timed("computing"):
                job.value = self._stages.compute(job.work.case, job.value)
        except RUN_ENDS:
            raise
        except BaseException as error:
            return self._failed(job, error)
        return job

    def close(self) -> None:
        """End the threads, and release the names of cases that were not finished."""
        try:
            self._end_threads()
        except BaseException:  # a second signal may come here, but only once: a thread may still write
            self._end_threads()
            raise
        finally:
            for job in list(self._jobs.values()):
                self._release(job)

    def _end_threads(self) -> None:
        self._over.set()
        self._ready.set()
        self._all_written.wait(_PATIENCE)
        self._all_read.wait(0 if self._waiting_for_line else _PATIENCE)

    # ---- the reader

    def _read(self) -> None:
        try:
            for item in self._lines():
                self._put(self._prepared, item if isinstance(item, Record) else self._prepare(item))
            self._put(self._prepared, None)
        except BaseException as error:
            self._put(self._prepared, error)
        finally:
            self._all_read.set()

    def _lines(self) -> Iterator[Item]:
        items = iter(self._items)
        while not (self._over.is_set() or self._stopped()):
            self._waiting_for_line = True
            item = next(items, None)
            self._waiting_for_line = False
            if item is None or self._over.is_set():  # `close` does not wait for a case that comes only now
                return
            yield item

    def _prepare(self, plan: CasePlan) -> _Job | Record | None:
        fingerprint = self._worker.known(plan)
        if isinstance(fingerprint, Record):
            return fingerprint
        if not self._ready.is_set():
            self._put(self._prepared, _SetUp())
            self._ready.wait()
        if self._stages is None:  # the set-up has failed, or was interrupted
            return None
        job = _Job(self._worker.start(plan, claim_of(plan.targets, self._worker.pause(plan)), fingerprint))
        try:
            with job.timed("reading"):
                job.held.enter_context(job.work.claim)
                self._jobs[id(job)] = job
                if done := self._worker.made_meanwhile(plan, fingerprint):
                    self._release(job)
                    return done
                self._worker.check(plan, fingerprint)
                job.value = self._stages.prepare(job.work.case)
        except RUN_ENDS:
            raise
        except BaseException as error:
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
            self._writer_error = error
        finally:
            self._over.set()
            self._all_written.set()

    def _next_computed(self) -> _Job | Record | None:
        """Wait for the next computed case; return None at the end, and if the run was given up."""
        while True:
            try:
                return self._computed.get(timeout=_TICK)
            except queue.Empty:
                if self._over.is_set():
                    return None

    def _finish(self, job: _Job) -> Record:
        assert self._stages is not None
        try:
            with job.timed("writing"):
                result: Result = self._stages.finish(job.work.case, job.value)
                job.value = None
                self._worker.write(job.work, result)
            record = self._worker.commit(job.work, result, job.seconds)
        except RUN_ENDS:
            raise
        except BaseException as error:
            return self._failed(job, error)
        self._release(job)
        return record

    # ---- in all threads

    def _failed(self, job: _Job, error: BaseException) -> Record:
        record = self._worker.failed(job.work.plan, error)
        self._release(job)
        return record

    def _release(self, job: _Job) -> None:
        job.value = None
        self._jobs.pop(id(job), None)
        job.held.close()

    def _put(self, place: queue.Queue[Any], item: Any) -> None:
        """Wait for room and put an item there, unless the run is over and nobody would make room."""
        while not self._over.is_set():
            with contextlib.suppress(queue.Full):
                place.put(item, timeout=_TICK)
                return
