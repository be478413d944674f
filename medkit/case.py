"""One case of a task: what a plugin's function is given, what it gives back, and how that becomes whole files."""

from __future__ import annotations

import functools
import logging
import os
import resource
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from medkit.allocator import keep_freed_memory
from medkit.errors import CaseTimeout, InputError, MedkitError
from medkit.files import (
    Claim,
    Fingerprint,
    Output,
    Targets,
    Unclaimed,
    check_existing,
    claim_of,
    describe_dataset,
    is_whole,
    remove_leftovers,
)
from medkit.names import is_bids, stem
from medkit.options import RunOptions, granted_threads
from medkit.records import Record, read_sidecar, sha256_of
from medkit.signals import time_limit

if TYPE_CHECKING:
    import numpy as np

    from medkit.images import Image
    from medkit.space import Grid

log = logging.getLogger("medkit")


class Writable(Protocol):
    """What a task may give as an output: an `Image`, a transform, or anything else that can write itself."""

    def write(self, path: Path) -> None:
        """Writes the whole file; the path's suffix names the format."""


@dataclass(frozen=True)
class Text:
    """An output that is text, such as a table."""

    content: str

    def write(self, path: Path) -> None:
        """Writes the text as UTF-8; file names in it that are not UTF-8 keep their bytes."""
        path.write_text(self.content, encoding="utf-8", errors="surrogateescape")


@dataclass(frozen=True)
class Runtime:
    """What a task may use of the machine."""

    device: str
    """`cpu`, `cuda`, `cuda:N` or `mps`; never `auto`."""
    threads: int
    seed: int

    def limit_torch(self) -> None:
        """Gives torch these threads, importing it; `run_task` does so itself where a task says `uses_torch`."""
        # Threads that wait by spinning take the processor from the other stages of a pipe: two registrations
        # side by side on two cores took 18 s with torch's default and 6 s so. Read when torch is loaded.
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
        keep_freed_memory()
        import torch

        torch.set_num_threads(self.threads)


@dataclass(frozen=True)
class Result:
    """What a task's function gives for one case."""

    outputs: Mapping[str, Writable]
    """Role -> value, for exactly the roles that the task declares."""
    metrics: Mapping[str, Any] = field(default_factory=dict)
    """Numbers about the quality of the result, for the sidecar."""
    warnings: Sequence[str] = ()
    """What a user should look at, in sentences."""
    details: Mapping[str, Any] = field(default_factory=dict)
    """Further facts for the sidecar's `medkit` block."""
    spatial_reference: Path | None = None
    """The image whose grid the main output lies on; None: the case's input."""
    kind: str | None = None
    """What the main output is, where that depends on the input; None: as the task declares."""
    description: str = ""
    """One sentence for people; none: made from the task's name."""
    figure: Callable[[], np.ndarray] | None = None
    """Draws the picture of `--qc`, (H, W, 3) uint8; None: the main output over, or beside, the input."""


@dataclass(frozen=True)
class Stages:
    """A task's work on one case in three parts, so that other cases are read and written while one is computed.

    Called like a function it does the three parts in turn.
    """

    prepare: Callable[[Case], Any]
    """Reads and prepares; called in a thread of its own, one case ahead."""
    compute: Callable[[Case, Any], Any]
    """The work of the device, on what `prepare` gave; called in the main thread."""
    finish: Callable[[Case, Any], Result]
    """Makes the result from what `compute` gave; called in the thread that writes it."""
    together: Callable[[Sequence[Case], Sequence[Any]], Sequence[Any]] | None = None
    """`compute` for several small cases at once, where that is quicker; an error in it has each computed alone."""

    def __call__(self, case: Case) -> Result:
        return self.finish(case, self.compute(case, self.prepare(case)))


