"""The task `contours`: from a label map to polygons, a table of them, RTSTRUCT and meshes."""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from medkit.errors import InputError, MedkitError, listed
from medkit.images import Image, background_label
from medkit.task import LOOK_AT_THIS, Case, Output, Record, Result, Task, Text, Writable, lineage, record_of, stem
from medkit_contours import measures, mesh, tracing
from medkit_contours.inputs import POLYGONS, TASK, is_contours
from medkit_contours.polygons import ContourSet, as_json, chosen_numbers
from medkit_contours.structures import Box, names_of, places_of

if TYPE_CHECKING:
    from medkit.dicom_objects import Series
    from medkit.space import Grid
    from medkit_contours.alignment import Alignment, Labelled
    from medkit_contours.rtstruct import StructureSetFile

TABLE = Output("contours", "table", "contours", ".tsv")
RTSTRUCT = Output("rtstruct", "points", "rtstruct", ".dcm")
TRANSFORM = Output("transform", "transform", "transform", ".tfm")
MESH_TABLE = Output("mesh_table", "table", "mesh", ".tsv")
_OUTLINE_BYTES, _SURFACE_BYTES = 4, 24
"""Bytes per voxel for outlines, and for the surfaces that meshes and alignments need."""
_PROGRAM_BYTES = 300 * 2**20


@dataclass(frozen=True)
class ContourChoices:
    """What to make from each label map."""

    labels: tuple[str, ...] = ()
    """Names or numbers of structures; none: all."""
    plane: str = "auto"
    """`auto`, or one of `tracing.VIEWS`."""
    fit: str = "auto"
    """One of `measures.FITS`."""
    mesh: str | None = None
    """Format of the mesh, `ply` or `stl`; None: no mesh."""
    rtstruct: bool = False
    """Whether to make an RTSTRUCT, on the slices of its series."""
    reference: Path | None = None
    """The DICOM series that the RTSTRUCT refers to; None: found among the sources of the label map."""
    series: str | None = None
    """UID or number of the series in a folder of several."""
    align: Path | None = None
    """The label map or contours to align with."""

    def outputs(self) -> Iterator[Output]:
        """Yield the files of a case, the main one first."""
        yield TABLE
        yield Output(POLYGONS, "points", "polygons", ".json")
        if self.rtstruct:
            yield RTSTRUCT
        if self.mesh:
            yield Output("mesh", "points", "mesh", f".{self.mesh}")
            yield MESH_TABLE
        if self.align:
            yield TRANSFORM


def contouring(choices: ContourChoices) -> Task:
    """Return the task for one set of options."""
    shared = {"reference": choices.reference, "other": choices.align}
    return Task(
        TASK,
        tuple(choices.outputs()),
        setup=functools.partial(_set_up, choices=choices),
        takes=("labels", "mask", "image"),
        role="labels",
        arguments={
            "labels": list(choices.labels),
            "plane": choices.plane,
            "fit": choices.fit,
            "mesh": choices.mesh,
            "rtstruct": choices.rtstruct,
            "align": choices.align is not None,
        },
        accepts=("image",),
        shared={role: path for role, path in shared.items() if path},
        summary=_summary,
        memory=functools.partial(_memory, _SURFACE_BYTES if choices.mesh or choices.align else _OUTLINE_BYTES),
        uses_torch=False,
    )


def _memory(bytes_per_voxel: int, grid: Grid) -> int:
    """Return roughly the peak memory for a label map on this grid, in bytes."""
    return _PROGRAM_BYTES + bytes_per_voxel * math.prod(grid.shape)


def _summary(record: Record) -> str:
    """Return the number of contours, and how well they fit, for the progress line."""
    metrics = record.medkit.get("metrics", {})
    if "structures" not in metrics:
        return ""
    text = f"{metrics['contours']} contours of {len(metrics['structures'])} structures"
    fit = metrics.get("align")
    return f"{text}, aligned to {fit['mean_mm']:.2f} mm" if fit else text


