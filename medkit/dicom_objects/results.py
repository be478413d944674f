"""Tasks whose results are also written as DICOM: the series of each case is found before the work, the objects after.

A plugin states once what its results are (`Segments`, `DerivedImages`, ...), and `with_dicom` adds the files.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from medkit.dicom_objects.codes import Algorithm, Meaning
from medkit.dicom_objects.identity import VERSION, highdicom
from medkit.dicom_objects.source import Lead, Series, is_same_person, leads_of, series_on_grid
from medkit.errors import InputError, UsageError, listed
from medkit.images.image import Image, read_grid
from medkit.pipe.records import Record, record_of
from medkit.run.outputs import Output
from medkit.run.task import Case, Result, Runtime, Stages, Task, Writable

if TYPE_CHECKING:
    from medkit.dicom_objects.options import DicomChoices
    from medkit.space import Grid

SOURCE = "dicom_source"
"""Role of the series of a case, in records that name it and for `--dicom-source`."""


@dataclass(frozen=True, eq=False)
class Origin:
    """Where a case comes from: its person's series, and those in the space of its image."""

    path: Path
    """The case's own image."""
    record: Record
    """Of that image."""
    own: Lead
    """How the image is read."""
    given: Path | None
    """The series that the user named."""

    @classmethod
    def of(cls, case: Case, given: Path | None, record: Record | None = None) -> Origin:
        """Return the origin of a case; `record`: of its own image, None: what its sidecar says."""
        record = record or (case.record if case.record.path == case.path else record_of(case.path))
        return cls(case.path, record, Lead(case.path, None, case.runtime.series, case.runtime.frame), given)

    def leads(self, *, space: bool) -> Sequence[Lead]:
        """Return where the series may be, the nearest first."""
        if self.given is not None:
            return [Lead(self.given, None, self.own.series, self.own.frame)]
        return list(leads_of(self.record, self.own, space=space))

    @cached_property
    def person(self) -> Series:
        """The series of the person that the case shows. Raises InputError if none is known."""
        leads = self.leads(space=False)
        if not leads:
            raise InputError(
                f"{self.path}: a DICOM object belongs to a DICOM series, and none is among the sources of this image: "
                "name its folder with --dicom-source FOLDER"
            )
        return leads[0].read()

    def on_grid(self, grid: Grid) -> Series:
        """Return the series whose images have the voxels of a grid. Raises InputError if there is none."""
        person = self.person
        found, others = series_on_grid(iter(self.leads(space=True)), grid)
        if found is None:
            raise InputError(
                f"{self.path}: lies on another grid than {listed([str(o.path) for o in others] or [str(person.path)])}"
                ": --dicom image, where the grid was changed, makes a series on the new one, which is then found here"
            )
        if not is_same_person(found, person):
            raise self._two_persons(found)
        return found

    @cached_property
    def in_space(self) -> Series:
        """The nearest series in the space of the image, on whatever grid. Raises InputError."""
        person = self.person
        found = self.leads(space=True)[0].read() if self.leads(space=True) else person
        if not is_same_person(found, person):
            raise self._two_persons(found)
        return found

    def _two_persons(self, other: Series) -> InputError:
        return InputError(
            f"{self.path}: shows the person of {self.person.path}, and lies on the images of {other.path}, which state "
            "another Patient ID: --dicom image, at the registration, makes a series of this person on that grid"
        )


class Maker(Protocol):
    """What makes DICOM objects of one kind from the results of a task."""

    @property
    def kind(self) -> str:
        """One of `medkit.dicom_objects.options.KINDS`."""

    @property
    def outputs(self) -> Sequence[Output]:
        """The files of a case."""

    def check(self, case: Case, origin: Origin) -> None:
        """Find what is needed before any work. Raises InputError."""

    def make(
        self, case: Case, origin: Origin, result: Result, algorithm: Algorithm, made: Mapping[str, Writable]
    ) -> Mapping[str, Writable]:
        """Return role -> object; `made`: what the makers before have made."""


