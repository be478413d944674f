"""Jacobian determinants of transforms: where and how much they stretch space, and where they fold it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from medkit.space import Grid
from medkit.transforms.transform import AffineTransform, DisplacementField, Transform

LOG_FLOOR = 1e-3
"""Smallest determinant before the logarithm is taken; smaller ones, as in folds, are raised to it."""
_SLAB = 1 << 18
"""Voxels that are computed at a time."""


@dataclass(frozen=True)
class Determinants:
    """Summary of the Jacobian determinants in a region."""

    minimum: float
    """Smallest determinant."""
    maximum: float
    """Largest determinant."""
    mean: float
    """Mean of the determinants."""
    folding: float
    """Fraction of the voxels, 0 to 1, whose determinant is 0 or less: there the transform has no inverse."""
    voxels: int
    """Number of voxels in the region."""

    @classmethod
    def of(cls, values: np.ndarray, mask: np.ndarray | None = None) -> Determinants:
        """Summarise determinants (I, J, K) where `mask` (I, J, K) is true. Raises ValueError for an empty mask."""
        kept = values.ravel(order="K") if mask is None else values[mask]
        if not kept.size:
            raise ValueError("expected a mask with one voxel or more")
        lowest, highest, mean = float(kept.min()), float(kept.max()), float(kept.mean(dtype=np.float64))
        return cls(lowest, highest, mean, float((kept <= 0).mean()), kept.size)

    def sentence(self) -> str:
        """Return a text such as `0.412 to 1.93, mean 1.02, folding 0.01 % of 12345 voxels`."""
        return (
            f"{self.minimum:.3g} to {self.maximum:.3g}, mean {self.mean:.3g}, "
            f"folding {100 * self.folding:.2g} % of {self.voxels} voxels"
        )


@dataclass(frozen=True)
class VolumeChange:
    """The volume of a structure in the fixed image, and of what the transform finds in its place in the moving one."""

    label: int
    """Number of the structure."""
    fixed: float
    """mm3 in the fixed image."""
    moving: float
    """mm3 in the moving image: the integral of the determinant."""
    minimum: float
    """Smallest determinant inside the structure."""
    maximum: float
    """Largest determinant inside the structure."""

    @property
    def percent(self) -> float:
        """By how many percent the moving structure is larger than the fixed one."""
        return 100 * (self.moving / self.fixed - 1)


def volume_changes(values: np.ndarray, labels: np.ndarray, voxel_volume: float) -> list[VolumeChange]:
    """Return the change of each label above 0, in ascending order.

    `values` (I, J, K) are determinants, `labels` (I, J, K) whole numbers on the same grid, whose voxels have a volume
    of `voxel_volume` mm3. It is the change from the fixed to the moving image, to which the transform leads.
    """
    order = np.argsort(labels, axis=None, kind="stable")
    sorted_labels, sorted_values = labels.ravel()[order], values.ravel()[order].astype(np.float64)
    found, first = np.unique(sorted_labels, return_index=True)
    return [
        VolumeChange(
            int(label), voxel_volume * part.size, voxel_volume * float(part.sum()), float(part.min()), float(part.max())
        )
        for label, part in zip(found, np.split(sorted_values, first[1:]), strict=True)
        if label > 0
    ]


def jacobian_determinant(transform: Transform, grid: Grid) -> np.ndarray:
    """Return the determinants (I, J, K) float32 of the whole map, affine parts included, at the voxels of `grid`.

    The map takes fixed points to moving points, so moving anatomy grows by resampling where a determinant is below 1.
    Derivatives are central differences between neighbouring voxels, one-sided at the border. A grid of two axes has
    determinants of the plane.
    """
    if isinstance(transform, AffineTransform):
        matrix = transform.matrix[: grid.dims, : grid.dims]
        return np.full(grid.shape, np.linalg.det(matrix), np.float32)
    if isinstance(transform, DisplacementField) and transform.grid.matches(grid):
        return determinant_of(transform.field, grid)
    from medkit.transforms.resampling import displacements

    return determinant_of(displacements(transform, grid), grid)


def determinant_of(displacement: np.ndarray, grid: Grid) -> np.ndarray:
    """Return the determinants (I, J, K) float32 of displacements (I, J, K, 3), RAS+ mm, at the voxels of `grid`.

    Derivatives are those of `jacobian_determinant`.
    """
    long = int(np.argmax(displacement.strides[:3]))  # slabs along the axis that is slowest in memory
    out = np.empty(grid.shape, np.float32)
    target, source = np.moveaxis(out, long, 0), np.moveaxis(displacement, long, 0)
    order = [long, *(axis for axis in range(3) if axis != long)]
    affine = grid.affine[:3, order].astype(np.float32)
    plane = [order.index(axis) for axis in range(grid.dims)]
    whole = float(np.linalg.det(affine[: grid.dims][:, plane]))
    for first, last in _slabs(source.shape):
        low, high = max(first - 1, 0), min(last + 1, len(source))
        # derivatives by index, not by mm: dividing by the determinant of the grid's axes saves inverting them
        columns = [_slope(source[low:high], axis) + affine[:, axis] for axis in plane]
        target[first:last] = (_determinant(columns) / whole)[first - low : last - low]
    return out


def _slabs(shape: tuple[int, ...]) -> Iterator[tuple[int, int]]:
    """Yield the first and last index, exclusive, of slabs of about `_SLAB` voxels along the first axis."""
    step = max(1, _SLAB // (shape[1] * shape[2]))
    return ((first, min(first + step, shape[0])) for first in range(0, shape[0], step))


def _slope(values: np.ndarray, axis: int) -> np.ndarray:
    """Return central differences along an axis; 0 along an axis of one voxel."""
    if values.shape[axis] == 1:
        return np.zeros_like(values)
    slopes: np.ndarray = np.gradient(values, axis=axis)
    return slopes


def _determinant(columns: list[np.ndarray]) -> np.ndarray:
    """Return the determinants (...) of 2x2 or 3x3 matrices, given by their columns, each (..., 3)."""
    values: np.ndarray
    if len(columns) == 2:
        (a, c, _), (b, d, _) = (np.moveaxis(column, -1, 0) for column in columns)
        values = a * d - b * c
    else:
        (a, d, g), (b, e, h), (c, f, i) = (np.moveaxis(column, -1, 0) for column in columns)
        values = a * (e * i - f * h) - b * (d * i - f * g) + c * (d * h - e * g)
    return values