def _set_up(runtime: Any, *, choices: ContourChoices) -> Callable[[Case], Result]:
    """Return the work on a case; what `--align` names is read once."""
    if choices.align is None:
        return functools.partial(process, choices=choices, other=None)
    from medkit_contours.alignment import read_other

    return functools.partial(process, choices=choices, other=read_other(choices.align))


@dataclass(frozen=True, eq=False)
class Traced:
    """The contours of a label map, from which all files are made."""

    labels: Image
    places: Mapping[int, Box]
    """Label -> box of the structures that were chosen."""
    names: Mapping[int, str]
    """Label -> name of these."""
    slices: tracing.Slices
    rows: list[measures.Measured]
    contours: ContourSet


def process(case: Case, *, choices: ContourChoices, other: Labelled | None) -> Result:
    """Return the contours of a label map. Raises InputError for what is not one."""
    if is_contours(case.path):
        raise InputError(f"{case.path}: expected a label map, got contours; --to-labels makes a label map of them")
    record = case.record if case.record.path == case.path else record_of(case.path)
    series = _series(case, record, choices)
    traced = _traced(case, record, series, choices)
    alignment = _alignment(traced, other, case) if other is not None else None
    surfaces = mesh.surfaces(*_solid(traced)) if choices.mesh else []
    structures = _structure_set(traced, series, case) if series else None
    doubts = [] if traced.names else ["no structure: the label map is empty"]
    outside = background_label(traced.labels.data)
    if outside is not None and outside in traced.names:
        name = traced.names[outside]
        doubts.append(f"{name} fills all corners of the image: is it the background, which should be 0?")
    if structures and structures.missing:
        doubts.append(f"no contour of {listed(structures.missing)} in the RTSTRUCT: they lie between the images")
    return Result(
        dict(_outputs(traced, surfaces, alignment, structures)),
        metrics=_metrics(traced, surfaces) | ({"align": alignment.metrics} if alignment else {}),
        warnings=[*(f"{LOOK_AT_THIS}{text}" for text in doubts), *(alignment.warnings if alignment else ())],
        details={"labels": {str(n): name for n, name in traced.names.items()}},
        description=f"Contours of {case.path.name} on {tracing.VIEWS[traced.slices.view]} slices",
        figure=functools.partial(_figure, traced, record, case, choices.series),
    )


def _series(case: Case, record: Record, choices: ContourChoices) -> Series | None:
    """Return the series that the RTSTRUCT is for, if one is wanted. Raises InputError."""
    if not choices.rtstruct:
        return None
    from medkit.dicom_objects import Origin

    found = Origin.of(case, case.inputs.get("reference"), record).in_space
    if not found.has_position:
        raise InputError(f"{found.path}: expected DICOM images with a position in the body, got none")
    return found


def _traced(case: Case, record: Record, series: Series | None, choices: ContourChoices) -> Traced:
    """Return the contours of a case, for an RTSTRUCT those on the slices of its series. Raises InputError."""
    labels = case.image(labels=True)
    places = places_of(labels, case.path, record.kind)
    names = names_of(record, places)
    wanted = chosen_numbers(choices.labels, names, case.path)
    places = {number: box for number, box in places.items() if number in wanted}
    names = {number: names[number] for number in places}
    if not names and (choices.mesh or series):
        what = "--mesh" if choices.mesh else "--rtstruct"
        raise InputError(f"{case.path}: {what} needs a structure, and the label map is empty")
    if choices.mesh and labels.grid.dims == 2:
        raise InputError(f"{case.path}: --mesh needs a volume, got an image of two axes")
    slices = tracing.slices_of(labels.grid, choices.plane) if series is None else _slices_of(series, labels, case.path)
    found = list(tracing.outlines(labels.data[0], places, slices))
    rows = [measures.measured(one, slices, choices.fit) for one in found]
    return Traced(labels, places, names, slices, rows, tracing.contour_set(found, slices, names))