@dataclass(frozen=True)
class Task:
    """A task as `run_task` needs it; must be picklable for `--workers` (functions of modules, `functools.partial`)."""

    name: str
    """As in `medkit run NAME`."""
    outputs: Sequence[Output]
    """What every case gives, the main output first: its line travels down the pipe and its sidecar is the record."""
    process: Callable[[Case], Result] | None = None
    """The work on one case; or give `setup`."""
    setup: Callable[[Runtime], Callable[[Case], Result]] | None = None
    """Called once per process before the first case that needs work; returns `process`. For models, fixed images."""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    """The task's own options: kept in the sidecar, and a result made with others is outdated."""
    takes: Sequence[str] = ("image",)
    """The kinds of file it works on; handed another kind, the case goes back through its sources."""
    role: str = "image"
    """What the case's own input is called among `inputs`."""
    accepts: Sequence[str] = ()
    """Further named inputs that a record may bring for its case."""
    shared: Mapping[str, Path] = field(default_factory=dict)
    """Role -> file that all cases use, such as the fixed image."""
    arity: Literal["each", "all"] = "each"
    """Whether every line is a case, or all lines (of a `--group-by` group) are one."""
    members: Sequence[Output] = ()
    """With `arity="all"`: what is made for every line beside `outputs`, under its own name; the roles are numbered like
    the inputs (`transform`, `transform_2`, ...)."""
    whole: bool = False
    """With `arity="all"`: nothing is made where one of the lines has failed, since the result would lack a part."""
    summary: Callable[[Record], str] | None = None
    """What the progress line says of a finished case beside its seconds."""
    memory: Callable[[Grid], int] | None = None
    """Bytes needed for an input on this grid, for `--dry-run`."""
    devices: Sequence[str] = ("cpu",)
    """Where it can compute: `cpu`, `cuda`, `mps`; `--device auto` takes a GPU that is named here and present."""
    bundle: Mapping[str, Any] | None = None
    """The bundle that it runs, by name, version and digests, for the sidecar; a result of another one is outdated."""
    staged: bool = False
    """Whether `process`, or what `setup` returns, is a `Stages`: cases then overlap (see `medkit.overlap`)."""
    uses_torch: bool = True
    """Whether torch is to be given the threads before the first case (importing it takes over a second)."""
    table: Table | None = None
    """A file that takes the results of all cases as rows; `outputs` is empty then, a case has no file of its own."""


@dataclass(frozen=True)
class Table:
    """A file with a row, or several, for every case (see `medkit.rows`)."""

    path: Path
    """A `.tsv`, absolute."""
    columns: Sequence[str]
    """Of the task; the input's name and digest come before them."""
    rows: Callable[[Record], Sequence[Mapping[str, str]]]
    """Column -> text, for each of a finished case's rows; what is missing is `n/a`."""


@dataclass(frozen=True)
class Plan:
    """A case that is ready to be worked on: picklable, so that it can be handed to a worker."""

    record: Record
    """What came down the pipe."""
    inputs: Mapping[str, Path]
    """Role -> file, the case's own input first."""
    targets: Targets
    members: tuple[Record, ...] = ()
    """All records of the case, for tasks that take several lines as one."""


class Case:
    """What a task's function is given: the inputs of one case, read and checked when asked for."""

    def __init__(self, plan: Plan, task: Task, options: RunOptions, runtime: Runtime) -> None:
        self.record = plan.record
        self.members = plan.members
        self.inputs = plan.inputs
        self.path = plan.inputs[task.role]
        self.outputs = plan.targets.outputs
        """Role -> file that will be made; none where the case is a row of a table."""
        self.runtime = runtime
        self.warnings: list[str] = []
        self._options = options
        self._read: dict[Path, Image] = {}

    def image(self, role: str | None = None, *, labels: bool = False) -> Image:
        """The image of a role (the case's own input where None), checked; `labels`: whole numbers are expected.

        Raises InputError.
        """
        path = self.path if role is None else self.inputs[role]
        if path not in self._read:
            from medkit.images import read_image

            image = read_image(path, frame=self._options.frame, series=self._options.series, labels=labels)
            self.warnings.extend(image.warnings)
            self._read[path] = image
        return self._read[path]

    def release(self, role: str) -> None:
        """Forgets the image of a role, for cases of more images than fit into memory."""
        self._read.pop(self.inputs[role], None)

    @property
    def held(self) -> int:
        """Bytes of the images that were read and are kept."""
        return sum(image.data.nbytes for image in self._read.values())


