"""Space: grids, transforms between them, and transform files. One frame inside medkit: RAS+, millimetres.

A transform takes points of the fixed space to the moving space (ITK's convention): with it the moving image is
resampled onto the fixed grid.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from medkit.errors import InputError

__all__ = [
    "ANISOTROPY",
    "RAS_TO_LPS",
    "SMALL_FIELD_OF_VIEW",
    "SPACING_RANGE",
    "Grid",
    "apply_affine",
    "check_grid",
    "lps_affine",
    "lps_parts",
    "three_axes",
]

SPACING_RANGE = (1e-3, 1e3)
"""mm; a voxel outside it is a mistake of units or a torn header."""
ANISOTROPY = 3.0
"""Largest to smallest spacing beyond which a warning is due: 1 x 1 x 3 mm is still read as a volume."""
SMALL_FIELD_OF_VIEW = 64.0
"""mm; the longest side of an image below it suggests that the anatomy is cut off."""

RAS_TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
"""RAS+ (NIfTI, medkit) to LPS (DICOM, ITK) and back: x and y change sign. Its own inverse."""


@dataclass(frozen=True, eq=False)
class Grid:
    """The voxels of an image and their place in the body."""

    shape: tuple[int, int, int]
    """Voxels along each axis (I, J, K); K is 1 for a 2D image."""
    affine: np.ndarray
    """(4, 4) float64, voxel index -> RAS+ mm."""
    dims: int = 3
    """Axes of the file itself: 2 or 3; a file of two axes is written back with two."""
    header: Mapping[str, Any] | None = None
    """Geometry as a NIfTI header stores it, so that an output on this grid repeats it bit for bit; None elsewhere."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", tuple(int(n) for n in self.shape))
        object.__setattr__(self, "affine", np.array(self.affine, np.float64))

    @property
    def spacing(self) -> np.ndarray:
        """(3,), mm between the centres of neighbouring voxels."""
        return np.sqrt((self.affine[:3, :3] ** 2).sum(axis=0))

    @property
    def centre(self) -> np.ndarray:
        """(3,), RAS+ mm, the middle of the grid."""
        return apply_affine(self.affine, (np.array([self.shape]) - 1) / 2)[0]

    @property
    def is_planar(self) -> bool:
        """Some axis has exactly one voxel."""
        return 1 in self.shape

    def digest(self) -> str:
        """16 hex digits that name this grid: sha256 over shape and affine rounded to 1e-4 mm.

        The affine passes through float32 first, since that is what a NIfTI file keeps of it.
        """
        steps = np.rint(self.affine[:3].astype(np.float32).astype(np.float64) * 1e4).astype("<i8")
        return hashlib.sha256(np.array(self.shape, "<i8").tobytes() + steps.tobytes()).hexdigest()[:16]


def apply_affine(affine: np.ndarray, points: np.ndarray) -> np.ndarray:
    """(N, 3) points through a (4, 4) affine -> (N, 3)."""
    return np.asarray(points, np.float64) @ affine[:3, :3].T + affine[:3, 3]


def three_axes(shape: Sequence[int]) -> tuple[int, int, int]:
    """The first three axes of a shape, missing ones with one voxel."""
    i, j, k = (*shape, 1, 1)[:3]
    return i, j, k


def lps_affine(directions: np.ndarray, spacing: np.ndarray, origin: np.ndarray) -> np.ndarray:
    """ITK's and DICOM's geometry as an affine, (4, 4), voxel index -> RAS+ mm.

    `directions` (n, n), its columns the directions of the axes, `spacing` (n,) mm and `origin` (n,) LPS mm, n = 2 or 3.
    """
    dims = len(origin)
    lps = np.eye(4)
    lps[:dims, :dims] = directions * spacing
    lps[:dims, 3] = origin
    return RAS_TO_LPS @ lps


def lps_parts(affine: np.ndarray, dims: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The inverse of `lps_affine`: directions (n, n), spacing (n,) mm and origin (n,) LPS mm, n = `dims`."""
    lps = (RAS_TO_LPS @ affine)[:dims]
    spacing = np.sqrt((lps[:, :dims] ** 2).sum(axis=0))
    return lps[:, :dims] / spacing, spacing, lps[:, 3]


def check_grid(path: Path, grid: Grid) -> list[str]:
    """Refuse a grid that cannot be (InputError); warnings for one that is unusual."""
    spacing = grid.spacing
    if not np.isfinite(grid.affine).all() or not ((spacing > SPACING_RANGE[0]) & (spacing < SPACING_RANGE[1])).all():
        came = " x ".join(f"{size:g}" for size in spacing)
        raise InputError(f"{path}: expected a spacing between 0.001 and 1000 mm, got {came} mm")
    if abs(np.linalg.det(grid.affine[:3, :3] / spacing)) < 1e-3:
        raise InputError(f"{path}: singular affine: its axes do not span the space")
    warnings = []
    axes = spacing[: grid.dims]
    if axes.max() > ANISOTROPY * axes.min():
        warnings.append(f"strongly anisotropic spacing: {' x '.join(f'{size:.3g}' for size in axes)} mm")
    longest = float((spacing * grid.shape).max())
    if longest < SMALL_FIELD_OF_VIEW:
        warnings.append(f"field of view of {longest:.0f} mm: the anatomy may be cropped")
    return warnings
