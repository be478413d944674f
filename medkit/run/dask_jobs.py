"""Dask's workers in jobs of a cluster: they are submitted as they are needed, and end when they are not."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from medkit.errors import UsageError, listed
from medkit.options import RunOptions
from medkit.run.dask_pools import NO_DASHBOARD, OWN_MACHINE, Pool, WorkersGoneError, is_loopback

_CLUSTERS = {
    "slurm": "SLURMCluster",
    "pbs": "PBSCluster",
    "sge": "SGECluster",
    "lsf": "LSFCluster",
    "htcondor": "HTCondorCluster",
}
"""Schedulers, as Dask's settings name them, and their classes in dask-jobqueue."""
_IDLE = 10.0
"""Seconds without a case after which the jobs end."""
_ABSENT = 10.0
"""Seconds for which no job is known to the scheduler before that is believed: it may be busy."""
_FAREWELL = 10.0
"""Seconds after which a worker that is told to end does so, whatever it waits for."""
log = logging.getLogger("medkit")


class JobPool(Pool):
    """Workers in jobs that are submitted as they are needed, again if they are lost, and end when they are not."""

    def __init__(self, options: RunOptions) -> None:
        import dask
        from distributed import Client

        assert options.cluster is not None
        self._scheduler = _read_settings(options.cluster)
        settings = dask.config.get(f"jobqueue.{self._scheduler}")
        self._jobs = options.jobs
        self.window = 2 * options.jobs + 2
        self._limit = 3 * options.jobs + 3
        self._cores = int(settings.get("cores") or options.threads or 1)
        if settings.get("memory") is None:
            raise UsageError(
                f"--cluster {options.cluster}: `memory` of a job is not set: give a file with "
                f"`jobqueue: {{{self._scheduler}: {{memory: 8GB}}}}` as --cluster (see docs/clusters.md)"
            )
        self._refusals = _Refusals()
        logging.getLogger("tornado.application").addFilter(self._refusals)
        self._cluster = self._start(settings)
        self.client = Client(self._cluster)
        _end_for_sure(self.client)
        self._seen: set[str] = set()
        """The numbers of all jobs so far."""
        self._submitted = 0
        """How many jobs were submitted since a case was done."""
        self._arrivals = _arrivals(self._cluster.scheduler)
        self._idle_since: float | None = None
        self._present_at = self._tried_at = time.monotonic()
        """When there was a worker, or a job in the queue, last; and when all jobs were given up after that."""

    def _start(self, settings: Mapping[str, Any]) -> Any:
        """Return the cluster, with its scheduler in this process, and no job so far."""
        import dask_jobqueue

        security = _security()
        interface = settings.get("interface")
        if security is None and not (interface and is_loopback(_address_on(interface))):
            raise UsageError(
                "the jobs would reach this process over the network without TLS, and so would everybody else there: "
                "set the certificates `distributed.comm.tls` in Dask's settings (see docs/clusters.md)"
            )
        port = (settings.get("scheduler-options") or {}).get("port")
        listening = NO_DASHBOARD | {"interface": interface}
        web = ["--no-dashboard", "--dashboard-address", OWN_MACHINE]
        return getattr(dask_jobqueue, _CLUSTERS[self._scheduler])(
            cores=self._cores,
            processes=1,
            nanny=False,  # its workers could start no child, and the children need no other protection
            security=security,
            scheduler_options=listening | ({} if port is None else {"port": port}),
            # the last `--nthreads` counts: a worker has one case at a time, which computes on all cores of the job
            worker_extra_args=[*(settings.get("worker-extra-args") or []), "--nthreads", "1", *web],
            silence_logs=logging.CRITICAL,
        )

    def options(self, options: RunOptions) -> RunOptions:
        """Return the options for the children: not every scheduler tells a job how many cores it has."""
        return replace(options, threads=options.threads or self._cores)

    def tend(self, cases: int, progress: bool) -> bool:
        """Submit jobs for the cases in work, again if one was lost; end all jobs after a while without a case.

        Raises WorkersGoneError if several jobs ended, one after the other, before a case was done, or if the first
        one is refused.
        """
        now = time.monotonic()
        held = len(self._cluster.worker_spec)
        new = self._numbers() - self._seen
        self._seen |= new
        self._submitted = held if progress else self._submitted + len(new)
        if cases:
            self._idle_since = None
            wanted = max(held, min(self._jobs, cases))
            self._cluster.scale(jobs=min(wanted, held + max(0, self._limit - self._submitted)))
        else:
            self._idle_since = self._idle_since or now
            if held and now - self._idle_since > _IDLE:
                self._cluster.scale(jobs=0)
        working = bool(self.client.nthreads())
        if not cases or working or self._in_queue():
            self._present_at = self._tried_at = now
            return True
        refusal = self._refusals.since(self._present_at)
        self.trouble = f"the scheduler refuses the job: {refusal}" if refusal else ""
        if refusal and not self._arrivals:  # else the scheduler may only be restarting
            raise WorkersGoneError(self.trouble)
        if now - self._tried_at > _ABSENT:
            if self._submitted >= self._limit:
                raise WorkersGoneError(f"{self._submitted} jobs have ended, and no case was done; see their logs")
            self._cluster.scale(jobs=0)  # they were refused, or ended before they were workers, unnoticed by Dask
            self._tried_at = now
        return False

    def _numbers(self) -> set[str]:
        """Return the numbers of the jobs that were accepted."""
        return {str(job.job_id) for job in list(self._cluster.workers.values()) if job.job_id}

    def _in_queue(self) -> bool:
        """Return whether the scheduler knows a job that waits or runs."""
        numbers = self._numbers()
        return bool(numbers) and _known(self._scheduler, numbers)

    def close(self) -> None:
        """End all jobs."""
        from distributed.deploy.cluster import Cluster

        self.client.close()
        try:
            self._cluster.close(timeout=30)
        except Exception:  # a job that was refused is no job that Dask could end: it stops on the way
            log.debug("Dask stopped while it ended the jobs; the rest is closed now", exc_info=True)
            with contextlib.suppress(Exception):
                self._cluster.sync(Cluster._close, self._cluster)
        logging.getLogger("tornado.application").removeFilter(self._refusals)


