"""Space: the grids of images, and the change between frames. Inside medkit there is one frame: RAS+, millimetres."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from medkit.errors import InputError, size_text

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
    "strange_size",
    "three_axes",
]

SPACING_RANGE = (1e-3, 1e3)
"""mm; a voxel size outside this range comes from wrong units or a damaged header."""
LENGTH_RANGE = (1.0, 1e4)
"""mm; the longest side of a volume that may show a body. Outside this range the header may state wrong units."""
ANISOTROPY = 3.0
"""Largest ratio of spacings without a warning: 1 x 1 x 3 mm is still read as a volume."""
SMALL_FIELD_OF_VIEW = 64.0
"""mm; if the longest side of an image is shorter, the anatomy may be cropped."""

_SHEAR = 1e-4
"""Largest cosine between two axes that count as orthogonal: headers hold float32 or less."""

RAS_TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
"""(4, 4), RAS+ (NIfTI, medkit) to LPS (DICOM, ITK) and back: x and y change sign, so it is its own inverse."""


@dataclass(frozen=True, eq=False)
class Grid:
    """The voxels of an image and their place in the body."""

    shape: tuple[int, int, int]
    """Voxels along each axis (I, J, K); K is 1 for a 2D image."""
    affine: np.ndarray
    """(4, 4) float64, voxel index -> RAS+ mm."""
    dims: int = 3
    """Number of axes in the file, 2 or 3; an output on the grid of a file with two axes has two axes again."""
    header: Mapping[str, Any] | None = None
    """Geometry fields of a NIfTI header, which an output on this grid repeats bit for bit; None for other formats."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", tuple(int(n) for n in self.shape))
        object.__setattr__(self, "affine", np.array(self.affine, np.float64))

    @property
    def spacing(self) -> np.ndarray:
        """(3,) mm, distances between the centres of neighbouring voxels."""
        lengths: np.ndarray = np.sqrt((self.affine[:3, :3] ** 2).sum(axis=0))
        return lengths

    @property
    def voxel_volume(self) -> float:
        """Volume of a voxel, mm3, which is less than the product of the spacings if the axes are not orthogonal."""
        return abs(float(np.linalg.det(self.affine[:3, :3])))

    @property
    def is_sheared(self) -> bool:
        """Whether two axes are not orthogonal, as in a CT with a tilted gantry."""
        axes = self.affine[:3, :3] / self.spacing
        return bool(np.abs(axes.T @ axes - np.eye(3)).max() > _SHEAR)

    @property
    def to_index(self) -> np.ndarray:
        """(4, 4), RAS+ mm -> voxel index. A file of two axes has no place along z: K is 0 for every z."""
        inverse: np.ndarray = np.linalg.inv(self.affine)
        if self.dims == 2:
            inverse[2] = 0
        return inverse

    @property
    def centre(self) -> np.ndarray:
        """(3,) RAS+ mm, the middle of the grid."""
        middle: np.ndarray = apply_affine(self.affine, (np.array([self.shape]) - 1) / 2)[0]
        return middle

    @property
    def is_planar(self) -> bool:
        """Whether some axis has exactly one voxel."""
        return 1 in self.shape

    def matches(self, other: Grid) -> bool:
        """Return whether the other grid has exactly the same shape and affine."""
        return self.shape == other.shape and np.array_equal(self.affine, other.affine)

    def digest(self) -> str:
        """Return 16 hex digits that name this grid: the sha256 of its shape and its affine rounded to 1e-4 mm.

        The affine is rounded to float32 first, because that is what a NIfTI file keeps of it.
        """
        steps = np.rint(self.affine[:3].astype(np.float32).astype(np.float64) * 1e4).astype("<i8")
        return hashlib.sha256(np.array(self.shape, "<i8").tobytes() + steps.tobytes()).hexdigest()[:16]


def apply_affine(affine: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Map points (N, 3) by an affine (4, 4)."""
    moved: np.ndarray = np.asarray(points, np.float64) @ affine[:3, :3].T + affine[:3, 3]
    return moved


def three_axes(shape: Sequence[int]) -> tuple[int, int, int]:
    """Return the first three axes of a shape; missing axes have one voxel."""
    i, j, k = (*shape, 1, 1)[:3]
    return i, j, k


def lps_affine(directions: np.ndarray, spacing: np.ndarray, origin: np.ndarray) -> np.ndarray:
    """Return the affine (4, 4), voxel index -> RAS+ mm, of a geometry as ITK and DICOM state it.

    `directions` (n, n) LPS has the directions of the axes in its columns; `spacing` (n,) mm; `origin` (n,) LPS mm;
    n = 2 or 3.
    """
    dims = len(origin)
    lps = np.eye(4)
    lps[:dims, :dims] = directions * spacing
    lps[:dims, 3] = origin
    return RAS_TO_LPS @ lps


def lps_parts(affine: np.ndarray, dims: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return directions (n, n) LPS, spacing (n,) mm and origin (n,) LPS mm of an affine, n = `dims`.

    The inverse of `lps_affine`.
    """
    lps = (RAS_TO_LPS @ affine)[:dims]
    spacing = np.sqrt((lps[:, :dims] ** 2).sum(axis=0))
    return lps[:, :dims] / spacing, spacing, lps[:, 3]


def check_grid(path: Path, grid: Grid) -> list[str]:
    """Return warnings for an unusual grid. Raises InputError for an impossible one."""
    spacing = grid.spacing
    if not np.isfinite(grid.affine).all():
        rows = "; ".join(" ".join(f"{value:g}" for value in row) for row in grid.affine[:3])
        raise InputError(f"{path}: expected an affine of finite numbers, got NaN or infinity: {rows}")
    if not ((spacing > SPACING_RANGE[0]) & (spacing < SPACING_RANGE[1])).all():
        raise InputError(f"{path}: expected a spacing between 0.001 and 1000 mm, got {size_text(spacing, 'g')} mm")
    if abs(np.linalg.det(grid.affine[:3, :3] / spacing)) < 1e-3:
        raise InputError(f"{path}: expected an affine whose axes span space, got a singular affine")
    warnings = []
    axes = spacing[: grid.dims]
    if axes.max() > ANISOTROPY * axes.min():
        warnings.append(f"strongly anisotropic spacing: {size_text(axes, '.3g')} mm")
    longest = float((spacing * grid.shape).max())
    if longest < SMALL_FIELD_OF_VIEW:
        warnings.append(f"field of view of {longest:.0f} mm: the anatomy may be cropped")
    return warnings


def strange_size(grid: Grid) -> str | None:
    """Return in a phrase why no body is as large as a volume; None if one may be."""
    longest = float((grid.spacing * grid.shape).max())
    if grid.is_planar or LENGTH_RANGE[0] <= longest <= LENGTH_RANGE[1]:
        return None
    return (
        f"the longest side measures {longest:.3g} mm ({size_text(grid.shape)} voxels of "
        f"{size_text(grid.spacing, '.3g')} mm), expected 1 mm to 10 m: is the spacing right?"
    )
