"""What runs on a Dask worker: cases are handed to child processes, which stay for the next case.

Only a child process can be killed alone, keeps `--timeout-per-case` (signals reach the main thread only) and leaves the
worker free to answer its scheduler.
"""

from __future__ import annotations

import multiprocessing
import pickle
import threading
from dataclasses import dataclass, replace

from medkit import __version__
from medkit.errors import MedkitError, Stopped
from medkit.options import RunOptions
from medkit.pipe.records import Record
from medkit.run.processes import ChildProcess
from medkit.run.task import CasePlan, Task

_IDLE = 600.0
"""Seconds after which a child without work ends, so that none is left on a shared worker by a run that was killed."""


class Children:
    """The child processes of one run on this worker: as many as cases were worked on at once."""

    def __init__(self, task: Task, options: RunOptions) -> None:
        self._task, self._options = task, options
        self._free: list[ChildProcess] = []
        self._all: list[ChildProcess] = []
        self._lock = threading.Lock()
        self._timer: threading.Timer | None = None
        self.stopping = False
        """Whether no further case is to be begun."""

    def work(self, plan: CasePlan) -> Record | BaseException:
        """Have a child work on a case; returns what `ChildProcess.work` returns."""
        if self.stopping:
            return Stopped("a signal")
        child = self._taken()
        try:
            return child.work(plan, lambda: self.stopping)
        finally:
            self._give_back(child)

    def _taken(self) -> ChildProcess:
        with self._lock:
            if self._timer is not None:
                self._timer.cancel()
            while self._free:
                child = self._free.pop()
                if child.alive():
                    return child
                self._all.remove(child)
        child = ChildProcess(self._task, self._options)
        with self._lock:
            self._all.append(child)
        return child

    def _give_back(self, child: ChildProcess) -> None:
        with self._lock:
            self._free.append(child)
            if len(self._free) == len(self._all):
                self._timer = threading.Timer(_IDLE, self._end_idle)
                self._timer.daemon = True
                self._timer.start()

    def _end_idle(self) -> None:
        with self._lock:
            idle, self._free = self._free, []
            self._all = [child for child in self._all if child not in idle]
        for child in idle:
            child.dismiss()

    def dismiss(self) -> None:
        """End all children; those at work drop their case."""
        self.stopping = True
        with self._lock:
            if self._timer is not None:
                self._timer.cancel()
            children = list(self._all)
        for child in children:
            child.dismiss()


_runs: dict[str, Children] = {}
"""Name of a run -> its children on this worker."""
_ended: set[str] = set()
"""Runs that begin no further case."""
_starting = threading.Lock()


@dataclass(frozen=True)
class Setting:
    """What all cases of a run need, as it travels to the workers."""

    run: str
    """A name that no other run has."""
    version: str
    """Of medkit: another one would make other results than the record says."""
    work: bytes
    """Task and options, pickled; a worker without the plugin can say so."""


def setting_of(run: str, task: Task, options: RunOptions) -> Setting:
    """Return what the workers need for the cases of a run."""
    return Setting(run, __version__, pickle.dumps((task, options)))


def work(setting: Setting, plan: CasePlan) -> Record | BaseException:
    """Work on a case in a child process of this worker; returns an error that is true of all cases."""
    try:
        children = _children(setting)
    except MedkitError as error:
        return error
    return children.work(plan)


def stop(run: str) -> None:
    """Begin no further case of a run on this worker."""
    _ended.add(run)
    if run in _runs:
        _runs[run].stopping = True


def dismiss(run: str) -> None:
    """End the children of a run on this worker; those at work drop their case."""
    stop(run)
    if children := _runs.pop(run, None):
        children.dismiss()


def _children(setting: Setting) -> Children:
    with _starting:
        if setting.run not in _runs:
            task, options = _loaded(setting)
            _runs[setting.run] = Children(task, options)
            _runs[setting.run].stopping = setting.run in _ended
        return _runs[setting.run]


def _loaded(setting: Setting) -> tuple[Task, RunOptions]:
    """Return task and options; raise MedkitError if this worker cannot work on cases."""
    from distributed import get_worker

    if setting.version != __version__:
        raise MedkitError(f"a Dask worker has medkit {__version__}, this is medkit {setting.version}")
    if multiprocessing.current_process().daemon:
        raise MedkitError("a Dask worker cannot start processes: start the workers with `dask worker --no-nanny`")
    try:
        task, options = pickle.loads(setting.work)
    except Exception as error:
        raise MedkitError(f"a Dask worker cannot load the task: {type(error).__name__}: {error}") from None
    if options.threads is None and not options.workers:
        options = replace(options, workers=get_worker().state.nthreads)  # these share what the system grants
    return task, options
