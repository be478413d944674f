"""Works on one case after the other in one process, and makes the record of each."""

from __future__ import annotations

import functools
import logging
import os
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from medkit.errors import CaseTimeout, InputError, MedkitError
from medkit.machine.allocator import keep_freed_memory
from medkit.machine.threads import granted_threads
from medkit.options import RunOptions
from medkit.pipe.names import is_bids, stem
from medkit.pipe.records import Record, read_sidecar, sha256_of
from medkit.pipe.signals import time_limit
from medkit.run.claims import Claim, ResultFingerprint, Unclaimed, check_existing, claim_of, is_whole, remove_leftovers
from medkit.run.outputs import describe_dataset
from medkit.run.task import Case, Runtime

if TYPE_CHECKING:
    import numpy as np

    from medkit.run.task import CasePlan, Result, Task

log = logging.getLogger("medkit")


class CaseWorker:
    """Works on plans, one after the other, in one process; sets the task up before the first one that needs it."""

    def __init__(self, task: Task, options: RunOptions) -> None:
        self.task = task
        self.options = options
        if task.uses_torch:
            keep_freed_memory()  # which `limit_torch` would do too late: threads that read and write come before it
        self._process: Callable[[Case], Result] | None = None

    def __call__(self, plan: CasePlan) -> Record:
        """The finished record of a case, failed ones included.

        Raises what the task's own set-up raises: nothing could be worked on then.
        """
        fingerprint = self.known(plan)
        if isinstance(fingerprint, Record):
            return fingerprint
        process = self.set_up()
        start = time.perf_counter()
        try:
            with claim_of(plan.targets) as claim:
                self.check(plan, fingerprint)
                return self._work(plan, process, claim, fingerprint, start)
        except (Exception, SystemExit, CaseTimeout) as error:  # a library's exit() ends its case, not the run
            return self.failed(plan, error)

    def known(self, plan: CasePlan) -> ResultFingerprint | Record:
        """What a case's result will depend on; the record of one that need not, or cannot, be made."""
        try:
            fingerprint = self._fingerprint(plan)
            if done := self._existing(plan, fingerprint):
                remove_leftovers(plan.targets)
                return done
        except (MedkitError, OSError) as error:
            return self.failed(plan, error)
        return fingerprint

    def foreseen(self, plan: CasePlan) -> Record | None:
        """What can be known of a case without working on it: a result that is kept, a failure, or None."""
        if not any(os.path.lexists(path) for path in plan.targets.names):
            return None
        try:
            fingerprint = self._fingerprint(plan)
            if done := self._existing(plan, fingerprint):
                return done
            self.check(plan, fingerprint)
        except (MedkitError, OSError) as error:
            return self.failed(plan, error)
        return None

    def check(self, plan: CasePlan, fingerprint: ResultFingerprint) -> None:
        """Raises OutputError where a result must not be replaced."""
        check_existing(
            plan.targets, fingerprint, overwrite=self.options.overwrite, skip_existing=self.options.skip_existing
        )

    def failed(self, plan: CasePlan, error: BaseException) -> Record:
        """The record of a case that came to nothing."""
        return failed_record(plan.record, self.task.name, explain(error, self.options), error)

    @functools.cached_property
    def runtime(self) -> Runtime:
        """The device and threads of this process."""
        threads = self.options.threads or max(1, granted_threads() // max(1, self.options.workers))
        return Runtime(self._device(), threads, self.options.seed)

    def _device(self) -> str:
        if self.options.device != "auto":
            return self.options.device
        if "cuda" not in self.task.devices:
            return "cpu"
        import torch

        return "cuda" if torch.cuda.is_available() else "cpu"

    def set_up(self) -> Callable[[Case], Result]:
        """The task's function; the first call limits the threads and builds what all cases share."""
        if self._process is None:
            if self.task.uses_torch:
                self.runtime.limit_torch()
                import torch

                torch.manual_seed(self.runtime.seed)
            if self.task.setup is not None:
                self._process = self.task.setup(self.runtime)
            else:
                assert self.task.process is not None, "a Task needs process or setup"
                self._process = self.task.process
        return self._process

    def _fingerprint(self, plan: CasePlan) -> ResultFingerprint:
        return ResultFingerprint(
            source=plan.record.path,
            inputs={role: file_digest(path) for role, path in plan.inputs.items()},
            settings=settings_of_run(self.task, self.options),
        )

    def _existing(self, plan: CasePlan, fingerprint: ResultFingerprint) -> Record | None:
        """The record of a result that need not be made again, with `--skip-existing`."""
        if not plan.targets.outputs:  # whether its rows are in the table was looked up before
            return None
        record = read_sidecar(plan.targets.sidecar) if self.options.skip_existing else None
        if record and fingerprint.made(record) and fingerprint.equals(record) and is_whole(record, plan.targets):
            return replace(record, medkit=dict(record.medkit) | {"skipped": True})
        return None

    def _work(
        self,
        plan: CasePlan,
        process: Callable[[Case], Result],
        claim: Claim | Unclaimed,
        fingerprint: ResultFingerprint,
        start: float,
    ) -> Record:
        case = Case(plan, self.task, self.options, self.runtime)
        with time_limit(self.options.timeout_per_case):
            result = process(case)
            self.write(plan, result, claim)
        return self.commit(plan, case, result, claim, fingerprint, time.perf_counter() - start)

    def write(self, plan: CasePlan, result: Result, claim: Claim | Unclaimed) -> None:
        """Writes the files of a result where they are made whole. Raises MedkitError for roles not declared."""
        _check_roles(self.task, plan, result)
        for role, value in result.outputs.items():
            value.write(claim.part / plan.targets.outputs[role].name)

    def commit(
        self,
        plan: CasePlan,
        case: Case,
        result: Result,
        claim: Claim | Unclaimed,
        fingerprint: ResultFingerprint,
        seconds: float,
    ) -> Record:
        """Puts written files in place, with the picture and the sidecar; the record of the case."""
        record = self._record(plan, case, result, claim, fingerprint, seconds)
        if self.options.qc:
            named = plan.targets.main if plan.targets.outputs else plan.record.path
            self._draw(case, plan, result, picture_path(self.options.qc, named, self.options.output))
        claim.commit(record)
        if is_bids(plan.record.path) and self.options.output and self.options.output.is_dir():
            describe_dataset(self.options.output)
        return record

    def _record(
        self,
        plan: CasePlan,
        case: Case,
        result: Result,
        claim: Claim | Unclaimed,
        fingerprint: ResultFingerprint,
        seconds: float,
    ) -> Record:
        targets = plan.targets
        block = {
            "task": self.task.name,
            "status": "ok",
            "skipped": False,
            "error": None,
            "outputs": {
                role: {"path": str(path), "sha256": sha256_of(claim.part / path.name)}
                for role, path in targets.outputs.items()
            },
            "bundle": fingerprint.settings["bundle"],
            "arguments": fingerprint.settings["arguments"],
            "inputs": {
                role: {"path": str(path), "sha256": fingerprint.inputs[role]} for role, path in plan.inputs.items()
            },
            "device": self.runtime.device,
            "threads": self.runtime.threads,
            "seed": self.runtime.seed,
            "seconds": round(seconds, 3),
            "peak_rss_mb": peak_memory_mb(),
            "metrics": dict(result.metrics),
            "warnings": list(dict.fromkeys([*case.warnings, *result.warnings])),
        }
        return Record(
            path=targets.main,
            kind=result.kind or (self.task.outputs[0].kind if self.task.outputs else "table"),
            sources=tuple(dict.fromkeys([plan.record.path, *plan.inputs.values()])),
            spatial_reference=result.spatial_reference or case.path,
            description=result.description or f"Result of medkit run {self.task.name}",
            generated_by=self.options.programs,
            medkit=block | dict(result.details),
        )

    def _draw(self, case: Case, plan: CasePlan, result: Result, path: Path) -> None:
        """Writes the picture of a case; one that cannot be drawn is a warning, not a failure of the case."""
        from medkit.figures.mosaic import write_png

        try:
            picture = result.figure() if result.figure else self._default_figure(case, result)
            path.parent.mkdir(parents=True, exist_ok=True)
            if picture is not None:
                write_png(picture, path)
        except Exception as error:
            log.warning("%s: no picture: %s", plan.record.path.name, error)
            log.debug("", exc_info=True)

    def _default_figure(self, case: Case, result: Result) -> np.ndarray | None:
        from medkit.figures.mosaic import overlay_mosaic
        from medkit.images.image import Image

        if not self.task.outputs:
            return None
        value = result.outputs[self.task.outputs[0].role]
        kind = result.kind or self.task.outputs[0].kind
        if not isinstance(value, Image):
            return None
        drawn: Literal["labels", "image"] = "labels" if kind in ("labels", "mask") else "image"
        return overlay_mosaic(case.image(), value, kind=drawn, title=f"{self.task.name}  {case.path.name}")


def settings_of_run(task: Task, options: RunOptions) -> dict[str, Any]:
    """What all results of a run depend on beside their inputs."""
    chosen = {"frame": options.frame, "series": options.series}
    return {
        "arguments": dict(task.arguments) | {k: v for k, v in chosen.items() if v is not None},
        "bundle": dict(task.bundle) if task.bundle else None,
        "seed": options.seed,
        "programs": [dict(p) for p in options.programs],
    }


def picture_path(folder: Path, main: Path, output: Path | None) -> Path:
    """Where the picture of a result goes, for names may be equal.

    Below `folder` as the result lies below `output`, or below the working directory where there is none.
    """
    root = output or Path.cwd()
    below = main.parent.relative_to(root) if main.is_relative_to(root) and main != root else Path()
    return folder / below / f"{stem(main)}.png"


def _check_roles(task: Task, plan: CasePlan, result: Result) -> None:
    declared = set(plan.targets.outputs)
    if set(result.outputs) != declared:
        raise MedkitError(f"task {task.name} declares the outputs {sorted(declared)} but gave {sorted(result.outputs)}")


def failed_record(record: Record, task: str, message: str, error: BaseException) -> Record:
    """The record of a case that failed: its path is the input, so that it can be given again."""
    block = {
        "task": task,
        "status": "failed",
        "skipped": False,
        "error": message,
        "refused": isinstance(error, InputError),
    }
    return Record(record.path, record.kind, record.sources, medkit=block, extra=record.extra)


def explain(error: BaseException, options: RunOptions) -> str:
    """An error as one line for people; what is not expected also as a traceback with -v."""
    if isinstance(error, CaseTimeout):
        return f"took longer than {options.timeout_per_case:g} s (--timeout-per-case)"
    if isinstance(error, MedkitError):
        return str(error)
    log.debug("unexpected error", exc_info=error)
    if isinstance(error, MemoryError):
        return f"not enough memory {error}".strip()
    return " ".join(f"{type(error).__name__}: {error}".split())


def peak_memory_mb() -> int:
    """The largest resident memory this process has had, in MiB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (2**20 if sys.platform == "darwin" else 2**10))


def file_digest(path: Path) -> str:
    """sha256 of an input; a file that all cases share is read once. Raises InputError where it cannot be read."""
    try:
        status = path.stat()
        return _digest(path, status.st_mtime_ns, status.st_size)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from None


@functools.lru_cache(maxsize=64)
def _digest(path: Path, modified: int, size: int) -> str:
    return sha256_of(path)
