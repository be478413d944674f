"""Images of the Jacobian determinants of transforms."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from medkit.errors import InputError
from medkit.pipe.records import Record, absolute
from medkit.run.outputs import Output
from medkit.run.task import Case, Result, Task
from medkit.space import Grid
from medkit.transform_tasks.compose import TAKES
from medkit.transforms.files import read_transform
from medkit.transforms.jacobian import LOG_FLOOR, Determinants, jacobian_determinant
from medkit.transforms.transform import AffineTransform, DisplacementField, grid_of_field

if TYPE_CHECKING:
    from medkit.images.image import Image


def measurement(reference: Path | None, mask: Path | None, log: bool) -> Task:
    """Return the task that makes an image of each input's Jacobian determinant, or of its natural logarithm."""
    files = {"reference": reference, "mask": mask}
    return Task(
        name="transform jacobian",
        outputs=(Output("image", "image", "jacobian", entities={"desc": "jacobian"}),),
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
    if not isinstance(transform, AffineTransform | DisplacementField) or "mask" in case.inputs:
        case.runtime.limit_torch()
    values = jacobian_determinant(transform, grid)
    found = Determinants.of(values, _mask(case.inputs.get("mask"), grid))
    warnings = [f"the transform folds in {found.folding * 100:.2g} % of the voxels"] if found.folding else []
    if log:
        values = np.log(np.maximum(values, LOG_FLOOR))
    image = Image(values[None], grid)
    what = f"{'logarithm of the ' if log else ''}Jacobian determinant"
    return Result(
        {"image": image},
        metrics={"jacobian": vars(found)},
        warnings=warnings,
        spatial_reference=case.inputs.get("reference"),
        description=f"{what[0].upper()}{what[1:]} of {case.path.name}",
        figure=functools.partial(_draw, image, f"{what}  {case.path.name}  {found.sentence()}"),
    )


def _draw(image: Image, title: str) -> np.ndarray:
    from medkit.figures.mosaic import overlay_mosaic

    return overlay_mosaic(image, title=title)


def _mask(path: Path | None, grid: Grid) -> np.ndarray | None:
    """Return a mask (I, J, K) bool on `grid`, resampled if its own grid differs. Raises InputError if it is empty."""
    if path is None:
        return None
    from medkit.images.image import read_image
    from medkit.transforms.resampling import resample

    mask = read_image(path, labels=True)
    if mask.grid.digest() != grid.digest():
        mask = resample(mask, grid, interpolation="nearest")
    if not mask.data.any():
        raise InputError(f"{path}: expected a mask with a voxel above 0 on the grid of the transform, got none")
    inside: np.ndarray = mask.data[0] > 0
    return inside


def _in_words(record: Record) -> str:
    found = record.medkit.get("metrics", {}).get("jacobian")
    return Determinants(**found).sentence() if found else ""
