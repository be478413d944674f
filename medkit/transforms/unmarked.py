"""Matrices and warps whose files do not say what their numbers mean; several programs write files that look the same.

Conventions: greedy and c3d (`c3d_affine_tool -help`), SynthMorph (`mri_synthmorph -h`, `mri_warp_convert --inras`),
MRtrix3 (`warpconvert`), VoxelMorph (`vxm.layers.SpatialTransformer`).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from medkit.errors import InputError
from medkit.images import nifti
from medkit.images.nifti_forms import geometry_fields
from medkit.space import Grid, check_grid
from medkit.transforms.itk_frame import checked_field
from medkit.transforms.transform import AffineTransform, DisplacementField, is_invertible

WARPS = ("fsl-warp", "ras-displacements", "ras-positions", "voxel-displacements")
"""What three frames may hold, as names for `medkit transform convert --from`."""


def is_text_matrix(content: bytes) -> bool:
    """Return whether the bytes are a text of 16 numbers, such as the matrices of FSL, greedy and c3d."""
    try:
        rows = [line.split() for line in content.decode("ascii").split("\n") if line.strip()]
        return np.array(rows, float).size == 16
    except ValueError:
        return False


def text_matrix(path: Path) -> np.ndarray:
    """Return the matrix (4, 4) of a text of four rows of four numbers. Raises InputError."""
    try:
        rows = [line.split() for line in path.read_text(encoding="ascii").split("\n") if line.strip()]
        matrix = np.array(rows, np.float64)
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: expected four rows of four numbers: {error}") from error
    if matrix.shape != (4, 4) or not is_invertible(matrix):
        raise InputError(
            f"{path}: expected a matrix of four rows of four numbers that can be inverted, got {matrix.shape}"
        )
    return matrix


def read_ras_matrix(path: Path) -> AffineTransform:
    """Read a matrix that takes fixed to moving points in RAS+ mm, as greedy and c3d write it. Raises InputError."""
    return AffineTransform(text_matrix(path))


def is_three_frames(shape: Sequence[int]) -> bool:
    """Return whether a NIfTI file of this shape can be a warp of FSL, SynthMorph or MRtrix: ITK has a fifth axis."""
    return len(shape) == 4 and shape[3] == 3


def three_frames(path: Path) -> tuple[np.ndarray, Grid, int]:
    """Return a warp's voxels (I, J, K, 3) float, its grid, and the code of its NIfTI intent. Raises InputError."""
    header, voxels = nifti.read(path)
    if not is_three_frames(voxels.shape) or voxels.dtype.kind != "f":
        raise InputError(f"{path}: expected a warp (I, J, K, 3) of floats, got {voxels.shape} {voxels.dtype}")
    grid = Grid(voxels.shape[:3], nifti.affine_of(path, header)[0], header=geometry_fields(header))
    check_grid(path, grid)
    return voxels, grid, int(header["intent_code"])


def read_ras_displacements(path: Path) -> DisplacementField:
    """Read displacements from fixed to moving points in RAS+ mm, as SynthMorph and MRtrix write them.

    Raises InputError.
    """
    voxels, grid, _ = three_frames(path)
    return DisplacementField(checked_field(path, voxels, np.ones(3)), grid)


def read_ras_positions(path: Path) -> DisplacementField:
    """Read the moving points of the fixed voxels in RAS+ mm, as MRtrix's deformation fields. Raises InputError."""
    voxels, grid, _ = three_frames(path)
    return DisplacementField(checked_field(path, voxels, np.ones(3)) - index_map(grid.affine, grid.shape), grid)


def read_voxel_displacements(path: Path, fixed: Grid, moving: Grid) -> DisplacementField:
    """Read displacements from voxels of the warp's file to voxels of the moving image, as VoxelMorph writes them.

    Raises InputError, also for another grid than that of the fixed image.
    """
    voxels, grid, _ = three_frames(path)
    if grid.shape != fixed.shape:
        raise InputError(f"{path}: expected a warp on the voxels of the fixed image, {fixed.shape}, got {grid.shape}")
    shift = checked_field(path, voxels, np.ones(3)) @ moving.affine[:3, :3].T.astype(np.float32)
    shift += index_map(moving.affine - fixed.affine, fixed.shape)
    return DisplacementField(shift, fixed, fixed.digest(), moving.digest())


def index_map(matrix: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Return the positions (I, J, K, 3) float32 to which `matrix` (4, 4) takes the indices of the voxels."""
    i, j, k = (np.arange(n)[:, None] * matrix[:3, axis] for axis, n in enumerate(shape))
    i, j, k = (values.astype(np.float32) for values in (i, j, k + matrix[:3, 3]))
    positions: np.ndarray = i[:, None, None] + j[None, :, None] + k[None, None]
    return positions
