"""Displacement fields as images: NIfTI as ITK and ANTs write it, and through itk NRRD and MetaImage."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from medkit.errors import InputError, OutputError
from medkit.images import itk, nifti
from medkit.images.nifti_forms import geometry_fields, header_for
from medkit.space import Grid, apply_affine, check_grid, three_axes
from medkit.transforms.itk_frame import checked_field, field_from_lps, field_to_lps, grid_note, with_noted_grids
from medkit.transforms.transform import DisplacementField, Transform
from medkit.transforms.unmarked import WARPS, is_three_frames

_RAS_VECTORS, _VECTORS = 1006, 1007
"""NIFTI_INTENT_DISPVECT, whose vectors ITK turns from RAS to LPS, and NIFTI_INTENT_VECTOR, which are LPS already."""
_EXACT = 1e-6
"""Voxels by which a corner may lie outside of a grid."""


def write_field(path: Path, transform: DisplacementField) -> None:
    """Write NIfTI of (I, J, K, 1, 3) float32, or (I, J, 1, 1, 2) for a field of the plane: vector intent, LPS mm.

    ITK refuses a field on sheared axes, and takes one of a single slice for a plane of x and y. So these are written on
    orthogonal axes around the grid, and as three equal slices. Raises OutputError for a name that does not end in
    `.nii` or `.nii.gz`.
    """
    if not path.name.lower().endswith((".nii", ".nii.gz")):
        raise OutputError(f"{path}: expected the name of a displacement field to end in .nii, .nii.gz or .h5")
    grid, field = _three_slices(*_orthogonal(transform.grid, transform.field))
    header = header_for(grid)
    header["intent_code"] = _VECTORS
    header["descrip"] = grid_note(transform).encode()
    header["pixdim"][4:6] = 1
    nifti.write(path, field_to_lps(field, grid.dims)[:, :, :, None], header)


def _orthogonal(grid: Grid, field: np.ndarray) -> tuple[Grid, np.ndarray]:
    """Return a grid with orthogonal axes that covers `grid`, and the field (I, J, K, 3) on it; the border goes on.

    The first axis and the planes of the first two stay, as in a CT with a tilted gantry. Other grids are returned as
    they are.
    """
    from scipy.ndimage import affine_transform

    if not grid.is_sheared:
        return grid, field
    turn, steps = np.linalg.qr(grid.affine[:3, :3])
    affine = grid.affine.copy()
    affine[:3, :3] = turn * np.diag(steps)
    to_new = np.linalg.inv(affine) @ grid.affine
    ends = apply_affine(to_new, np.array(list(np.ndindex(2, 2, 2))) * (np.array(grid.shape) - 1))
    low, high = np.floor(ends.min(axis=0) + _EXACT), np.ceil(ends.max(axis=0) - _EXACT)
    affine[:3, 3] = apply_affine(affine, low[None])[0]
    shape = three_axes([int(count) for count in high - low + 1])
    to_old = np.linalg.inv(grid.affine) @ affine
    sampled = (
        affine_transform(field[..., axis], to_old[:3, :3], to_old[:3, 3], shape, order=1, mode="nearest")
        for axis in range(3)
    )
    return Grid(shape, affine, grid.dims, grid.header), np.stack(list(sampled), axis=-1)


def _three_slices(grid: Grid, field: np.ndarray) -> tuple[Grid, np.ndarray]:
    """Return the field (I, J, 1, 3) of a single slice as three equal slices; others as they are."""
    if grid.dims == 2 or grid.shape[2] > 1:
        return grid, field
    affine = grid.affine.copy()
    affine[:3, 3] -= affine[:3, 2]
    return Grid((*grid.shape[:2], 3), affine, grid.dims, grid.header), np.repeat(field, 3, axis=2)


def read_field_nifti(path: Path) -> Transform:
    """Read a displacement field from NIfTI, LPS mm or, by its intent, RAS+ mm. Raises InputError."""
    header, voxels = nifti.read(path)
    if is_three_frames(voxels.shape):
        raise InputError(
            f"{path}: has three frames, as warps of FSL, SynthMorph and others, which mean different things: "
            f"medkit transform convert {path.name} --from KIND -o x.nii.gz, where KIND is one of {', '.join(WARPS)}"
        )
    vectors = voxels.ndim == 5 and voxels.shape[3] == 1 and voxels.shape[4] in (2, 3)
    if not vectors or voxels.dtype.kind != "f":
        raise InputError(
            f"{path}: expected a displacement field (I, J, K, 1, 3) of floats, got {voxels.shape} {voxels.dtype}"
        )
    affine, _ = nifti.affine_of(path, header)
    dims = voxels.shape[4]
    grid = Grid(voxels.shape[:3], affine, dims, geometry_fields(header))
    check_grid(path, grid)
    in_ras = int(header["intent_code"]) == _RAS_VECTORS
    values = voxels[:, :, :, 0]
    field = checked_field(path, values, np.ones(dims)) if in_ras else field_from_lps(path, values)
    return with_noted_grids(DisplacementField(field, grid), bytes(header["descrip"]).decode("latin-1"))


def read_field_itk(path: Path) -> DisplacementField:
    """Read a displacement field, LPS mm, from NRRD or MetaImage. Raises InputError."""
    reader = itk.read_header(path)
    grid = itk.grid_of(path, reader)
    if itk.unit_of(path, reader) != 1:
        raise InputError(f"{path}: expected a displacement field in mm, got another unit of length")
    voxels = itk.read_voxels(path, reader)
    if voxels.shape[3:] != (1, grid.dims) or voxels.dtype.kind != "f":
        raise InputError(f"{path}: expected a displacement field of floats, got {voxels.shape} {voxels.dtype}")
    return DisplacementField(field_from_lps(path, voxels[:, :, :, 0]), grid)
