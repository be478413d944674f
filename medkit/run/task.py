"""What a task declares, what its function is given for a case, and what it returns."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from medkit.machine.allocator import keep_freed_memory
from medkit.machine.threads import limit_torch
from medkit.options import RunOptions
from medkit.pipe.records import Record
from medkit.run.looks import LOOK_AT_THIS
from medkit.run.outputs import Output, Targets

if TYPE_CHECKING:
    import numpy as np

    from medkit.images.image import Image
    from medkit.space import Grid


class Writable(Protocol):
    """What a task may return as an output: an `Image`, a transform, or anything else that can write itself."""

    def write(self, path: Path) -> None:
        """Write the whole file; the path's suffix names the format."""


@dataclass(frozen=True)
class Text:
    """An output that is text, such as a table."""

    content: str

    def write(self, path: Path) -> None:
        """Write the text as UTF-8; file names in it that are not UTF-8 keep their bytes."""
        path.write_text(self.content, encoding="utf-8", errors="surrogateescape")


@dataclass(frozen=True)
class Runtime:
    """What a task may use of the machine."""

    device: str
    """`cpu`, `cuda`, `cuda:N` or `mps`; never `auto`."""
    threads: int
    """How many threads it may compute with."""
    seed: int
    """Seed of everything random."""
    frame: int | None = None
    """Index of the frame of images that hold several, if one was picked."""
    series: str | None = None
    """UID or number of the series of DICOM folders that hold several, if one was picked."""

    def limit_torch(self) -> None:
        """Import torch with these threads; `run_task` has done so already if the task declares `uses_torch`."""
        keep_freed_memory()
        limit_torch(self.threads)


@dataclass(frozen=True)
class Result:
    """What a task's function returns for one case."""

    outputs: Mapping[str, Writable]
    """Role -> value, for exactly the roles that the task declares."""
    metrics: Mapping[str, Any] = field(default_factory=dict)
    """Numbers about the quality of the result, for the sidecar."""
    warnings: Sequence[str] = ()
    """What is doubtful about the result, in sentences: a person should look at it (`look` in the record). What is only
    unusual about an input belongs to `Case.warnings`, and how the work went to `details`."""
    details: Mapping[str, Any] = field(default_factory=dict)
    """Further facts for the sidecar's `medkit` block."""
    spatial_reference: Path | None = None
    """The image whose grid the main output lies on; None: the case's input."""
    kind: str | None = None
    """What the main output is, if that depends on the input; None: as the task declares."""
    description: str = ""
    """One sentence for people; if empty, it is made from the task's name."""
    figure: Callable[[], np.ndarray] | None = None
    """Draws the picture of `--qc`, (H, W, 3) uint8; None: the main output over, or next to, the input."""


@dataclass(frozen=True)
class Stages:
    """A task's work on one case in three parts, so that other cases are read and written while one is computed.

    Called like a function, it does the three parts in turn.
    """

    prepare: Callable[[Case], Any]
    """Reads and prepares a case; called in a thread for reading, one case ahead."""
    compute: Callable[[Case, Any], Any]
    """Does the work of the device on the value from `prepare`; called in the main thread."""
    finish: Callable[[Case, Any], Result]
    """Makes the result from the value of `compute`; called in the thread that writes it."""
    together: Callable[[Sequence[Case], Sequence[Any]], Sequence[Any]] | None = None
    """`compute` for several small cases at once, where that is faster; if it raises, each is computed separately."""

    def __call__(self, case: Case) -> Result:
        return self.finish(case, self.compute(case, self.prepare(case)))


@dataclass(frozen=True)
class Task:
    """A task as `run_task` needs it; must be picklable for `--workers` (functions of modules, `functools.partial`)."""

    name: str
    """As in `medkit run NAME`."""
    outputs: Sequence[Output]
    """The files made for every case, the main output first: its path travels down the pipe, its sidecar is the
    record."""
    process: Callable[[Case], Result] | None = None
    """The work on one case; either this or `setup` is needed."""
    setup: Callable[[Runtime], Callable[[Case], Result]] | None = None
    """Returns `process`, for tasks with models or fixed images; called once per process, before the first case that
    needs work."""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    """The task's own options: they stand in the sidecar, and a result made with others is outdated."""
    takes: Sequence[str] = ("image",)
    """The kinds of file it works on; given another kind, it goes back through the file's sources."""
    modalities: Sequence[str] = ()
    """The modalities, such as `MR`, of the series that it takes from a DICOM study; empty: any."""
    planes: bool = False
    """Whether it also takes series of a single slice from a DICOM study; X-rays are taken all the same."""
    role: str = "image"
    """The name of the case's own input among `inputs`."""
    accepts: Sequence[str] = ()
    """Further named inputs that a record may bring for its case."""
    reads: Callable[[Record], Mapping[str, Any]] | None = None
    """Returns what the task takes from a case's record besides files; a result made with other values is outdated."""
    shared: Mapping[str, Path] = field(default_factory=dict)
    """Role -> file that all cases use, such as the fixed image."""
    own: Callable[[Path], Mapping[str, Path]] | None = None
    """Returns role -> further file of a case, known by the path of its own input. Raises InputError."""
    arity: Literal["each", "all"] = "each"
    """Whether every line is a case, or all lines (of a `--group-by` group) are one."""
    members: Sequence[Output] = ()
    """With `arity="all"`: the files made for every line besides `outputs`, each under the name of its own input; the
    roles are numbered like the inputs (`transform`, `transform_2`, ...)."""
    whole: bool = False
    """With `arity="all"`: nothing is made if one of the lines has failed, since the result would lack a part."""
    summary: Callable[[Record], str] | None = None
    """Text about a finished case for its progress line, after the seconds."""
    memory: Callable[[Grid], int] | None = None
    """Bytes needed for an input on this grid, for `--dry-run`."""
    devices: Sequence[str] = ("cpu",)
    """Where it can compute: `cpu`, `cuda`, `mps`; `--device auto` takes a GPU that is named here and present."""
    bundle: Mapping[str, Any] | None = None
    """The bundle that it runs, by name, version and digests, for the sidecar; a result of another one is outdated."""
    staged: bool = False
    """Whether `process`, or what `setup` returns, is a `Stages`: cases then overlap (see `medkit.run.stages`)."""
    uses_torch: bool = True
    """Whether torch gets its threads before the first case (importing it takes over a second)."""
    table: Table | None = None
    """A file that takes the results of all cases as rows; `outputs` is empty then, a case has no file of its own."""


