"""Working on cases in one process: set up the task once, then make the files and the record of each case."""

from __future__ import annotations

import functools
import os
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from medkit.errors import RUN_ENDS, MedkitError, Stopped, not_taken
from medkit.machine.allocator import keep_freed_memory
from medkit.machine.threads import granted_threads
from medkit.options import RunOptions
from medkit.pipe.names import is_bids, suffix_of
from medkit.pipe.records import Record, read_sidecar, sha256_of
from medkit.pipe.signals import time_limit
from medkit.run.again import command_of
from medkit.run.claims import Claim, Unclaimed, claim_of, remove_leftovers
from medkit.run.existing import (
    ResultFingerprint,
    check_existing,
    file_digest,
    is_there,
    is_whole,
    settings_of_case,
)
from medkit.run.failures import explain, failed_record
from medkit.run.outputs import describe_dataset
from medkit.run.pictures import Picture, draw_case
from medkit.run.task import Case, Runtime
from medkit.terminal.progress import working_on

if TYPE_CHECKING:
    from medkit.run.task import CasePlan, Result, Task

PAUSE = 0.5
"""Seconds between two looks at a name that another process holds."""


@dataclass(frozen=True)
class CaseInWork:
    """A case that is worked on, with all that its record states besides the result."""

    plan: CasePlan
    case: Case
    claim: Claim | Unclaimed
    fingerprint: ResultFingerprint


