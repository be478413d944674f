"""Where Dask's workers are: in this process, or wherever somebody has started them; jobs are in `dask_jobs`."""

from __future__ import annotations

import ipaddress
import json
import logging
from abc import ABC, abstractmethod
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from medkit.errors import MedkitError, UsageError
from medkit.options import RunOptions
from medkit.run import remote


class WorkersGoneError(MedkitError):
    """No worker is left, and none will come."""


class Pool(ABC):
    """Dask workers, and the client through which cases reach them."""

    client: Any
    window: int
    """How many cases are handed over before the first of them is finished."""
    trouble: str = ""
    """Why no worker comes, if that is known."""

    def options(self, options: RunOptions) -> RunOptions:
        """Return the options for the children."""
        return options

    def tend(self, cases: int, progress: bool) -> bool:
        """Look after the workers, every few seconds; return whether there are any, or will be.

        `cases`: how many are in work or wait; `progress`: whether one was done since the last call. Raises
        WorkersGoneError.
        """
        return bool(self.client.nthreads())

    def enter(self, run: str) -> None:
        """See to it that each worker, also one that comes later, ends the children of this run when it ends."""
        from distributed import WorkerPlugin

        class Farewell(WorkerPlugin):  # type: ignore[misc]
            """Without it, a worker that has lost its scheduler waits for the case in work."""

            def teardown(self, worker: Any) -> None:
                remote.dismiss(run)

        self.client.register_plugin(Farewell(), name=run)

    def stop(self, run: str) -> None:
        """See to it that no worker begins a further case of this run."""
        self.client.run(remote.stop, run, on_error="ignore")

    def leave(self, run: str) -> None:
        """End the children of this run on all workers; those at work drop their case."""
        self.client.unregister_worker_plugin(name=run)

    @abstractmethod
    def close(self) -> None:
        """End what was started here."""


NO_PAGES: dict[str, Any] = {"distributed.scheduler.http.routes": [], "distributed.worker.http.routes": []}
"""Settings by which the web servers that Dask starts in this process have no page."""
OWN_MACHINE = "127.0.0.1:0"
"""Where Dask's web servers listen: by default the whole network reaches them."""
NO_DASHBOARD = {"dashboard": False, "dashboard_address": OWN_MACHINE}
"""Options of a scheduler or worker."""


class LocalPool(Pool):
    """One worker in this process, which nobody else reaches; only the children are further processes."""

    def __init__(self, options: RunOptions) -> None:
        from distributed import Client, LocalCluster

        self._workers = max(1, options.workers)
        self.window = 2 * self._workers + 2
        self._cluster = LocalCluster(
            n_workers=0,
            threads_per_worker=self._workers,
            processes=False,
            memory_limit=0,
            dashboard_address=None,
            scheduler_kwargs=NO_DASHBOARD,
            silence_logs=logging.CRITICAL,
        )
        self._cluster.new_spec["options"].update(NO_DASHBOARD)
        self._cluster.scale(1)
        self.client = Client(self._cluster)

    def options(self, options: RunOptions) -> RunOptions:
        """Return the options for the children."""
        return replace(options, workers=self._workers)

    def close(self) -> None:
        """End the worker."""
        self.client.close()
        self._cluster.close()


class SitePool(Pool):
    """The workers of a scheduler that is up already; they are not ended."""

    def __init__(self, options: RunOptions) -> None:
        from distributed import Client, Security

        assert options.scheduler_file is not None
        address = _address_of(options.scheduler_file)
        if not address.startswith("tls://") and not is_loopback(urlsplit(address).hostname or ""):
            raise UsageError(
                f"{options.scheduler_file}: the scheduler {address} is open to everybody on the network: "
                "start it, and its workers, with TLS (see docs/clusters.md)"
            )
        try:
            self.client = Client(address, security=Security(), timeout=10)
        except (OSError, TypeError, ValueError) as error:
            reason = str(error).partition("\n")[0]
            raise MedkitError(f"{options.scheduler_file}: no Dask scheduler answers at {address}: {reason}") from None
        self.window = 2 * max(4, sum(self.client.nthreads().values())) + 2

    def close(self) -> None:
        """Leave the workers alone."""
        self.client.close()


def _address_of(file: Path) -> str:
    """Return the address in the file of a scheduler. Raises UsageError."""
    try:
        return str(json.loads(file.read_bytes())["address"])
    except FileNotFoundError:
        raise UsageError(f"--scheduler-file {file}: no such file; `dask scheduler` writes it") from None
    except (OSError, ValueError, KeyError, TypeError):
        raise UsageError(f"--scheduler-file {file}: expected the file that `dask scheduler` writes") from None


def is_loopback(host: str) -> bool:
    """Return whether a host is this machine, as its name or address says."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
