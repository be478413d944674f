"""Transforms as values: affine maps, displacement fields, their inverses and chains."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Protocol, runtime_checkable

import numpy as np

from medkit.errors import InputError
from medkit.space import Grid, apply_affine
from medkit.transforms.inverse import preimages

_logger = logging.getLogger("medkit")


@runtime_checkable
class Transform(Protocol):
    """A map from points of the fixed space to points of the moving space, RAS+ mm (ITK's direction).

    With it the moving image is resampled onto the fixed grid.
    """

    @property
    def from_grid(self) -> str | None:
        """Digest of the fixed grid, from which the transform leads; None if unknown."""

    @property
    def to_grid(self) -> str | None:
        """Digest of the moving grid, to which the transform leads; None if unknown."""

    def map_points(self, points: np.ndarray) -> np.ndarray:
        """Map (N, 3) points of the fixed space to (N, 3) points of the moving space, RAS+ mm."""

    def inverse(self) -> Transform:
        """Return the map from the moving to the fixed space."""


@dataclass(frozen=True, eq=False)
class AffineTransform:
    """An affine map from the fixed to the moving space."""

    matrix: np.ndarray
    """(4, 4), RAS+ mm."""
    from_grid: str | None = None
    """Digest of the fixed grid; None if unknown."""
    to_grid: str | None = None
    """Digest of the moving grid; None if unknown."""
    dims: int = 3
    """2 for a map of the plane, which is written as a 2D transform of ITK, else 3."""

    def map_points(self, points: np.ndarray) -> np.ndarray:
        """Map (N, 3) points of the fixed space to (N, 3) points of the moving space, RAS+ mm."""
        return apply_affine(self.matrix, points)

    def inverse(self) -> AffineTransform:
        """Return the map from the moving to the fixed space."""
        return replace(self, matrix=np.linalg.inv(self.matrix), from_grid=self.to_grid, to_grid=self.from_grid)


@dataclass(frozen=True, eq=False)
class DisplacementField:
    """A displacement at every voxel of a grid. It maps a fixed point p to p + field(p); outside the grid p stays."""

    field: np.ndarray
    """(I, J, K, 3) float32, RAS+ mm."""
    grid: Grid
    """The grid whose voxels have the displacements."""
    from_grid: str | None = None
    """Digest of the fixed grid; None if unknown."""
    to_grid: str | None = None
    """Digest of the moving grid; None if unknown."""

    def __post_init__(self) -> None:
        if self.field.shape != (*self.grid.shape, 3):
            raise ValueError(f"expected a field of shape {(*self.grid.shape, 3)}, got {self.field.shape}")

    @property
    def dims(self) -> int:
        """2 for a field of the plane, else 3."""
        return self.grid.dims

    def map_points(self, points: np.ndarray) -> np.ndarray:
        """Map (N, 3) points of the fixed space to (N, 3) points of the moving space, RAS+ mm.

        Displacements are linear between voxels and constant in the half voxel beyond the outermost centres.
        """
        points = np.asarray(points, np.float64)
        index = apply_affine(self.grid.to_index, points)
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
        """Return the map from the moving to the fixed space, which is found by iteration for each point."""
        return InverseField(self)


@dataclass(frozen=True, eq=False)
class InverseField:
    """The inverse of a displacement field, found for each point (see `medkit.transforms.inverse.preimages`)."""

    forward: DisplacementField
    """The field that is inverted."""

    @property
    def from_grid(self) -> str | None:
        """Digest of the grid from which this map leads: the one to which `forward` leads."""
        return self.forward.to_grid

    @property
    def to_grid(self) -> str | None:
        """Digest of the grid to which this map leads: the one from which `forward` leads."""
        return self.forward.from_grid

    @property
    def dims(self) -> int:
        """2 for a field of the plane, else 3."""
        return self.forward.dims

    def map_points(self, points: np.ndarray) -> np.ndarray:
        """Return the points (N, 3) that `forward` maps to `points` (N, 3), RAS+ mm."""
        return preimages(self.forward.field, self.forward.grid, points)

    def inverse(self) -> DisplacementField:
        """Return the field `forward`."""
        return self.forward


@dataclass(frozen=True, eq=False)
class Composite:
    """Transforms in image order: the first one is applied to the moving image first, and to points last."""

    transforms: tuple[Transform, ...]
    """Two or more transforms; see `compose`."""

    @property
    def from_grid(self) -> str | None:
        """Digest of the fixed grid, that of the last transform."""
        return self.transforms[-1].from_grid

    @property
    def to_grid(self) -> str | None:
        """Digest of the moving grid, that of the first transform."""
        return self.transforms[0].to_grid

    def map_points(self, points: np.ndarray) -> np.ndarray:
        """Map (N, 3) points of the fixed space to (N, 3) points of the moving space, RAS+ mm."""
        for transform in reversed(self.transforms):
            points = transform.map_points(points)
        return points

    def inverse(self) -> Composite:
        """Return the map from the moving to the fixed space: the inverses in reverse order."""
        return Composite(tuple(part.inverse() for part in reversed(self.transforms)))


def compose(transforms: Sequence[Transform], names: Sequence[str] = ()) -> Transform:
    """Make one transform from several in image order: `compose([a, b])` maps a point to a(b(point)).

    Neighbouring affine transforms are multiplied. Raises InputError if one transform does not lead from the grid to
    which the next one leads; the message contains `names`, if given. An unknown grid only causes a warning.
    """
    if not transforms:
        raise ValueError("expected one transform or more")
    words = names or [f"transform {number}" for number in range(1, len(transforms) + 1)]
    for first, second in pairwise(zip(words, transforms, strict=True)):
        _check_chain(first, second)
    return chain(transforms)


def chain(transforms: Iterable[Transform]) -> Transform:
    """Compose transforms as `compose` does, without checking the grids between them: for the parts of one file."""
    parts: list[Transform] = []
    for transform in (inner for outer in transforms for inner in parts_of(outer)):
        first = parts[-1] if parts else None
        if isinstance(first, AffineTransform) and isinstance(transform, AffineTransform):
            parts.pop()
            matrix, dims = first.matrix @ transform.matrix, max(first.dims, transform.dims)
            transform = AffineTransform(matrix, transform.from_grid, first.to_grid, dims)
        parts.append(transform)
    return parts[0] if len(parts) == 1 else Composite(tuple(parts))


def parts_of(transform: Transform) -> tuple[Transform, ...]:
    """Return the transforms of a composite in image order; any other transform as its only part."""
    return transform.transforms if isinstance(transform, Composite) else (transform,)


def _check_chain(first: tuple[str, Transform], second: tuple[str, Transform]) -> None:
    (name, left), (other, right) = first, second
    if left.from_grid is None or right.to_grid is None:
        _logger.warning("%s and %s: it is not known whether the space between them is the same", name, other)
    elif left.from_grid != right.to_grid:
        raise InputError(
            f"these transforms do not follow each other: {name} leads from the grid {left.from_grid}, "
            f"{other} leads to {right.to_grid}"
        )


def with_grids(transform: Transform, from_grid: str | None, to_grid: str | None) -> Transform:
    """Return the same map with other digests of the fixed and the moving grid; None keeps the present digest."""
    if isinstance(transform, Composite):
        *first, last = transform.transforms
        first[0] = with_grids(first[0], None, to_grid)
        return Composite((*first, with_grids(last, from_grid, None)))
    if not isinstance(transform, AffineTransform | DisplacementField):
        return transform
    return replace(transform, from_grid=from_grid or transform.from_grid, to_grid=to_grid or transform.to_grid)


def is_invertible(matrix: np.ndarray) -> bool:
    """Return whether a matrix (n, n) is finite and can be inverted."""
    return bool(np.isfinite(matrix).all() and abs(np.linalg.det(matrix)) >= 1e-9)


def grid_of_field(transform: Transform) -> Grid | None:
    """Return the grid of the displacement field that is applied to points first; None without a field."""
    return next((part.grid for part in reversed(parts_of(transform)) if isinstance(part, DisplacementField)), None)


def in_first_field(transform: Transform, points: np.ndarray) -> np.ndarray:
    """Return, (N,) bool, which of `points` (N, 3), RAS+ mm, reach the displacement field that is applied first.

    A point reaches it if it lies in the field's grid once the affine transforms before the field are applied.
    """
    for part in reversed(parts_of(transform)):
        if isinstance(part, DisplacementField):
            index = apply_affine(part.grid.to_index, points)
            inside: np.ndarray = np.all((index >= -0.5) & (index < np.array(part.grid.shape) - 0.5), axis=1)
            return inside
        if not isinstance(part, AffineTransform):
            break
        points = part.map_points(points)
    return np.ones(len(points), bool)
