"""One case of a task: what a plugin's function is given, what it gives back, and how that becomes whole files."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from medkit.machine.allocator import keep_freed_memory
from medkit.options import RunOptions
from medkit.pipe.records import Record
from medkit.run.outputs import Output, Targets

if TYPE_CHECKING:
    import numpy as np

    from medkit.images.image import Image
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
    """Whether `process`, or what `setup` returns, is a `Stages`: cases then overlap (see `medkit.run.stages`)."""
    uses_torch: bool = True
    """Whether torch is to be given the threads before the first case (importing it takes over a second)."""
    table: Table | None = None
    """A file that takes the results of all cases as rows; `outputs` is empty then, a case has no file of its own."""


@dataclass(frozen=True)
class Table:
    """A file with a row, or several, for every case (see `medkit.run.table`)."""

    path: Path
    """A `.tsv`, absolute."""
    columns: Sequence[str]
    """Of the task; the input's name and digest come before them."""
    rows: Callable[[Record], Sequence[Mapping[str, str]]]
    """Column -> text, for each of a finished case's rows; what is missing is `n/a`."""


@dataclass(frozen=True)
class CasePlan:
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

    def __init__(self, plan: CasePlan, task: Task, options: RunOptions, runtime: Runtime) -> None:
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
            from medkit.images.image import read_image

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


def numbered(role: str, number: int) -> str:
    """The role of a case's line, from 1: `image`, `image_2`, ..."""
    return role if number == 1 else f"{role}_{number}"
