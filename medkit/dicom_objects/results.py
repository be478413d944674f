"""Tasks whose results are also written as DICOM: the series of each case is found before the work, the objects after.

A plugin states once what its results are (`Segments`, `DerivedImages`, ...), and `with_dicom` adds the files.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol

from medkit.dicom_objects.codes import Algorithm, Meaning
from medkit.dicom_objects.identity import VERSION, DicomObject, highdicom, uid_of
from medkit.dicom_objects.origin import Origin
from medkit.dicom_objects.source import SERIES_ROLE, Lead, is_same_person, leads_of, series_on_grid
from medkit.errors import InputError, UsageError
from medkit.images.image import Image, read_grid
from medkit.pipe.records import record_of
from medkit.run.existing import file_digest
from medkit.run.outputs import Output
from medkit.run.task import Case, Result, Runtime, Stages, Task, Writable, numbered

if TYPE_CHECKING:
    from medkit.dicom_objects.derived_image import Space
    from medkit.dicom_objects.options import DicomChoices
    from medkit.dicom_objects.report import Answer
    from medkit.dicom_objects.segmentation import Segment
    from medkit.space import Grid

SOURCE = "dicom_source"
"""Role of the series of a case, in records that name it and for `--dicom-source`."""


class Maker(Protocol):
    """What makes DICOM objects of one kind from the results of a task."""

    @property
    def kind(self) -> str:
        """One of `medkit.dicom_objects.options.KINDS`."""

    @property
    def needs(self) -> Sequence[str]:
        """Kinds of objects that it refers to, which are written too."""

    def outputs(self, task: Task) -> Sequence[Output]:
        """Return the files of a case of the task."""

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

    kind = "seg"
    needs = ()

    def outputs(self, task: Task) -> Sequence[Output]:
        return [Output("dicom_seg", "labels", "seg", ".dcm", {"desc": "dicom"})]

    def check(self, case: Case, origin: Origin) -> None:
        origin.on_grid(read_grid(case.path, series=origin.own.series))

    def make(
        self, case: Case, origin: Origin, result: Result, algorithm: Algorithm, made: Mapping[str, Writable]
    ) -> Mapping[str, Writable]:
        from medkit.dicom_objects.segmentation import segmentation

        labels = result.outputs[self.role]
        assert isinstance(labels, Image), "segments are made from a label map"
        series = origin.on_grid(labels.grid)
        if len(series.images) != series.grid.shape[2]:
            low, high = float(series.steps.min()), float(series.steps.max())
            case.warnings.append(
                f"the images of the series are {low:.3g} to {high:.3g} mm apart: in the DICOM segmentation each has "
                "the labels of the nearest slice"
            )
        return {"dicom_seg": segmentation(labels, self.of(result), series, algorithm)}

    def of(self, result: Result) -> list[Segment]:
        """Return the segments of a result, by the names of labels in its details."""
        from medkit.dicom_objects.segmentation import segments_of

        names = {int(n): str(name) for n, name in result.details.get("labels", {}).items()}
        return segments_of(names, self.meanings)


@dataclass(frozen=True)
class DerivedImages:
    """Images as derived series."""

    role: str = "image"
    """Which output of the task holds the image."""
    moved: bool = False
    """Whether the image was brought to the space of the result's `spatial_reference`, or of no image if that is None;
    else it keeps the space of the case's image."""

    kind = "image"
    needs = ()

    def outputs(self, task: Task) -> Sequence[Output]:
        own = next((output for output in task.outputs if output.role == self.role), None)
        if own is None:
            raise UsageError(f"--dicom image: needs {self.role} among --outputs")
        name = f"{own.suffix}_dicom"
        entities = {**own.entities, "desc": "".join(c for c in name if c.isalnum())}
        folder = replace(own, role=SERIES_ROLE, suffix=name, extension="", extensions=(), as_picture=False)
        return [replace(folder, entities=entities)]

    def check(self, case: Case, origin: Origin) -> None:
        from medkit.dicom_objects.derived_image import check_class

        check_class(origin.person)
        assert origin.further is not None, "series that are gone are found before any work"

    def make(
        self, case: Case, origin: Origin, result: Result, algorithm: Algorithm, made: Mapping[str, Writable]
    ) -> Mapping[str, Writable]:
        from medkit.dicom_objects.derived_image import derived_series

        image = result.outputs[self.role]
        assert isinstance(image, Image), "a derived series is made from an image"
        person = origin.person
        space = self._space(case, origin, result, image.grid) if person.has_position else None
        return {SERIES_ROLE: derived_series(image, person, space, algorithm, origin.further)}

    def _space(self, case: Case, origin: Origin, result: Result, grid: Grid) -> Space:
        """Return the frame of reference of a result: that of a DICOM series which has it, else a new one."""
        from medkit.dicom_objects.derived_image import Space

        person = origin.person
        reference = result.spatial_reference if self.moved else None
        if self.moved and reference is None:
            return Space(uid_of("frame", str(person.header.SeriesInstanceUID), grid.digest()))
        if reference is None:
            leads, grid = origin.leads(space=True), read_grid(case.path, series=origin.own.series)
        else:
            leads = list(leads_of(record_of(reference), Lead(reference), space=True))
        found, _ = series_on_grid(iter(leads), grid)
        if found is not None and is_same_person(found.header, person.header):
            return Space(found.frame_of_reference, str(found.header.get("PositionReferenceIndicator") or ""))
        # all images of a person that are brought to one image share its space
        whose = str(person.header.PatientID) or str(person.header.StudyInstanceUID)
        return Space(uid_of("frame", whose, file_digest(reference or case.path)))


