"""Displacement fields as images: NIfTI as ITK and ANTs write it, and through itk NRRD and MetaImage."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from medkit.errors import InputError, OutputError
from medkit.images import itk, nifti
from medkit.space import Grid, check_grid
from medkit.transforms.itk_frame import checked_field, field_from_lps, field_to_lps, grid_note, with_noted_grids
from medkit.transforms.transform import DisplacementField, Transform

_RAS_VECTORS, _VECTORS = 1006, 1007
"""NIFTI_INTENT_DISPVECT, whose vectors ITK turns from RAS to LPS, and NIFTI_INTENT_VECTOR, which are LPS already."""


def write_field(path: Path, transform: DisplacementField) -> None:
    """Write NIfTI of (I, J, K, 1, 3) float32, or (I, J, 1, 1, 2) for a field of the plane: vector intent, LPS mm.

    Raises OutputError for a name that does not end in `.nii` or `.nii.gz`.
    """
    if not path.name.lower().endswith((".nii", ".nii.gz")):
        raise OutputError(f"{path}: expected the name of a displacement field to end in .nii, .nii.gz or .h5")
    grid = transform.grid
    header = nifti.header_for(grid.header, grid.affine, grid.spacing)
    header["intent_code"] = _VECTORS
    header["descrip"] = grid_note(transform).encode()
    header["pixdim"][4:6] = 1
    nifti.write(path, field_to_lps(transform.field, grid.dims)[:, :, :, None], header)


def read_field_nifti(path: Path) -> Transform:
    """Read a displacement field from NIfTI, LPS mm or, by its intent, RAS+ mm. Raises InputError."""
    header, voxels = nifti.read(path)
    if is_fsl_warp(voxels.shape):
        raise InputError(
            f"{path}: looks like a warp of FSL, which only has a meaning together with its two images: "
            f"medkit transform convert {path.name} --fixed F --moving M -o x.nii.gz"
        )
    vectors = voxels.ndim == 5 and voxels.shape[3] == 1 and voxels.shape[4] in (2, 3)
    if not vectors or voxels.dtype.kind != "f":
        raise InputError(
            f"{path}: expected a displacement field (I, J, K, 1, 3) of floats, got {voxels.shape} {voxels.dtype}"
        )
    affine, _ = nifti.affine_of(path, header)
    dims = voxels.shape[4]
    grid = Grid(voxels.shape[:3], affine, dims, nifti.geometry_fields(header))
    check_grid(path, grid)
    in_ras = int(header["intent_code"]) == _RAS_VECTORS
    values = voxels[:, :, :, 0]
    field = checked_field(path, values, np.ones(dims)) if in_ras else field_from_lps(path, values)
    return with_noted_grids(DisplacementField(field, grid), bytes(header["descrip"]).decode("latin-1"))


def is_fsl_warp(shape: Sequence[int]) -> bool:
    """Return whether a NIfTI file of this shape can be a warp of FSL: three frames, where ITK has a fifth axis."""
    return len(shape) == 4 and shape[3] == 3


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
