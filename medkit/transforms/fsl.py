"""FSL's transforms: matrices of FLIRT, and warps of FNIRT, applywarp and convertwarp.

FSL's millimetres run along the axes of the file and only depend on the voxel size. The first axis runs backwards where
the voxels are stored in neurological order (the determinant of the affine is positive). So a file of FSL only has a
meaning together with both images (FSL wiki, FLIRT/FAQ; `NEWIMAGE::volume::sampling_mat`).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from medkit.errors import InputError
from medkit.images import nifti
from medkit.images.nifti_forms import geometry_fields, header_for
from medkit.space import Grid
from medkit.transforms.transform import AffineTransform, DisplacementField, Transform, is_invertible

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
    try:
        rows = [line.split() for line in path.read_text(encoding="ascii").splitlines() if line.strip()]
        matrix = np.array(rows, np.float64)
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: expected four rows of four numbers, as FLIRT writes them: {error}") from error
    if matrix.shape != (4, 4) or not is_invertible(matrix):
        raise InputError(
            f"{path}: expected a matrix of four rows of four numbers that can be inverted, got {matrix.shape}"
        )
    to_ras = moving.affine @ np.linalg.inv(scaled_affine(moving))
    from_ras = scaled_affine(fixed) @ np.linalg.inv(fixed.affine)
    return AffineTransform(to_ras @ np.linalg.inv(matrix) @ from_ras, fixed.digest(), moving.digest())


def write_flirt(path: Path, transform: AffineTransform, fixed: Grid, moving: Grid) -> None:
    """Write FLIRT's matrix, which takes moving to fixed points, in FSL's mm of each image."""
    to_fsl = scaled_affine(moving) @ np.linalg.inv(moving.affine)
    from_fsl = fixed.affine @ np.linalg.inv(scaled_affine(fixed))
    matrix = np.linalg.inv(to_fsl @ transform.matrix @ from_fsl)
    path.write_text("".join("  ".join(f"{value:.10f}" for value in row) + "  \n" for row in matrix), encoding="ascii")


def read_warp(path: Path, fixed: Grid, moving: Grid) -> DisplacementField:
    """Read a warp field, displacements or positions in FSL's mm, as displacements in RAS+ mm on the grid of its file.

    Positions and displacements are told apart as FSL does it: positions vary more, as long as the axes of the two
    images are in the same order. Raises InputError.
    """
    header, voxels = nifti.read(path)
    if int(header["intent_code"]) in _COEFFICIENTS:
        raise InputError(
            f"{path}: expected a warp field, got spline coefficients: run `fnirtfileutils --withaff` first"
        )
    if voxels.ndim != 4 or voxels.shape[3] != 3 or voxels.dtype.kind != "f":
        raise InputError(f"{path}: expected a warp of FSL (I, J, K, 3) of floats, got {voxels.shape} {voxels.dtype}")
    grid = Grid(voxels.shape[:3], nifti.affine_of(path, header)[0], header=geometry_fields(header))
    to_ras = moving.affine @ np.linalg.inv(scaled_affine(moving))
    here = scaled_affine(fixed) @ np.linalg.inv(fixed.affine) @ grid.affine  # voxel of the warp -> FSL's mm of fixed
    start = np.diag([0.0, 0, 0, 1]) if _holds_positions(voxels, here) else here
    field = voxels.astype(np.float32) @ to_ras[:3, :3].T.astype(np.float32)
    field += _affine_field(to_ras @ start - grid.affine, grid.shape)
    if not np.isfinite(field).all():
        raise InputError(f"{path}: expected finite displacements, got NaN or infinity")
    return DisplacementField(field, grid, fixed.digest(), moving.digest())


def write_warp(path: Path, transform: Transform, fixed: Grid, moving: Grid) -> None:
    """Write a warp field of displacements (FSL's mm) on the grid `fixed`, for `applywarp --ref=fixed --in=moving`."""
    from medkit.transforms.resampling import displacements

    to_fsl = scaled_affine(moving) @ np.linalg.inv(moving.affine)
    values = displacements(transform, fixed) @ to_fsl[:3, :3].T.astype(np.float32)
    values += _affine_field(to_fsl @ fixed.affine - scaled_affine(fixed), fixed.shape)
    header = header_for(fixed)
    header["intent_code"] = _RELATIVE_FIELD
    header["pixdim"][4] = 1
    nifti.write(path, values, header)


def _holds_positions(voxels: np.ndarray, here: np.ndarray) -> bool:
    """Return whether a warp holds positions, not displacements; `here` (4, 4): voxel of the warp -> FSL's mm."""
    step = tuple(slice(None, None, max(1, n // 32)) for n in voxels.shape[:3])
    places = _affine_field(here, voxels.shape[:3])[step]
    sample = voxels[step]
    return bool(sample.std(axis=(0, 1, 2)).sum() > (sample - places).std(axis=(0, 1, 2)).sum())


def _affine_field(matrix: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Return the positions (I, J, K, 3) float32 to which `matrix` (4, 4) takes the indices of the voxels."""
    i, j, k = (np.arange(n)[:, None] * matrix[:3, axis] for axis, n in enumerate(shape))
    i, j, k = (values.astype(np.float32) for values in (i, j, k + matrix[:3, 3]))
    positions: np.ndarray = i[:, None, None] + j[None, :, None] + k[None, None]
    return positions
