"""Cases are worked on by Dask workers (`--executor dask`), with the results and exit codes of `--workers`."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
import uuid
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any

from medkit.errors import MedkitError, OutputError, Stopped, UsageError
from medkit.options import RunOptions
from medkit.pipe.records import Record
from medkit.run import remote
from medkit.run.crew import TICK, Crew
from medkit.run.dask_jobs import JobPool
from medkit.run.dask_pools import NO_PAGES, LocalPool, Pool, SitePool, WorkersGoneError
from medkit.run.failures import failed_record
from medkit.run.task import CasePlan, Item, Task

_EVERY = 2.0
"""Seconds between two looks after the workers."""
PATIENCE = 600.0
"""Seconds without a worker, while cases wait, after which the run ends."""
_FAREWELL = 10.0
"""Seconds that workers have to end their children."""
_SETTINGS = NO_PAGES | {
    "distributed.scheduler.worker-saturation": 1.0,  # else a case that only waits fails with the one that kills
    "distributed.scheduler.allowed-failures": 2,
    "distributed.deploy.lost-worker-timeout": "2s",  # before another job is submitted
    "distributed.comm.timeouts.connect": "10s",
}
_INSTALL = "pip install 'medkit[hpc]'"
log = logging.getLogger("medkit")


def on_dask(items: Iterable[Item], task: Task, options: RunOptions, stopped: Callable[[], bool]) -> Iterator[Record]:
    """Work on the cases on Dask workers; yield records as they are finished.

    A case is begun again if its worker is lost, and fails when that has happened several times. If no worker is left,
    the remaining cases fail by name. Once `stopped()` is true, no new case is started. Raises UsageError if Dask or a
    setting is missing.
    """
    with _started(options) as pool:
        engine = _Engine(pool, task, options, stopped)
        crew = Crew(items, pool.window, lambda: engine, stopped)
        try:
            yield from crew.results()
        finally:
            engine.end()
            crew.dismiss()


@contextlib.contextmanager
def _started(options: RunOptions) -> Iterator[Pool]:
    """Within the block there are Dask workers, or will be. Raises UsageError if a package or setting is missing."""
    try:
        import dask
        import distributed  # noqa: F401

        if options.cluster:
            import dask_jobqueue  # noqa: F401
    except ImportError as error:
        raise UsageError(f"--executor dask needs {error.name}: {_INSTALL}") from None
    logging.getLogger("distributed").setLevel(logging.CRITICAL)  # what matters is said in words of medkit
    warnings.filterwarnings("ignore", "Creating scratch directories")  # a busy machine is nothing to report
    dask.config.set(_SETTINGS)
    kind = JobPool if options.cluster else SitePool if options.scheduler_file else LocalPool
    pool = kind(options)
    try:
        yield pool
    finally:
        pool.close()


class _Engine:
    """Hands cases to the workers, for all threads of a crew, and watches over them in a thread of its own."""

    def __init__(self, pool: Pool, task: Task, options: RunOptions, stopped: Callable[[], bool]) -> None:
        self._pool, self._task, self._options, self._stopped = pool, task, options, stopped
        self._run = uuid.uuid4().hex
        pool.enter(self._run)
        self._setting = remote.setting_of(self._run, task, pool.options(options))
        self._futures: dict[str, Any] = {}
        """Key -> the future of each case that is in work or waits."""
        self._lock = threading.Lock()
        self._progress = False
        self._gone: str | None = None
        """Why no further case can be worked on."""
        self._ending = threading.Event()
        self._watcher = threading.Thread(target=self._watch, daemon=True)
        self._watcher.start()

    # ---- one case, in a thread of the crew

    def alive(self) -> bool:
        """Return True: it says of each case whether it can be worked on."""
        return True

    def work(self, plan: CasePlan, stopped: Callable[[], bool]) -> Record | BaseException:
        """Return the record of a case, a failed one if its workers were lost."""
        if self._gone:
            return self._failed(plan, self._gone)
        again = self._options.overwrite or not any(map(os.path.lexists, plan.targets.names))
        done = threading.Event()
        try:
            future = self._pool.client.submit(remote.work, self._setting, replace(plan, again=again), pure=False)
            future.add_done_callback(lambda _: done.set())
        except Exception as error:
            return self._failed(plan, self._lost(error))
        with self._lock:
            self._futures[future.key] = future
        try:
            while not done.wait(TICK):
                if self._gone:
                    return self._failed(plan, self._gone)
                if self._ending.is_set():
                    return Stopped("a signal")
            return self._answer(future, plan)
        finally:
            with self._lock:
                del self._futures[future.key]
            with contextlib.suppress(Exception):  # the scheduler may be gone
                future.release()

    def _answer(self, future: Any, plan: CasePlan) -> Record | BaseException:
        from distributed import CancelledError, KilledWorker

        try:
            answer: Record | BaseException = future.result(timeout=60)
        except KilledWorker:
            return self._failed(plan, "its workers were lost, one after the other (out of memory, or out of time?)")
        except CancelledError as error:
            if self._stopped() or self._ending.is_set():
                return Stopped("a signal")
            return self._failed(plan, self._lost(error))
        except Exception as error:  # ours come as values: this one is about the worker
            return MedkitError(f"a Dask worker cannot work on cases: {type(error).__name__}: {error}")
        self._progress = self._progress or (isinstance(answer, Record) and not answer.failed)
        return answer

    def _failed(self, plan: CasePlan, reason: str) -> Record:
        error = OutputError(reason)
        return failed_record(plan.record, self._task.name, reason, error)

    def _lost(self, error: BaseException) -> str:
        self._gone = self._gone or f"not done: the Dask scheduler is gone ({type(error).__name__})"
        return self._gone

    def close(self) -> None:
        """Do nothing: other threads of the crew may still work."""

    def dismiss(self) -> None:
        """Do nothing: `end` ends all work."""

    # ---- all cases

    def _watch(self) -> None:
        """Look after the workers until the end; after a signal, take back what was not begun."""
        alive, looked = time.monotonic(), -_EVERY
        told = False
        while not self._ending.wait(TICK):
            now = time.monotonic()
            if self._stopped() and not told:
                self._ask(self._pool.stop)
            elif now - looked < _EVERY:
                continue
            looked = now
            if self._stopped():
                told = True
                self._take_back()
                continue
            if self._tended():
                alive = now
            elif now - alive > PATIENCE and not self._gone:
                reason = f" ({self._pool.trouble})" if self._pool.trouble else ""
                self._gone = f"not done: no Dask worker for {PATIENCE:g} s{reason}"
            if self._gone:
                self._take_back()

    def _tended(self) -> bool:
        """Return whether there are workers, or no case waits for one."""
        progress, self._progress = self._progress, False
        try:
            return self._pool.tend(len(self._futures), progress) or not self._futures
        except WorkersGoneError as error:
            self._gone = f"not done: {error}"
        except Exception:
            log.debug("looking after the Dask workers", exc_info=True)
        return False

    def _take_back(self) -> None:
        """Cancel the cases that no worker has begun."""
        with contextlib.suppress(Exception):  # with the scheduler gone, they are cancelled already
            begun = {key for keys in self._pool.client.processing().values() for key in keys}
            with self._lock:
                waiting = [future for key, future in self._futures.items() if key not in begun]
            self._pool.client.cancel(waiting)

    def _ask(self, function: Callable[[str], None]) -> None:
        """Ask all workers for something, and wait for a moment: one that is lost does not answer."""

        def ask() -> None:
            with contextlib.suppress(Exception):
                function(self._run)

        thread = threading.Thread(target=ask, daemon=True)
        thread.start()
        thread.join(_FAREWELL)

    def end(self) -> None:
        """End the children on all workers; those at work drop their case."""
        self._ending.set()
        self._ask(self._pool.leave)
        self._watcher.join(_FAREWELL)
