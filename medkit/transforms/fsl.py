"""FSL's transforms: matrices of FLIRT, and warps of FNIRT, applywarp and convertwarp.

FSL's millimetres run along the axes of the file and only depend on the voxel size. The first axis runs backwards where
the voxels are stored in neurological order (the determinant of the affine is positive). So a file of FSL only has a
meaning together with both images (FSL wiki, FLIRT/FAQ; `NEWIMAGE::volume::sampling_mat`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from medkit.errors import InputError
from medkit.images import nifti
from medkit.images.nifti_forms import header_for
from medkit.space import Grid
from medkit.transforms.transform import AffineTransform, DisplacementField, Transform
from medkit.transforms.unmarked import index_map, text_matrix, three_frames

_RELATIVE_FIELD = 2006
"""NIfTI intent FSL_FNIRT_DISPLACEMENT_FIELD."""
_COEFFICIENTS = range(2007, 2017)
"""NIfTI intents of FSL's spline coefficients."""


def scaled_affine(grid: Grid) -> np.ndarray:
    """Return the affine (4, 4), voxel -> FSL's mm."""
    scaled = np.diag([*grid.spacing, 1.0])
    if np.linalg.det(grid.affine[:3, :3]) > 0:
        scaled[0] = -grid.spacing[0], 0, 0, (grid.shape[0] - 1) * grid.spacing[0]
    return scaled


def read_flirt(path: Path, fixed: Grid, moving: Grid) -> AffineTransform:
    """Read the matrix that `flirt -in moving -ref fixed -omat` writes: a transform from fixed to moving, RAS+ mm.

    The file's own matrix takes moving to fixed points, in FSL's mm of each image. Raises InputError.
    """
    matrix = text_matrix(path)
    to_ras = moving.affine @ np.linalg.inv(scaled_affine(moving))
    from_ras = scaled_affine(fixed) @ np.linalg.inv(fixed.affine)
    return AffineTransform(to_ras @ np.linalg.inv(matrix) @ from_ras, fixed.digest(), moving.digest())


def write_flirt(path: Path, transform: AffineTransform, fixed: Grid, moving: Grid) -> None:
    """Write FLIRT's matrix, which takes moving to fixed points, in FSL's mm of each image."""
    to_fsl = scaled_affine(moving) @ np.linalg.inv(moving.affine)
    from_fsl = fixed.affine @ np.linalg.inv(scaled_affine(fixed))
    matrix = np.linalg.inv(to_fsl @ transform.matrix @ from_fsl)
    path.write_text("".join("  ".join(f"{value:.10f}" for value in row) + "  \n" for row in matrix), encoding="ascii")


def is_marked_warp(header: Any) -> bool:
    """Return whether a NIfTI header states, by its intent, that the file is a warp or spline coefficients of FSL."""
    return int(header["intent_code"]) in (_RELATIVE_FIELD, *_COEFFICIENTS)


def read_warp(path: Path, fixed: Grid, moving: Grid) -> DisplacementField:
    """Read a warp field, displacements or positions in FSL's mm, as displacements in RAS+ mm on the grid of its file.

    Positions and displacements are told apart as FSL does it: positions vary more, as long as the axes of the two
    images are in the same order. Raises InputError.
    """
    voxels, grid, intent = three_frames(path)
    if intent in _COEFFICIENTS:
        raise InputError(
            f"{path}: expected a warp field, got spline coefficients: run `fnirtfileutils --withaff` first"
        )
    to_ras = moving.affine @ np.linalg.inv(scaled_affine(moving))
    here = scaled_affine(fixed) @ np.linalg.inv(fixed.affine) @ grid.affine  # voxel of the warp -> FSL's mm of fixed
    start = np.diag([0.0, 0, 0, 1]) if _holds_positions(voxels, here) else here
    field = voxels.astype(np.float32) @ to_ras[:3, :3].T.astype(np.float32)
    field += index_map(to_ras @ start - grid.affine, grid.shape)
    if not np.isfinite(field).all():
        raise InputError(f"{path}: expected finite displacements, got NaN or infinity")
    return DisplacementField(field, grid, fixed.digest(), moving.digest())


def write_warp(path: Path, transform: Transform, fixed: Grid, moving: Grid) -> None:
    """Write a warp field of displacements (FSL's mm) on the grid `fixed`, for `applywarp --ref=fixed --in=moving`."""
    from medkit.transforms.resampling import displacements

    to_fsl = scaled_affine(moving) @ np.linalg.inv(moving.affine)
    values = displacements(transform, fixed) @ to_fsl[:3, :3].T.astype(np.float32)
    values += index_map(to_fsl @ fixed.affine - scaled_affine(fixed), fixed.shape)
    header = header_for(fixed)
    header["intent_code"] = _RELATIVE_FIELD
    header["pixdim"][4] = 1
    nifti.write(path, values, header)


def _holds_positions(voxels: np.ndarray, here: np.ndarray) -> bool:
    """Return whether a warp holds positions, not displacements; `here` (4, 4): voxel of the warp -> FSL's mm."""
    step = tuple(slice(None, None, max(1, n // 32)) for n in voxels.shape[:3])
    places = index_map(here, voxels.shape[:3])[step]
    sample = voxels[step]
    return bool(sample.std(axis=(0, 1, 2)).sum() > (sample - places).std(axis=(0, 1, 2)).sum())
