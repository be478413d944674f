"""Images of the Jacobian determinants of transforms."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from medkit.errors import InputError
from medkit.evaluation.measures.label_maps import names_next_to
from medkit.pipe.cells import cell_of
from medkit.pipe.records import Record, absolute
from medkit.run.outputs import Output
from medkit.run.task import Case, Result, Task, Text
from medkit.space import Grid
from medkit.transform_tasks.compose import TAKES
from medkit.transforms.files import read_transform
from medkit.transforms.jacobian import LOG_FLOOR, Determinants, jacobian_determinant, volume_changes
from medkit.transforms.transform import AffineTransform, DisplacementField, grid_of_field

if TYPE_CHECKING:
    from medkit.images.image import Image


COLUMNS = ("index", "name", "fixed_mm3", "moving_mm3", "change_mm3", "change_percent", "jacobian_min", "jacobian_max")
"""Columns of the table of structures."""


def measurement(reference: Path | None, mask: Path | None, labels: Path | None, log: bool) -> Task:
    """Return the task that makes an image of each input's Jacobian determinant, or of its natural logarithm.

    With `labels`, structures of the fixed image, it also makes a table of how much each of them changes.
    """
    files = {"reference": reference, "mask": mask, "labels": labels}
    table = (Output("volumes", "table", "jacobian", ".tsv", entities={"desc": "jacobian"}),) if labels else ()
    return Task(
        name="transform jacobian",
        outputs=(Output("image", "image", "jacobian", entities={"desc": "jacobian"}), *table),
        process=functools.partial(_measure, log=log),
        arguments={"log": log},
        takes=TAKES,
        role="transform",
        shared={role: absolute(path) for role, path in files.items() if path is not None},
        summary=_in_words,
        uses_torch=False,
    )


def _measure(case: Case, *, log: bool) -> Result:
    from medkit.images.image import Image, read_grid

    transform = read_transform(case.path)
    grid = read_grid(case.inputs["reference"]) if "reference" in case.inputs else grid_of_field(transform)
    if grid is None:
        raise InputError(f"{case.path}: an affine transform has no grid: name the fixed image as --reference")
    if not isinstance(transform, AffineTransform | DisplacementField) or {"mask", "labels"} & set(case.inputs):
        case.runtime.limit_torch()
    values = jacobian_determinant(transform, grid)
    found = Determinants.of(values, _mask(case.inputs.get("mask"), grid))
    warnings = [f"the transform folds in {found.folding * 100:.2g} % of the voxels"] if found.folding else []
    tables = {}
    if path := case.inputs.get("labels"):
        tables["volumes"] = Text(_table(values, _labels_on(path, grid), grid, names_next_to(path)))
    if log:
        values = np.log(np.maximum(values, LOG_FLOOR))
    image = Image(values[None], grid)
    what = f"{'logarithm of the ' if log else ''}Jacobian determinant"
    return Result(
        {"image": image, **tables},
        metrics={"jacobian": vars(found)},
        warnings=warnings,
        spatial_reference=case.inputs.get("reference"),
        description=f"{what[0].upper()}{what[1:]} of {case.path.name}",
        figure=functools.partial(_draw, image, what, f"{what}  {case.path.name}  {found.sentence()}"),
    )


def _draw(image: Image, what: str, title: str) -> np.ndarray:
    """Return the picture: blue where the transform shrinks, orange where it enlarges, (H, W, 3) uint8."""
    from medkit.figures.mosaic import value_mosaic

    log = what.startswith("logarithm")
    return value_mosaic(image, around=0.0 if log else 1.0, title=title, what=f"{what}: black where volumes are kept")


def _mask(path: Path | None, grid: Grid) -> np.ndarray | None:
    """Return a mask (I, J, K) bool on `grid`, resampled if its own grid differs. Raises InputError if it is empty."""
    return None if path is None else _labels_on(path, grid) > 0


def _labels_on(path: Path, grid: Grid) -> np.ndarray:
    """Return labels (I, J, K) on `grid`, resampled if their own grid differs. Raises InputError if all are 0."""
    from medkit.images.image import read_image
    from medkit.transforms.resampling import resample

    labels = read_image(path, labels=True)
    if labels.grid.digest() != grid.digest():
        labels = resample(labels, grid, interpolation="nearest")
    found: np.ndarray = labels.data[0]
    if not (found > 0).any():
        raise InputError(f"{path}: expected a voxel above 0 on the grid of the transform, got none")
    return found


def _table(values: np.ndarray, labels: np.ndarray, grid: Grid, names: Mapping[int, str]) -> str:
    """Return the table of structures as text: `COLUMNS`, a row for each label."""
    lines = ["\t".join(COLUMNS)]
    for change in volume_changes(values, labels, grid.voxel_volume):
        numbers = (change.fixed, change.moving, change.moving - change.fixed)
        cells = [str(change.label), cell_of(names.get(change.label, "n/a")), *(f"{value:.1f}" for value in numbers)]
        cells += [f"{change.percent:.2f}", f"{change.minimum:.3f}", f"{change.maximum:.3f}"]
        lines.append("\t".join(cells))
    return "\n".join(lines) + "\n"


def _in_words(record: Record) -> str:
    found = record.medkit.get("metrics", {}).get("jacobian")
    return Determinants(**found).sentence() if found else ""