@dataclass(frozen=True)
class Table:
    """A file with one or more rows for every case (see `medkit.run.table`)."""

    path: Path
    """A `.tsv`, absolute."""
    columns: Sequence[str]
    """The task's columns; the input's name, its digest and the reason to look come before them."""
    rows: Callable[[Record], Sequence[Mapping[str, str]]]
    """Returns column -> text for each row of a finished case; a missing column becomes `n/a`."""
    optional: Sequence[str] = ()
    """Those of `columns` that the finished table leaves out if no row has a value there."""


@dataclass(frozen=True)
class CasePlan:
    """A case that is ready to be worked on: picklable, so that it can be handed to a child process."""

    record: Record
    """The record that came down the pipe."""
    inputs: Mapping[str, Path]
    """Role -> file, the case's own input first."""
    targets: Targets
    """Where the files of the case go."""
    members: tuple[Record, ...] = ()
    """All records of the case, for tasks that take several lines as one."""
    again: bool = False
    """Whether the case may be begun several times, on workers that are lost: each attempt waits for those before it,
    and keeps the result that one of them has made."""

    @property
    def extra(self) -> Mapping[str, Any]:
        """The keys that medkit does not know, to be passed on; of several records, those in which all agree."""
        others = [member.extra for member in self.members]
        return {k: v for k, v in self.record.extra.items() if all(k in o and o[k] == v for o in others)}


Item = CasePlan | Record
"""A case to work on, or the record of one that is already decided, such as an earlier failure that is passed on."""


class Case:
    """What a task's function is given: the inputs of one case, read and checked on request."""

    def __init__(self, plan: CasePlan, task: Task, options: RunOptions, runtime: Runtime) -> None:
        self.record = plan.record
        """The record that came down the pipe."""
        self.members = plan.members
        """All records of the case, for tasks that take several lines as one."""
        self.inputs = plan.inputs
        """Role -> file, the case's own input first."""
        self.path = plan.inputs[task.role]
        """The case's own input."""
        self.outputs = plan.targets.outputs
        """Role -> file that will be made; empty if the case is a row of a table."""
        self.runtime = runtime
        """What the task may use of the machine."""
        self.warnings: list[str] = []
        """Warnings about the inputs that were read, for the sidecar; nobody needs to look at a result for them."""
        self.doubts: list[str] = []
        """What makes every result of these inputs doubtful, in sentences; the worker adds it to `Result.warnings`."""
        self._options = options
        self._read: dict[Path, Image] = {}

    def image(self, role: str | None = None, *, labels: bool = False, blended: bool = False) -> Image:
        """Return the checked image of a role (None: the case's own input); `labels`: whole numbers are expected.

        `blended`: the task mixes the values of neighbours, so that values which look like labels are a doubt.
        `--frame` picks one of the frames of every image that has several. Raises InputError, also if no image of the
        case has the frame.
        """
        path = self.path if role is None else self.inputs[role]
        if path not in self._read:
            image = self._one_frame(path, labels)
            self.note(image)
            self._read[path] = image
        if blended:
            self._doubt_labels(self._read[path])
        return self._read[path]

    def note(self, image: Image) -> None:
        """Take over what the reader says about an image of the case, for a task that reads it by itself."""
        self.warnings.extend(image.warnings)
        self.doubts.extend(f"{LOOK_AT_THIS}{self._named(image)}{doubt}" for doubt in image.doubts)

    def _doubt_labels(self, image: Image) -> None:
        from medkit.images.label_values import looks_like_labels

        if looks_like_labels(image):
            text = "its values look like labels, and are blended as if they were intensities"
            self.doubts.append(f"{LOOK_AT_THIS}{self._named(image)}{text}")

    def _named(self, image: Image) -> str:
        """Return the name of an image and a colon, or nothing for the case's own input."""
        return f"{image.path.name}: " if image.path and image.path != self.path else ""

    def _one_frame(self, path: Path, labels: bool) -> Image:
        from medkit.images.image import holds_several_frames, read_image
        from medkit.images.stored import FramesError

        frame, series = self._options.frame, self._options.series
        try:
            return read_image(path, frame=frame, series=series, labels=labels)
        except FramesError:
            others = {file for file in self.inputs.values() if file != path}
            if frame is None or not any(holds_several_frames(file, series=series) for file in others):
                raise
        return read_image(path, frame=frame, series=series, labels=labels, frame_if_several=True)

    def release(self, role: str) -> None:
        """Forget the image of a role, for cases of more images than fit into memory."""
        self._read.pop(self.inputs[role], None)

    @property
    def held(self) -> int:
        """Bytes of the images that were read and are kept."""
        return sum(image.data.nbytes for image in self._read.values())


def numbered(role: str, number: int) -> str:
    """Return the role of a case's n-th line, counted from 1.

    >>> numbered("image", 1), numbered("image", 2)
    ('image', 'image_2')
    """
    return role if number == 1 else f"{role}_{number}"