class CaseWorker:
    """Works on cases, one at a time, in one process; sets up the task before the first case that needs it."""

    def __init__(self, task: Task, options: RunOptions, pause: Callable[[], None] | None = None) -> None:
        self.task = task
        self.options = options
        self._pause = pause
        if task.uses_torch:
            keep_freed_memory()  # here, since `limit_torch` comes after the threads that read and write were started
        self._process: Callable[[Case], Result] | None = None

    def __call__(self, plan: CasePlan) -> Record:
        """Work on a case and return its record, also if it fails.

        Raises what the set-up of the task raises: no case could be worked on then.
        """
        with working_on(plan.record.path.name):
            return self._made(plan)

    def _made(self, plan: CasePlan) -> Record:
        fingerprint = self.known(plan)
        if isinstance(fingerprint, Record):
            return fingerprint
        process = self.set_up()
        start = time.perf_counter()
        try:
            with claim_of(plan.targets, self.pause(plan)) as claim:
                if done := self.made_meanwhile(plan, fingerprint):
                    return done
                self.check(plan, fingerprint)
                work = self.start(plan, claim, fingerprint)
                with time_limit(self.options.timeout_per_case):
                    with working_on("", "computing"):
                        result = process(work.case)
                    self.write(work, result)
                return self.commit(work, result, time.perf_counter() - start)
        except RUN_ENDS:
            raise
        except BaseException as error:
            return self.failed(plan, error)

    def keeps(self, plan: CasePlan) -> bool:
        """Return whether a result that exists already is kept."""
        return self.options.skip_existing or (plan.again and not self.options.overwrite)

    def pause(self, plan: CasePlan) -> Callable[[], None] | None:
        """Return what is called while another process makes the result of a case; None if that is not waited for."""
        return self._pause if self.options.skip_existing or plan.again else None

    def known(self, plan: CasePlan) -> ResultFingerprint | Record:
        """Return what the result of a case will depend on, or the record of a case that is done or cannot be done."""
        try:
            fingerprint = self._fingerprint(plan)
            if done := self._existing(plan, fingerprint):
                remove_leftovers(plan.targets)
                return done
        except (MedkitError, OSError) as error:
            return self.failed(plan, error)
        return fingerprint

    def made_meanwhile(self, plan: CasePlan, fingerprint: ResultFingerprint) -> Record | None:
        """Return the record of a result that another process made before this one got the case's names."""
        return self._existing(plan, fingerprint) if os.path.lexists(plan.targets.sidecar) else None

    def foreseen(self, plan: CasePlan) -> Record | None:
        """Return the record of a case that will be kept or will fail, if that is certain before any work on it."""
        if not any(os.path.lexists(path) for path in plan.targets.names):
            return None
        try:
            fingerprint = self._fingerprint(plan, foreseen=plan.record.planned)
            if done := self._existing(plan, fingerprint):
                return done
            self.check(plan, fingerprint)
        except (MedkitError, OSError) as error:
            return self.failed(plan, error)
        return None

    def check(self, plan: CasePlan, fingerprint: ResultFingerprint) -> None:
        """Raise OutputError if the case would replace a file that it must not replace."""
        check_existing(plan.targets, fingerprint, overwrite=self.options.overwrite, skip_existing=self.keeps(plan))

    def failed(self, plan: CasePlan, error: BaseException) -> Record:
        """Return the record of a case that failed."""
        reason, folder = explain(error, self.options), plan.targets.main.parent
        if not_taken(error) and str(folder) not in reason:  # the input's disk is not meant
            reason += f" (the results go to {folder})"
        if isinstance(error, FileNotFoundError) and str(folder) in str(error.filename) and not folder.exists():
            reason = f"{folder}: this folder for results was removed while the case was worked on"
        return failed_record(plan.record, self.task.name, reason, error)

    @functools.cached_property
    def runtime(self) -> Runtime:
        """The device and threads of this process."""
        threads = self.options.threads or max(1, granted_threads() // max(1, self.options.workers))
        return Runtime(self._device(), threads, self.options.seed, self.options.frame, self.options.series)

    def _device(self) -> str:
        if self.options.device != "auto":
            return self.options.device
        if "cuda" not in self.task.devices:
            return "cpu"
        import torch

        return "cuda" if torch.cuda.is_available() else "cpu"

    def set_up(self) -> Callable[[Case], Result]:
        """Return the task's function; the first call limits the threads and builds what all cases share."""
        if self._process is None:
            with working_on("", "loading"):
                self._process = self._loaded()
        return self._process

    def _loaded(self) -> Callable[[Case], Result]:
        if self.task.uses_torch:
            self.runtime.limit_torch()
            import torch

            torch.manual_seed(self.runtime.seed)
        if self.task.setup is not None:
            return self.task.setup(self.runtime)
        assert self.task.process is not None, "a Task needs process or setup"
        return self.task.process

    def start(self, plan: CasePlan, claim: Claim | Unclaimed, fingerprint: ResultFingerprint) -> CaseInWork:
        """Return a case that is ready for the task's function; its names are claimed already."""
        return CaseInWork(plan, Case(plan, self.task, self.options, self.runtime), claim, fingerprint)

    def _fingerprint(self, plan: CasePlan, *, foreseen: bool = False) -> ResultFingerprint:
        """Return what the result of a case depends on; `foreseen`: files that do not exist yet differ from all."""
        return ResultFingerprint(
            source=plan.record.path,
            inputs={
                role: "" if foreseen and not is_there(path) else file_digest(path) for role, path in plan.inputs.items()
            },
            settings=settings_of_case(self.task, self.options, plan.record),
        )

    def _existing(self, plan: CasePlan, fingerprint: ResultFingerprint) -> Record | None:
        """Return the record of a result that need not be made again, if such results are kept."""
        if not plan.targets.outputs:  # a row of a table: the planner has looked it up already
            return None
        record = read_sidecar(plan.targets.sidecar) if self.keeps(plan) else None
        if (
            record
            and fingerprint.has_same_source(record)
            and fingerprint.equals(record)
            and is_whole(record, plan.targets)
        ):
            return replace(record, medkit=dict(record.medkit) | {"skipped": True}, extra=plan.extra)
        return None

    def write(self, work: CaseInWork, result: Result) -> None:
        """Write the files of a result into the claim's folder. Raises MedkitError for undeclared or missing roles."""
        with working_on("", "writing"):
            self._write(work, result)

    def _write(self, work: CaseInWork, result: Result) -> None:
        outputs = work.plan.targets.outputs
        if set(result.outputs) != set(outputs):
            raise MedkitError(
                f"task {self.task.name} declares the outputs {sorted(outputs)} but returned {sorted(result.outputs)}"
            )
        for role, value in result.outputs.items():
            value.write(work.claim.part / outputs[role].name)

    def commit(self, work: CaseInWork, result: Result, seconds: float) -> Record:
        """Move the written files into place, with the picture and the sidecar, and return the record of the case.

        Raises MedkitError if an input is no longer the file whose digest the sidecar would state.
        """
        _refuse_changed(work)
        result = replace(result, warnings=tuple(dict.fromkeys([*work.case.doubts, *result.warnings])))
        record = self._record(work, result, seconds)
        plan = work.plan
        if self.options.qc:
            draw_case(Picture.of(plan, self.task, self.options), self.task, work.case, result)
        work.claim.commit(record)
        if is_bids(plan.record.path) and self.options.output and self.options.output.is_dir():
            describe_dataset(self.options.output)
        return record

    def _record(self, work: CaseInWork, result: Result, seconds: float) -> Record:
        plan, settings = work.plan, work.fingerprint.settings
        block = {
            "task": self.task.name,
            "status": "ok",
            "skipped": False,
            "error": None,
            "outputs": {
                role: {"path": str(path), "sha256": sha256_of(work.claim.part / path.name)}
                for role, path in plan.targets.outputs.items()
            },
            "bundle": settings["bundle"],
            "arguments": settings["arguments"],
            "inputs": {
                role: {"path": str(path), "sha256": work.fingerprint.inputs[role], **_series_of(path)}
                for role, path in plan.inputs.items()
            },
            "device": self.runtime.device,
            "threads": self.runtime.threads,
            "seed": self.runtime.seed,
            "seconds": round(seconds, 3),
            "peak_rss_mb": peak_memory_mb(),
            "metrics": dict(result.metrics),
            # the reason to look comes first: `medkit.run.looks` shows it
            "warnings": list(dict.fromkeys([*result.warnings, *work.case.warnings])),
            "look": bool(result.warnings),
            "reasons": len(set(result.warnings)),
            "command": command_of(plan, self.task, self.options.command),
        }
        return Record(
            path=plan.targets.main,
            kind=result.kind or (self.task.outputs[0].kind if self.task.outputs else "table"),
            sources=tuple(dict.fromkeys([plan.record.path, *plan.inputs.values()])),
            spatial_reference=result.spatial_reference or work.case.path,
            description=result.description or f"Result of medkit run {self.task.name}",
            generated_by=self.options.programs,
            extra=plan.extra,
            medkit=block | {name: value for name, value in result.details.items() if name not in block},
        )


def _refuse_changed(work: CaseInWork) -> None:
    """Raise MedkitError for an input file that was replaced: it may have been read before or after that.

    One that was removed has been read; folders are not looked at, since results may lie in them.
    """
    for role, path in work.plan.inputs.items():
        if path.is_file() and file_digest(path) != work.fingerprint.inputs[role]:
            raise MedkitError(f"{path}: has changed while the case was worked on; run it again")


def _series_of(path: Path) -> dict[str, str]:
    """Return what a sidecar states of a DICOM input besides its path and digest: the series; empty for other files."""
    if suffix_of(path).lower() not in ("", ".dcm", ".ima") or path.suffix.lower() == ".json":
        return {}
    from medkit.images.dicom.reader import series_uid

    found = series_uid(path)
    return {"SeriesInstanceUID": found[0], "SeriesNumber": found[1]} if found else {}


def pause_until(stopped: Callable[[], bool]) -> Callable[[], None]:
    """Return a function that sleeps a moment, and raises Stopped once `stopped()` is true."""

    def pause() -> None:
        if stopped():
            raise Stopped("a signal")
        time.sleep(PAUSE)

    return pause


def peak_memory_mb() -> int:
    """Return the largest resident memory this process has had, in MiB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (2**20 if sys.platform == "darwin" else 2**10))
