"""Space: grids, transforms between them, and transform files. One frame inside medkit: RAS+, millimetres.

A transform takes points of the fixed space to the moving space (ITK's convention): with it the moving image is
resampled onto the fixed grid.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from medkit.errors import InputError, OutputError

RAS_TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
"""RAS+ (NIfTI, medkit) to LPS (DICOM, ITK) and back: x and y change sign. Its own inverse."""

TRANSFORM_SUFFIXES = (
    *(".tfm", ".txt", ".mat", ".h5", ".hdf5", ".xfm", ".lta"),
    *(".nii.gz", ".nii", ".mha", ".mhd", ".nrrd", ".nhdr"),
)
"""Files of transforms, and of displacement fields."""
H5_SUFFIXES = (".h5", ".hdf5")
"""ITK's form for any transform, ANTs' for composite ones."""
_logger = logging.getLogger("medkit")


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


@runtime_checkable
class Transform(Protocol):
    """Takes points of the fixed space to the moving space, RAS+ mm."""

    @property
    def from_grid(self) -> str | None:
        """Digest of the grid it leads from (fixed); None where unknown."""

    @property
    def to_grid(self) -> str | None:
        """Digest of the grid it leads to (moving); None where unknown."""

    def map_points(self, points: np.ndarray) -> np.ndarray:
        """(N, 3) points of the fixed space -> (N, 3) points of the moving space, RAS+ mm."""

    def inverse(self) -> Transform:
        """The map from the moving to the fixed space."""

    def write(self, path: Path) -> None:
        """Write a file that ANTs and SimpleITK read."""


@dataclass(frozen=True, eq=False)
class AffineTransform:
    """An affine map from the fixed to the moving space."""

    matrix: np.ndarray
    """(4, 4), RAS+ mm."""
    from_grid: str | None = None
    """Digest of the fixed grid."""
    to_grid: str | None = None
    """Digest of the moving grid."""
    dims: int = 3
    """2 for a map of the plane: written as ITK's 2D transform."""

    def map_points(self, points: np.ndarray) -> np.ndarray:
        """(N, 3) -> (N, 3), RAS+ mm."""
        return apply_affine(self.matrix, points)

    def inverse(self) -> AffineTransform:
        """The map from the moving to the fixed space."""
        return replace(self, matrix=np.linalg.inv(self.matrix), from_grid=self.to_grid, to_grid=self.from_grid)

    def write(self, path: Path) -> None:
        """Write an ITK transform in LPS: text, or for `.mat`, `.h5` and `.hdf5` ITK's binary forms."""
        from medkit.transform_files import write_affine

        write_affine(Path(path), self)


@dataclass(frozen=True, eq=False)
class DisplacementField:
    """A displacement at every voxel of a grid: a fixed point p goes to p + field(p); zero outside the grid."""

    field: np.ndarray
    """(I, J, K, 3) float32, RAS+ mm."""
    grid: Grid
    """Where the displacements are."""
    from_grid: str | None = None
    """Digest of the fixed grid."""
    to_grid: str | None = None
    """Digest of the moving grid."""

    def __post_init__(self) -> None:
        if self.field.shape != (*self.grid.shape, 3):
            raise ValueError(f"expected a field of shape {(*self.grid.shape, 3)}, got {self.field.shape}")

    @property
    def dims(self) -> int:
        """2 for a field of the plane, else 3."""
        return self.grid.dims

    def map_points(self, points: np.ndarray) -> np.ndarray:
        """(N, 3) -> (N, 3), RAS+ mm; linear between voxels, up to half a voxel beyond the outermost centres."""
        points = np.asarray(points, np.float64)
        index = apply_affine(np.linalg.inv(self.grid.affine), points)
        size = np.array(self.grid.shape)
        inside = ((index >= -0.5) & (index < size - 0.5)).all(axis=1)
        index = np.clip(index[inside], 0, size - 1)
        low = np.minimum(index.astype(np.int64), np.maximum(size - 2, 0))
        part = index - low
        moved = points.copy()
        for corner in np.ndindex(2, 2, 2):
            at = np.minimum(low + corner, size - 1)
            weight = np.where(corner, part, 1 - part).prod(axis=1)
            moved[inside] += weight[:, None] * self.field[at[:, 0], at[:, 1], at[:, 2]]
        return moved

    def inverse(self) -> InverseField:
        """The map from the moving to the fixed space, by iteration at the points that are asked for."""
        return InverseField(self)

    def write(self, path: Path) -> None:
        """Write what ANTs and SimpleITK read: NIfTI, vector intent, LPS mm, float32; or ITK's `.h5`."""
        from medkit.transform_files import write_field

        write_field(Path(path), self)