class _Refusals(logging.Filter):
    """Keeps what the scheduler says to a job that it refuses: Dask only logs that, at every attempt."""

    def __init__(self) -> None:
        super().__init__()
        self._latest, self._at = "", 0.0

    def filter(self, record: logging.LogRecord) -> bool:
        """Return False: nothing is logged."""
        error = str(record.exc_info[1]) if record.exc_info else record.getMessage()
        self._latest, self._at = " ".join(error.rpartition("stderr:")[2].split()), time.monotonic()
        return False

    def since(self, moment: float) -> str:
        """Return what was said last since a moment of `time.monotonic`; empty if nothing was."""
        return self._latest if self._at >= moment else ""


def _arrivals(scheduler: Any) -> list[str]:
    """Return a list to which a Dask scheduler in this process adds the address of each worker that comes."""
    from distributed import SchedulerPlugin

    addresses: list[str] = []

    class Arrivals(SchedulerPlugin):  # type: ignore[misc]
        def add_worker(self, scheduler: Any, worker: str) -> None:
            addresses.append(worker)

    scheduler.add_plugin(Arrivals(), name="medkit-arrivals")
    return addresses


def _end_for_sure(client: Any) -> None:
    """See to it that each worker ends when its job or its scheduler does: Dask's may wait for itself for ever."""
    from distributed import WorkerPlugin

    class Exit(WorkerPlugin):  # type: ignore[misc]
        def setup(self, worker: Any) -> None:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)  # children drop their case when their parent is gone

        def teardown(self, worker: Any) -> None:
            timer = threading.Timer(_FAREWELL, os._exit, [0])
            timer.daemon = True
            timer.start()

    client.register_plugin(Exit(), name="medkit-exit")


def _read_settings(name: str) -> str:
    """Return the scheduler's name; `name` is that, or a file of Dask's settings, which are added to all others."""
    import dask
    import yaml

    if name in _CLUSTERS:
        return name
    try:
        found = yaml.safe_load(Path(name).read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        problem = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise UsageError(f"--cluster {name}: neither one of {listed(list(_CLUSTERS))}, nor a file: {problem}") from None
    schedulers = found.get("jobqueue") if isinstance(found, dict) else None
    names = list(schedulers) if isinstance(schedulers, dict) else []
    if len(names) != 1 or names[0] not in _CLUSTERS:
        raise UsageError(f"--cluster {name}: expected `jobqueue:` with one of {listed(list(_CLUSTERS))} in it")
    dask.config.update(dask.config.config, dask.config.expand_environment_variables(found))
    return str(names[0])


def _security() -> Any:
    """Return the certificates of Dask's settings; None if there are none."""
    from distributed import Security

    security = Security()
    needed = (security.tls_ca_file, security.tls_scheduler_cert, security.tls_worker_cert, security.tls_client_cert)
    return security if all(needed) else None


def _address_on(interface: str) -> str:
    """Return the address of this machine on a network interface. Raises UsageError."""
    from distributed.utils import get_ip_interface

    try:
        return str(get_ip_interface(interface))
    except ValueError as error:
        raise UsageError(f"interface {interface} in Dask's settings: {error}") from None


def _known(scheduler: str, numbers: Collection[str]) -> bool:
    """Return whether a scheduler lists one of these jobs as waiting or running."""
    commands = {
        "slurm": ["squeue", "--noheader", f"--jobs={','.join(numbers)}"],
        "pbs": ["qstat", *numbers],
        "sge": ["qstat", "-j", ",".join(numbers)],
        "lsf": ["bjobs", "-noheader", "-o", "stat", *numbers],
        "htcondor": ["condor_q", *numbers, "-af", "ClusterId"],
    }
    command = commands[scheduler]
    if shutil.which(command[0]) is None:
        return False
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return any(line.strip() not in ("", "DONE", "EXIT") for line in answer.stdout.split("\n"))