@dataclass(frozen=True)
class Segments:
    """Label maps on the grid of the case's image as SEG."""

    role: str = "labels"
    """Which output of the task holds the labels."""
    meanings: Mapping[str, Meaning] = field(default_factory=dict)
    """Name of a structure -> what it means; others get private codes."""

    @property
    def kind(self) -> str:
        return "seg"

    @property
    def outputs(self) -> Sequence[Output]:
        return [Output("dicom_seg", "labels", "seg", ".dcm", {"desc": "dicom"})]

    def check(self, case: Case, origin: Origin) -> None:
        origin.on_grid(read_grid(case.path, series=origin.own.series))

    def make(
        self, case: Case, origin: Origin, result: Result, algorithm: Algorithm, made: Mapping[str, Writable]
    ) -> Mapping[str, Writable]:
        from medkit.dicom_objects.segmentation import segmentation, segments_of

        labels = result.outputs[self.role]
        assert isinstance(labels, Image), "segments are made from a label map"
        names = {int(n): str(name) for n, name in result.details.get("labels", {}).items()}
        series = origin.on_grid(labels.grid)
        return {"dicom_seg": segmentation(labels, segments_of(names, self.meanings), series, algorithm)}


def with_dicom(task: Task, chosen: DicomChoices, *makers: Maker) -> Task:
    """Return a task that also writes its results as DICOM, if that is wanted.

    makers: what the task's results are, those first that others refer to. Raises UsageError if highdicom is missing,
    if the task writes rows of a table instead of files, and for a source without a kind.
    """
    if not chosen.kinds:
        if chosen.source:
            raise UsageError("--dicom-source needs --dicom")
        return task
    highdicom()
    if task.table is not None:
        raise UsageError("--table writes no files for single cases: leave out --dicom")
    wanted = [maker for maker in makers if maker.kind in chosen.kinds]
    return replace(
        task,
        outputs=(*task.outputs, *(output for maker in wanted for output in maker.outputs)),
        process=None,
        setup=functools.partial(_set_up, task=task, makers=tuple(wanted)),
        arguments={**task.arguments, "dicom": [maker.kind for maker in wanted]},
        accepts=(*task.accepts, SOURCE),
        shared={**task.shared, **({SOURCE: chosen.source} if chosen.source else {})},
    )


def _set_up(runtime: Runtime, *, task: Task, makers: Sequence[Maker]) -> Stages | Callable[[Case], Result]:
    """Set up the task, and return its work with the objects added."""
    process = task.setup(runtime) if task.setup else task.process
    assert process is not None, "a Task needs process or setup"
    work = _Work(task, tuple(makers))
    if isinstance(process, Stages):
        return work.stages(process)
    return functools.partial(work.whole, process)


@dataclass(frozen=True)
class _Work:
    """The work on a case, around that of the task."""

    task: Task
    makers: tuple[Maker, ...]

    def stages(self, own: Stages) -> Stages:
        """Return the stages of a task with the objects added."""

        def prepare(case: Case) -> tuple[Origin, Any]:
            return self._origin(case), own.prepare(case)

        def compute(case: Case, value: tuple[Origin, Any]) -> tuple[Origin, Any]:
            return value[0], own.compute(case, value[1])

        def finish(case: Case, value: tuple[Origin, Any]) -> Result:
            return self._with_objects(case, value[0], own.finish(case, value[1]))

        def together(cases: Sequence[Case], values: Sequence[Any]) -> Sequence[Any]:
            assert own.together is not None
            done = own.together(cases, [value for _, value in values])
            return [(origin, value) for (origin, _), value in zip(values, done, strict=True)]

        return Stages(prepare, compute, finish, together if own.together else None)

    def whole(self, process: Callable[[Case], Result], case: Case) -> Result:
        """Work on a case in one piece."""
        origin = self._origin(case)
        return self._with_objects(case, origin, process(case))

    def _origin(self, case: Case) -> Origin:
        """Return where a case comes from. Raises InputError, before any work, for one that no series is known of."""
        origin = Origin.of(case, case.inputs.get(SOURCE))
        for maker in self.makers:
            maker.check(case, origin)
        return origin

    def _with_objects(self, case: Case, origin: Origin, result: Result) -> Result:
        made: dict[str, Writable] = {}
        for maker in self.makers:
            made |= maker.make(case, origin, result, self._algorithm(result), made)
        return replace(result, outputs={**result.outputs, **made})

    def _algorithm(self, result: Result) -> Algorithm:
        """Return what made a result: the bundle, or the method."""
        bundle = result.details.get("choice") or self.task.bundle
        if bundle and bundle.get("version"):
            return Algorithm(self.task.name, str(bundle["name"]), str(bundle["version"]), learned=True)
        arguments = self.task.arguments
        method = next((arguments[key] for key in ("method", "type") if isinstance(arguments.get(key), str)), None)
        return Algorithm(self.task.name, method or self.task.name, VERSION)