@dataclass(frozen=True, eq=False)
class InverseField:
    """The inverse of a displacement field, without a grid of its own: see `medkit.resample.preimages`."""

    forward: DisplacementField
    """The field that it undoes."""

    @property
    def from_grid(self) -> str | None:
        """Digest of the grid it leads from: the one that `forward` leads to."""
        return self.forward.to_grid

    @property
    def to_grid(self) -> str | None:
        """Digest of the grid it leads to: the one that `forward` leads from."""
        return self.forward.from_grid

    @property
    def dims(self) -> int:
        """2 for a field of the plane, else 3."""
        return self.forward.dims

    def map_points(self, points: np.ndarray) -> np.ndarray:
        """(N, 3) -> (N, 3), RAS+ mm: the points that `forward` takes to `points`."""
        from medkit.resample import preimages

        return preimages(self.forward, points)

    def inverse(self) -> DisplacementField:
        """The field itself."""
        return self.forward

    def write(self, path: Path) -> None:
        """It has no file: raises OutputError. `to_displacement_field` puts it on a grid."""
        raise OutputError(f"{path}: the inverse of a displacement field is written as a field on a grid of its own")


@dataclass(frozen=True, eq=False)
class Composite:
    """Transforms in image order: the first is applied first to the moving image, so points meet the last one first."""

    transforms: tuple[Transform, ...]
    """Two or more; see `compose`."""

    @property
    def from_grid(self) -> str | None:
        """Digest of the fixed grid, that of the last transform."""
        return self.transforms[-1].from_grid

    @property
    def to_grid(self) -> str | None:
        """Digest of the moving grid, that of the first transform."""
        return self.transforms[0].to_grid

    def map_points(self, points: np.ndarray) -> np.ndarray:
        """(N, 3) -> (N, 3), RAS+ mm."""
        for transform in reversed(self.transforms):
            points = transform.map_points(points)
        return points

    def inverse(self) -> Composite:
        """The map from the moving to the fixed space: the inverses in the other order."""
        return Composite(tuple(part.inverse() for part in reversed(self.transforms)))

    def write(self, path: Path) -> None:
        """Write one displacement field on the grid of the last transform, which must be a field; `.h5` keeps all.

        Where it is an affine one, no grid is known that covers the fixed image: see `to_displacement_field`.
        """
        if Path(path).suffix in H5_SUFFIXES:
            from medkit.transform_files import write_itk

            write_itk(Path(path), self)
            return
        last = self.transforms[-1]
        if not isinstance(last, DisplacementField):
            raise OutputError(f"{path}: a composite transform is written as a displacement field on the fixed grid")
        to_displacement_field(self, last.grid).write(path)


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


def compose(transforms: Sequence[Transform], names: Sequence[str] = ()) -> Transform:
    """One transform from several in image order: `compose([a, b])` maps a point to a(b(point)).

    Neighbouring affine ones are multiplied. InputError where one does not start in the space the next one ends in,
    which says `names` where they are given; an unknown space is a warning.
    """
    if not transforms:
        raise ValueError("expected one transform or more")
    words = names or [f"transform {number}" for number in range(1, len(transforms) + 1)]
    for first, second in pairwise(zip(words, transforms, strict=True)):
        _check_chain(first, second)
    return chain(transforms)


def chain(transforms: Iterable[Transform]) -> Transform:
    """`compose` without a look at the spaces between, for the parts of one file."""
    parts: list[Transform] = []
    for transform in (inner for outer in transforms for inner in getattr(outer, "transforms", (outer,))):
        first = parts[-1] if parts else None
        if isinstance(first, AffineTransform) and isinstance(transform, AffineTransform):
            parts.pop()
            matrix, dims = first.matrix @ transform.matrix, max(first.dims, transform.dims)
            transform = AffineTransform(matrix, transform.from_grid, first.to_grid, dims)
        parts.append(transform)
    return parts[0] if len(parts) == 1 else Composite(tuple(parts))


def read_transform(path: Path) -> Transform:
    """Read a transform file of ITK, ANTs, MINC or FreeSurfer (LTA), or a displacement field (see `TRANSFORM_SUFFIXES`).

    A file of several transforms gives their composition. The digests of the grids it leads between are those that
    medkit wrote into the file, else None. Raises InputError, which names the file.
    """
    from medkit.transform_files import read_transform_file

    return read_transform_file(Path(path))


def to_displacement_field(transform: Transform, grid: Grid) -> DisplacementField:
    """Any transform as one displacement field on `grid`, which should cover the fixed image; linear between voxels."""
    from medkit.resample import displacements

    displacement = displacements(transform, grid)
    return DisplacementField(displacement, grid, transform.from_grid, transform.to_grid)


def _check_chain(first: tuple[str, Transform], second: tuple[str, Transform]) -> None:
    (name, left), (other, right) = first, second
    if left.from_grid is None or right.to_grid is None:
        _logger.warning("%s and %s: whether the space between them is the same is not known", name, other)
    elif left.from_grid != right.to_grid:
        raise InputError(
            f"these transforms do not follow each other: {name} leads from the grid {left.from_grid}, "
            f"{other} to {right.to_grid}"
        )