_REPORT = Output("dicom_sr", "table", "measurements", ".dcm")


@dataclass(frozen=True)
class VolumeReport:
    """The volumes of segments as a structured report, which refers to their SEG."""

    segments: Segments

    kind = "sr"
    needs = ("seg",)

    def outputs(self, task: Task) -> Sequence[Output]:
        return [_REPORT]

    def check(self, case: Case, origin: Origin) -> None:
        """Refuse images of no known depth, such as X-rays: nothing in them has a volume."""
        if not origin.person.has_position:
            raise InputError(f"{origin.path}: has no depth, so no structure in it has a volume: leave out --dicom sr")

    def make(
        self, case: Case, origin: Origin, result: Result, algorithm: Algorithm, made: Mapping[str, Writable]
    ) -> Mapping[str, Writable]:
        from medkit.dicom_objects.report import Volume, volume_report

        labels, seg = result.outputs[self.segments.role], made["dicom_seg"]
        assert isinstance(labels, Image), "segments are made from a label map"
        assert isinstance(seg, DicomObject), "the segments come first"
        known = result.metrics.get("volumes_mm3", {})
        found = [Volume(one, float(known[one.name])) for one in self.segments.of(result) if one.name in known]
        return {"dicom_sr": volume_report(found, seg.dataset, origin.on_grid(labels.grid), algorithm)}


@dataclass(frozen=True)
class ClassReport:
    """Classes of images as a structured report."""

    answers: Callable[[Result], Sequence[Answer]]
    """Returns what a result says; picklable."""

    kind = "sr"
    needs = ()

    def outputs(self, task: Task) -> Sequence[Output]:
        return [_REPORT]

    def check(self, case: Case, origin: Origin) -> None:
        assert origin.person

    def make(
        self, case: Case, origin: Origin, result: Result, algorithm: Algorithm, made: Mapping[str, Writable]
    ) -> Mapping[str, Writable]:
        from medkit.dicom_objects.report import class_report

        return {"dicom_sr": class_report(self.answers(result), origin.person, algorithm)}


def with_dicom(task: Task, chosen: DicomChoices, *makers: Maker, parts: Sequence[str] = ()) -> Task:
    """Return a task that also writes its results as DICOM, if that is wanted.

    makers: what the task's results are, those first that others refer to. parts: roles of a case's further images from
    which they are made, such as other channels; all lines of a case of several are such images anyway. Raises
    UsageError if highdicom is missing, if the task writes rows of a table instead of files, and for a source without a
    kind.
    """
    if not chosen.kinds:
        if chosen.source:
            raise UsageError("--dicom-source needs --dicom")
        return task
    highdicom()
    if task.table is not None:
        raise UsageError("--table writes no files for single cases: leave out --dicom")
    offered = [maker.kind for maker in makers]
    if missing := [kind for kind in chosen.kinds if kind not in offered]:
        raise UsageError(f"--dicom {missing[0]}: the results can be written as {' or '.join(offered) or 'none'}")
    needed = {kind for maker in makers if maker.kind in chosen.kinds for kind in (maker.kind, *maker.needs)}
    wanted = [maker for maker in makers if maker.kind in needed]
    return replace(
        task,
        outputs=(*task.outputs, *(output for maker in wanted for output in maker.outputs(task))),
        process=None,
        setup=functools.partial(_set_up, task=task, makers=tuple(wanted), parts=tuple(parts)),
        arguments={**task.arguments, "dicom": [maker.kind for maker in wanted]},
        accepts=(*task.accepts, SOURCE),
        shared={**task.shared, **({SOURCE: chosen.source} if chosen.source else {})},
    )


def _set_up(
    runtime: Runtime, *, task: Task, makers: Sequence[Maker], parts: Sequence[str]
) -> Stages | Callable[[Case], Result]:
    """Set up the task, and return its work with the objects added."""
    process = task.setup(runtime) if task.setup else task.process
    assert process is not None, "a Task needs process or setup"
    work = _Work(task, tuple(makers), parts)
    if isinstance(process, Stages):
        return work.stages(process)
    return functools.partial(work.whole, process)


@dataclass(frozen=True)
class _Work:
    """The work on a case, around that of the task."""

    task: Task
    makers: tuple[Maker, ...]
    parts: Sequence[str]
    """Roles of further images from which results are made."""

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
        lines = (numbered(self.task.role, number) for number in range(2, len(case.members) + 1))
        parts = [case.inputs[role] for role in (*lines, *self.parts) if case.inputs.get(role, case.path) != case.path]
        origin = Origin.of(case, case.inputs.get(SOURCE), parts=parts)
        origin.check_person()
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