def _slices_of(series: Series, labels: Image, path: Path) -> tracing.Slices:
    from medkit_contours.filling import parallel_axis

    axis = parallel_axis(series.normal, labels.grid)
    if axis is None:
        raise InputError(f"{path}: expected a label map with the slices of {series.path}, got tilted ones")
    return tracing.Slices(labels.grid, axis)


def _structure_set(traced: Traced, series: Series, case: Case) -> StructureSetFile:
    from medkit_contours.rtstruct import structure_set

    if not series.is_even:
        low, high = float(series.steps.min()), float(series.steps.max())
        case.warnings.append(
            f"the images of the series are {low:.3g} to {high:.3g} mm apart: in the RTSTRUCT each has the contours of "
            "the nearest slice"
        )
    return structure_set(traced.contours, series, stem(case.path), case.path)


def _solid(traced: Traced) -> tuple[np.ndarray, Mapping[int, Box], Grid, Mapping[int, str]]:
    """Return what `mesh.surfaces` takes."""
    return traced.labels.data[0], traced.places, traced.labels.grid, traced.names


def _outputs(
    traced: Traced,
    surfaces: list[mesh.Surface],
    alignment: Alignment | None,
    structures: StructureSetFile | None,
) -> Iterator[tuple[str, Writable]]:
    yield TABLE.role, Text(measures.as_tsv(traced.rows, traced.slices, traced.names))
    yield POLYGONS, Text(as_json(traced.contours))
    if structures:
        yield RTSTRUCT.role, structures
    if surfaces:
        yield "mesh", mesh.MeshFile(surfaces)
        yield MESH_TABLE.role, Text(mesh.as_tsv(surfaces))
    if alignment:
        from medkit.transforms import TransformFile

        yield TRANSFORM.role, TransformFile(alignment.transform)


def _metrics(traced: Traced, surfaces: list[mesh.Surface]) -> dict[str, Any]:
    """Return the numbers of each structure for the sidecar, by name."""
    own: dict[str, dict[str, Any]] = {}
    for number, name in traced.names.items():
        rows = [row for row in traced.rows if row.outline.number == number]
        area = sum(-row.area if row.outline.hole else row.area for row in rows)
        own[name] = {
            "index": number,
            "contours": len(rows),
            "slices": len({row.outline.slice for row in rows}),
        }
        if traced.labels.grid.dims > 2:
            own[name]["volume_mm3"] = round(area * traced.slices.step, 3)
    for one in surfaces:
        own[one.name] |= {"mesh_area_mm2": round(one.mesh.area, 3), "mesh_volume_mm3": round(one.mesh.volume, 3)}
    return {"contours": len(traced.rows), "structures": own}


def _alignment(traced: Traced, other: Labelled, case: Case) -> Alignment:
    from medkit_contours.alignment import Labelled, aligned

    return aligned(Labelled(*_solid(traced), case.path), other, case.runtime.seed)


def _figure(traced: Traced, record: Record, case: Case, series: str | None) -> np.ndarray:
    """Return the contours, filled again, over the image that the labels were made from."""
    from medkit.figures import overlay_mosaic
    from medkit_contours.filling import filled

    drawn = traced.labels.with_data(filled(traced.contours, traced.labels.grid).labels[None])
    background = _background(record, [case.inputs[r] for r in ("image", "reference") if r in case.inputs], series)
    names = {one.number: one.name for one in traced.contours.structures}
    title = f"{TASK}  {case.path.name}"
    return overlay_mosaic(background or traced.labels, drawn, kind="labels", title=title, names=names)


def _background(record: Record, given: list[Path], series: str | None) -> Image | None:
    """Return the first image that can be read of those given, then of a label map's sources; None if there is none."""
    from medkit.images import read_image

    sources = [one.path for one in lineage(record) if one.kind == "image" and one.path != record.path]
    for path in (*given, *sources):
        with contextlib.suppress(MedkitError):
            return read_image(path, series=series)
    return None
