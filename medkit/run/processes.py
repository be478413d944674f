"""Where cases are worked on: in this process, or in child processes that are replaced when they die."""

from __future__ import annotations

import contextlib
import functools
import math
import multiprocessing
import os
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from multiprocessing import resource_tracker, util
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from types import FrameType
from typing import Any

from medkit.errors import MedkitError, OutputError, Stopped
from medkit.options import RunOptions
from medkit.pipe.records import Record
from medkit.run.crew import TICK, Crew
from medkit.run.failures import failed_record
from medkit.run.task import CasePlan, Item, Task
from medkit.run.worker import PAUSE, CaseWorker, pause_until
from medkit.terminal.progress import working_on
from medkit.terminal.screen import attach as attach_to_terminal

_PATIENCE = 5.0
"""Seconds that a child has to drop its case before it is killed."""
_START_UP = 60.0
"""Seconds a child may need to import and load everything before its first case."""
_PARENTS_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
"""Signals that children ignore: a Ctrl-C reaches all processes of a terminal, a scheduler's signal all of a job, and
the parent decides what happens."""
_SAFE_PATH = "PYTHONSAFEPATH"
_starting = threading.Lock()
"""Held while a child is started with a changed environment."""


def in_this_process(
    items: Iterable[Item], task: Task, options: RunOptions, stopped: Callable[[], bool]
) -> Iterator[Record]:
    """Work on the cases one at a time, in this process.

    Raises Stopped if `stopped()` is true while a result is waited for that another process makes.
    """
    work = CaseWorker(task, options, pause_until(stopped))
    for item in items:
        yield item if isinstance(item, Record) else work(item)


def in_children(
    items: Iterable[Item], task: Task, options: RunOptions, stopped: Callable[[], bool]
) -> Iterator[Record]:
    """Work on the cases in `options.workers` child processes; yield records as they are finished.

    A child that dies fails its case and is replaced. Once `stopped()` is true, no new case is started.
    """
    crew = Crew(items, options.workers, lambda: ChildProcess(task, options), stopped)
    try:
        yield from crew.results()
    finally:
        crew.dismiss()


class ChildProcess:
    """A child process that works on plans sent through a pipe."""

    def __init__(self, task: Task, options: RunOptions) -> None:
        context = multiprocessing.get_context("spawn")  # torch's thread pools do not survive a fork
        self._pipe, theirs = context.Pipe()
        with _safe_path() as given:
            self._process = context.Process(target=_child_main, args=(theirs, task, options, given), daemon=True)
            resource_tracker.ensure_running()  # starting it unblocks signals in this thread, so it comes first
            # blocked until the child has its handlers: a signal while Python starts would end in a traceback
            before = signal.pthread_sigmask(signal.SIG_BLOCK, _PARENTS_SIGNALS)
            self._process.start()
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        theirs.close()
        self._task, self._options = task, options
        # before multiprocessing waits for its processes at the end of Python: they ignore its SIGTERM
        util.Finalize(self, _dismiss, args=(self._process,), exitpriority=1)

    def alive(self) -> bool:
        """Return whether the process still runs."""
        return self._process.is_alive()

    def work(self, plan: CasePlan, stopped: Callable[[], bool] = lambda: False) -> Record | BaseException:
        """Return the record of a case, a failed one if the child died; an exception if the set-up failed.

        Stopped is returned if `stopped()` became true while the child waited for another process.
        """
        try:
            with working_on(plan.record.path.name):
                self._pipe.send(plan)
                return self._answer(stopped)
        except (EOFError, OSError):
            self._process.join()
            error = OutputError(f"its worker process died ({_end(self._process.exitcode)})")
            return failed_record(plan.record, self._task.name, str(error), error)

    def _answer(self, stopped: Callable[[], bool]) -> Record | BaseException:
        """Wait for what the child sends in the end; while it waits for another process, it sends None."""
        limit = self._options.timeout_per_case
        patience = math.inf if limit is None else _START_UP + 2 * limit
        told, deadline = False, time.monotonic() + patience
        while True:
            if self._pipe.poll(TICK):
                answer: Record | BaseException | None = self._pipe.recv()
                if answer is not None:
                    return answer
                deadline = time.monotonic() + patience
            elif time.monotonic() > deadline:
                self._process.kill()  # it stops itself at the limit, unless it hangs in native code
            if stopped() and not told:
                self._pipe.send(None)  # the end of its wait, or of its work after this case
                told = True

    def close(self) -> None:
        """Let the child end, since no case is left."""
        self._pipe.close()
        self._process.join()

    def dismiss(self) -> None:
        """Make the child drop its case, clean up and end."""
        _dismiss(self._process)


def _dismiss(process: SpawnProcess) -> None:
    if process.is_alive() and process.pid:
        with contextlib.suppress(ProcessLookupError):  # it may end by itself in the meantime
            os.kill(process.pid, signal.SIGUSR2)
        process.join(_PATIENCE)
        process.kill()


@contextlib.contextmanager
def _safe_path() -> Iterator[str | None]:
    """Within the block, Python is started as with `-P`: it does not run a `types.py` of the working directory.

    Yields the variable's value outside the block. multiprocessing starts its processes with `python -c`, which looks
    for modules there first.
    """
    with _starting:
        given = os.environ.get(_SAFE_PATH)
        _set_safe_path("1")
        try:
            yield given
        finally:
            _set_safe_path(given)


def _set_safe_path(value: str | None) -> None:
    if value is None:
        os.environ.pop(_SAFE_PATH, None)
    else:
        os.environ[_SAFE_PATH] = value


def _end(exitcode: int | None) -> str:
    """Return how a process ended, in words."""
    if exitcode is None or exitcode >= 0:
        return f"exit code {exitcode}"
    return f"{signal.Signals(-exitcode).name}, out of memory?" if exitcode == -9 else signal.Signals(-exitcode).name


def _child_main(pipe: Connection[Any, Any], task: Task, options: RunOptions, safe_path: str | None) -> None:
    _set_safe_path(safe_path)  # programs that a plugin starts have the environment that they have without --workers
    for number in _PARENTS_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGUSR2, _drop_the_case)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _PARENTS_SIGNALS)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    attach_to_terminal()
    work = CaseWorker(task, options, functools.partial(_pause, pipe))
    with contextlib.suppress(EOFError, OSError, Stopped):
        while (plan := pipe.recv()) is not None:
            try:
                pipe.send(work(plan))
            except Stopped as stopped:
                pipe.send(stopped)
                return
            except MedkitError as error:
                pipe.send(error)
            except Exception as error:
                pipe.send(MedkitError(f"{type(error).__name__}: {error}"))


def _pause(pipe: Connection[Any, Any]) -> None:
    """Tell the parent that another process is waited for; raise Stopped once the parent wants no more."""
    pipe.send(None)
    if pipe.poll(PAUSE):
        raise Stopped("a signal")


def _end_with_parent() -> None:
    """End this process soon after its parent, however that ends: nobody takes the result of its case any more."""
    parent = multiprocessing.parent_process()
    assert parent is not None, "a child has a parent"
    wait([parent.sentinel])
    os.kill(os.getpid(), signal.SIGUSR2)
    time.sleep(_PATIENCE)
    os._exit(1)  # it hangs in native code


def _drop_the_case(number: int, frame: FrameType | None) -> None:
    # a file may be open outside a `with` statement; the process ends at once, and closes it
    warnings.simplefilter("ignore", ResourceWarning)
    raise Stopped