class CaseWorker:
    """Works on plans, one after the other, in one process; sets the task up before the first one that needs it."""

    def __init__(self, task: Task, options: RunOptions) -> None:
        self.task = task
        self.options = options
        if task.uses_torch:
            keep_freed_memory()  # which `limit_torch` would do too late: threads that read and write come before it
        self._process: Callable[[Case], Result] | None = None

    def __call__(self, plan: Plan) -> Record:
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

    def known(self, plan: Plan) -> Fingerprint | Record:
        """What a case's result will depend on; the record of one that need not, or cannot, be made."""
        try:
            fingerprint = self._fingerprint(plan)
            if done := self._existing(plan, fingerprint):
                remove_leftovers(plan.targets)
                return done
        except (MedkitError, OSError) as error:
            return self.failed(plan, error)
        return fingerprint

    def foreseen(self, plan: Plan) -> Record | None:
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

    def check(self, plan: Plan, fingerprint: Fingerprint) -> None:
        """Raises OutputError where a result must not be replaced."""
        check_existing(
            plan.targets, fingerprint, overwrite=self.options.overwrite, skip_existing=self.options.skip_existing
        )

    def failed(self, plan: Plan, error: BaseException) -> Record:
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

    def _fingerprint(self, plan: Plan) -> Fingerprint:
        return Fingerprint(
            source=plan.record.path,
            inputs={role: digest(path) for role, path in plan.inputs.items()},
            settings=settings_of_run(self.task, self.options),
        )

    def _existing(self, plan: Plan, fingerprint: Fingerprint) -> Record | None:
        """The record of a result that need not be made again, with `--skip-existing`."""
        if not plan.targets.outputs:  # whether its rows are in the table was looked up before
            return None
        record = read_sidecar(plan.targets.sidecar) if self.options.skip_existing else None
        if record and fingerprint.made(record) and fingerprint.equals(record) and is_whole(record, plan.targets):
            return replace(record, medkit=dict(record.medkit) | {"skipped": True})
        return None

    def _work(
        self,
        plan: Plan,
        process: Callable[[Case], Result],
        claim: Claim | Unclaimed,
        fingerprint: Fingerprint,
        start: float,
    ) -> Record:
        case = Case(plan, self.task, self.options, self.runtime)
        with time_limit(self.options.timeout_per_case):
            result = process(case)
            self.write(plan, result, claim)
        return self.commit(plan, case, result, claim, fingerprint, time.perf_counter() - start)

    def write(self, plan: Plan, result: Result, claim: Claim | Unclaimed) -> None:
        """Writes the files of a result where they are made whole. Raises MedkitError for roles not declared."""
        _check_roles(self.task, plan, result)
        for role, value in result.outputs.items():
            value.write(claim.part / plan.targets.outputs[role].name)

    def commit(
        self, plan: Plan, case: Case, result: Result, claim: Claim | Unclaimed, fingerprint: Fingerprint, seconds: float
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
        self, plan: Plan, case: Case, result: Result, claim: Claim | Unclaimed, fingerprint: Fingerprint, seconds: float
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

    def _draw(self, case: Case, plan: Plan, result: Result, path: Path) -> None:
        """Writes the picture of a case; one that cannot be drawn is a warning, not a failure of the case."""
        from medkit.figures import write_png

        try:
            picture = result.figure() if result.figure else self._default_figure(case, result)
            path.parent.mkdir(parents=True, exist_ok=True)
            if picture is not None:
                write_png(picture, path)
        except Exception as error:
            log.warning("%s: no picture: %s", plan.record.path.name, error)
            log.debug("", exc_info=True)

    def _default_figure(self, case: Case, result: Result) -> np.ndarray | None:
        from medkit.figures import overlay_mosaic
        from medkit.images import Image

        if not self.task.outputs:
            return None
        value = result.outputs[self.task.outputs[0].role]
        kind = result.kind or self.task.outputs[0].kind
        if not isinstance(value, Image):
            return None
        drawn: Literal["labels", "image"] = "labels" if kind in ("labels", "mask") else "image"
        return overlay_mosaic(case.image(), value, kind=drawn, title=f"{self.task.name}  {case.path.name}")


def numbered(role: str, number: int) -> str:
    """The role of a case's line, from 1: `image`, `image_2`, ..."""
    return role if number == 1 else f"{role}_{number}"


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


def _check_roles(task: Task, plan: Plan, result: Result) -> None:
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


def digest(path: Path) -> str:
    """sha256 of an input; a file that all cases share is read once. Raises InputError where it cannot be read."""
    try:
        status = path.stat()
        return _digest(path, status.st_mtime_ns, status.st_size)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from None


@functools.lru_cache(maxsize=64)
def _digest(path: Path, modified: int, size: int) -> str:
    return sha256_of(path)
