"""Compose several transforms into one, and invert transforms."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np

from medkit.errors import InputError
from medkit.pipe.records import Record, absolute
from medkit.run.outputs import Output
from medkit.run.task import Case, Result, Task
from medkit.space import Grid
from medkit.transforms.files import TransformFile, read_transform
from medkit.transforms.resampling import to_displacement_field
from medkit.transforms.transform import (
    AffineTransform,
    DisplacementField,
    Transform,
    chain,
    compose,
    grid_of_field,
    in_first_field,
)

WRITTEN = (".tfm", ".txt", ".mat", ".h5", ".hdf5", ".nii.gz", ".nii")
"""Endings of the files that `TransformFile` can write."""
TAKES = ("transform", "image")
"""Kinds of files that can hold a transform; by its name a displacement field is an image."""


def composition(reference: Path | None) -> Task:
    """Return the task that composes all its inputs into one transform, the first one applied first."""
    shared = {} if reference is None else {"reference": absolute(reference)}
    return Task(
        name="transform compose",
        outputs=(Output("transform", "transform", "composed", ".tfm", extensions=WRITTEN),),
        process=_compose,
        takes=TAKES,
        role="transform",
        arity="all",
        whole=True,
        shared=shared,
        uses_torch=False,
    )


def _compose(case: Case) -> Result:
    paths = [path for role, path in case.inputs.items() if role.split("_")[0] == "transform"]
    composed = compose([read_transform(path) for path in paths], [path.name for path in paths])
    if not isinstance(composed, AffineTransform):
        case.runtime.limit_torch()
    return Result(
        {"transform": TransformFile(composed, _reference(case))},
        spatial_reference=case.inputs.get("reference"),
        details={"grids": {"from": composed.from_grid, "to": composed.to_grid}},
        description="Composition of " + ", ".join(path.name for path in paths),
    )


def _reference(case: Case) -> Grid | None:
    from medkit.images.image import read_grid

    return read_grid(case.inputs["reference"]) if "reference" in case.inputs else None


def inversion(reference: Path | None) -> Task:
    """Return the task that inverts each of its inputs: affine ones exactly, others on the grid of `reference`."""
    shared = {} if reference is None else {"reference": absolute(reference)}
    return Task(
        name="transform invert",
        outputs=(Output("transform", "transform", "inverse", ".tfm", extensions=WRITTEN),),
        process=_invert,
        takes=TAKES,
        role="transform",
        shared=shared,
        summary=_inverse_in_words,
        uses_torch=False,
    )


def _invert(case: Case) -> Result:
    transform = read_transform(case.path)
    inverse = transform.inverse()
    result = functools.partial(
        Result,
        spatial_reference=case.inputs.get("reference"),
        details={"grids": {"from": inverse.from_grid, "to": inverse.to_grid}},
        description=f"Inverse of {case.path.name}",
    )
    if isinstance(inverse, AffineTransform):
        return result({"transform": TransformFile(inverse)})
    grid = _reference(case)
    if grid is None:
        raise InputError(f"{case.path}: the inverse of a displacement field needs --reference, the moving image")
    case.runtime.limit_torch()
    field = to_displacement_field(inverse, grid)
    metrics = quality(transform, field)
    return result(
        {"transform": TransformFile(field, grid)}, metrics=metrics, warnings=_warnings(transform, grid, metrics)
    )


def quality(transform: Transform, inverse: DisplacementField) -> dict[str, Any]:
    """Return how well `inverse`, linear between the voxels of its file, undoes `transform`.

    `residual_mm`: mean and max of |transform(inverse(p)) - p| over the voxels p that `inverse` takes into the inverted
    field; `covered`: the fraction of such voxels; `folding`: the fraction of the inverted field's voxels that fold, and
    so have no inverse.
    """
    from medkit.transforms.jacobian import Determinants, jacobian_determinant
    from medkit.transforms.resampling import displacements

    errors = np.linalg.norm(displacements(chain([transform, inverse]), inverse.grid), axis=-1)
    covered = _covered(transform, inverse)
    inside = errors[covered]
    own = grid_of_field(transform)
    assert own is not None, "only displacement fields leave a residual"
    return {
        "residual_mm": {"mean": float(inside.mean()), "max": float(inside.max())} if inside.size else None,
        "covered": float(covered.mean()),
        "folding": Determinants.of(jacobian_determinant(transform, own)).folding,
    }


def _covered(transform: Transform, inverse: DisplacementField) -> np.ndarray:
    """Return, (I, J, K) bool, where `inverse` leads into the first displacement field of `transform`."""
    grid = inverse.grid
    out = np.empty(grid.shape, bool)
    j, k = (axis.ravel() for axis in np.meshgrid(*map(np.arange, grid.shape[1:]), indexing="ij"))
    for i in range(grid.shape[0]):
        index = np.column_stack([np.full(len(j), i), j, k])
        points = index @ grid.affine[:3, :3].T + grid.affine[:3, 3] + inverse.field[i].reshape(-1, 3)
        out[i] = in_first_field(transform, points).reshape(grid.shape[1:])
    return out


def _warnings(transform: Transform, grid: Grid, metrics: dict[str, Any]) -> list[str]:
    warnings = []
    if transform.to_grid is not None and transform.to_grid != grid.digest():
        warnings.append(
            f"the transform leads to the grid {transform.to_grid}, and the reference has the grid {grid.digest()}"
        )
    if metrics["residual_mm"] is None:
        warnings.append("no voxel of the reference has an inverse inside the displacement field")
    if metrics["folding"] > 0:
        warnings.append(
            f"the displacement field folds in {100 * metrics['folding']:.2g} % of its voxels, where it has no inverse"
        )
    return warnings


def _inverse_in_words(record: Record) -> str:
    residual = record.medkit.get("metrics", {}).get("residual_mm")
    return f"residual {residual['mean']:.2g} mm, at most {residual['max']:.2g} mm" if residual else ""
