"""`medkit run contours --to-labels`: from polygons or RTSTRUCT to a label map."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from medkit.errors import InputError
from medkit.figures import label_colours
from medkit.images import Image, read_grid
from medkit.space import Grid
from medkit.task import LOOK_AT_THIS, Case, Output, Result, Task, Text
from medkit_contours.filling import Filled, filled, slice_distance
from medkit_contours.inputs import TASK, Given, read_contours
from medkit_contours.polygons import ContourSet

LABELS = Output("labels", "labels", "dseg", entities={"desc": TASK})
TABLE = Output("table", "table", "dseg", ".tsv", entities={"desc": TASK})
KINDS = ("table", "points", "image", "labels", "mask")
"""Contours are known by their content: RTSTRUCT and JSON have no kind of their own by name."""
_WIDE = 3.0
"""A contour that counts for more slices of the reference than this is doubtful."""


def labelling(labels: tuple[str, ...], reference: Path | None, series: str | None) -> Task:
    """Return the task.

    labels: names or numbers of structures, none: all; reference: the image on whose grid the label map lies, None: the
    grid of the label map that the contours were made from.
    """
    return Task(
        TASK,
        (LABELS, TABLE),
        process=functools.partial(process, labels=labels, series=series),
        takes=KINDS,
        role=TASK,
        arguments={"to_labels": True, "labels": list(labels)},
        shared={"reference": reference} if reference else {},
        accepts=() if reference else ("reference",),
        uses_torch=False,
    )


def process(case: Case, *, labels: tuple[str, ...], series: str | None) -> Result:
    """Return the label map of contours. Raises InputError."""
    given = read_contours(case.path)
    contours = given.contours.chosen(labels, case.path)
    reference = case.inputs.get("reference")
    grid = _grid(case.path, contours, reference, series)
    made = filled(contours, grid)
    if not made.labels.any() and any(one.contours for one in contours.structures):
        raise InputError(f"{case.path}: no voxel of the reference {reference} lies inside the contours")
    case.warnings.extend(given.notes)
    names = {one.number: one.name for one in contours.structures}
    label_map = Image(made.labels[None], grid)
    return Result(
        {"labels": label_map, "table": Text(as_tsv(contours, made, grid))},
        metrics=_volumes(made, grid, names),
        warnings=list(_warnings(given, contours, made, grid)),
        details={"labels": {str(number): name for number, name in sorted(names.items())}},
        spatial_reference=reference,
        description=f"Label map of the contours {case.path.name}",
        figure=functools.partial(_figure, label_map, names, reference, case.path.name),
    )


def _grid(path: Path, contours: ContourSet, reference: Path | None, series: str | None) -> Grid:
    if reference is not None:
        return read_grid(reference, series=series)
    if contours.grid is None:
        raise InputError(f"{path}: expected --reference IMAGE for the grid of the label map: RTSTRUCT has none")
    return contours.grid


def _warnings(given: Given, contours: ContourSet, made: Filled, grid: Grid) -> Iterator[str]:
    """Yield what a person should look at."""
    names = {one.number: one.name for one in contours.structures}
    yield from (f"{LOOK_AT_THIS}{text}" for number, text in given.doubts.items() if number in names)
    lost = [name for number, name in names.items() if not made.voxels[number]]
    if lost:
        yield f"{LOOK_AT_THIS}no voxel inside the contours of {', '.join(lost)}"
    if made.shared:
        yield f"{LOOK_AT_THIS}{made.shared} voxels lie inside several structures: the smallest one has them"
    if (outside := _outside(contours, grid)) > 0:
        yield f"{LOOK_AT_THIS}{outside:.0%} of the contours' points lie outside the reference"
    apart = slice_distance(contours.normal, grid)
    wide = [one.name for one in contours.structures if (one.step or contours.step or 0) > _WIDE * apart]
    if wide and contours.grid is None:
        yield f"{LOOK_AT_THIS}the contours of {', '.join(wide)} lie far apart: each counts for several slices"


def _outside(contours: ContourSet, grid: Grid) -> float:
    """Return the share of the contours' points that lie more than half a voxel outside a grid."""
    points = [c.points for one in contours.structures for c in one.contours]
    if not points:
        return 0.0
    inverse = np.linalg.inv(grid.affine)
    index = np.concatenate(points) @ inverse[:3, :3].T + inverse[:3, 3]
    inside = ((index > -1) & (index < np.array(grid.shape))).all(axis=1)
    return 1 - float(inside.mean())


def _volumes(made: Filled, grid: Grid, names: Mapping[int, str]) -> dict[str, dict[str, float]]:
    """Return the volumes of structures, mm3; empty for planes, which have no depth."""
    if grid.dims == 2:
        return {}
    return {"volumes_mm3": {names[n]: round(v * grid.voxel_volume, 3) for n, v in made.voxels.items()}}


def as_tsv(contours: ContourSet, made: Filled, grid: Grid) -> str:
    """Return the BIDS table of the label map's structures."""
    lines = ["index\tname\tcolor\tvolume_mm3"]
    counts = np.bincount(made.labels.ravel(order="K"), minlength=max(made.voxels, default=0) + 1)
    for one in sorted(contours.structures, key=lambda structure: structure.number):
        colour = "#" + "".join(f"{int(c):02X}" for c in label_colours(np.array(one.number)))
        volume = "n/a" if grid.dims == 2 else f"{counts[one.number] * grid.voxel_volume:.1f}"
        lines.append(f"{one.number}\t{one.name}\t{colour}\t{volume}")
    return "\n".join([*lines, ""])


def _figure(labels: Image, names: Mapping[int, str], reference: Path | None, name: str) -> np.ndarray:
    from medkit.figures import overlay_mosaic
    from medkit.images import read_image

    background = read_image(reference) if reference else labels
    return overlay_mosaic(background, labels, kind="labels", title=f"{TASK}  {name}", names=names)
