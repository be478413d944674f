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


@dataclass(frozen=True, eq=False)
class InverseField:
    """The inverse of a displacement field, without a grid of its own: see `medkit.transforms.inverse.preimages`."""

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
        return preimages(self.forward.field, self.forward.grid, points)

    def inverse(self) -> DisplacementField:
        """The field itself."""
        return self.forward


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


def _check_chain(first: tuple[str, Transform], second: tuple[str, Transform]) -> None:
    (name, left), (other, right) = first, second
    if left.from_grid is None or right.to_grid is None:
        _logger.warning("%s and %s: whether the space between them is the same is not known", name, other)
    elif left.from_grid != right.to_grid:
        raise InputError(
            f"these transforms do not follow each other: {name} leads from the grid {left.from_grid}, "
            f"{other} to {right.to_grid}"
        )


def grid_of_field(transform: Transform) -> Grid | None:
    """The grid of the displacement field that points meet first; None without one."""
    parts = transform.transforms if isinstance(transform, Composite) else (transform,)
    return next((part.grid for part in reversed(parts) if isinstance(part, DisplacementField)), None)


def meets_field(transform: Transform, points: np.ndarray) -> np.ndarray:
    """(N,) bool: which of `points` (N, 3), RAS+ mm, meet the grid of the first displacement field on their way."""
    parts = transform.transforms if isinstance(transform, Composite) else (transform,)
    for part in reversed(parts):
        if isinstance(part, DisplacementField):
            index = apply_affine(np.linalg.inv(part.grid.affine), points)
            return np.all((index >= -0.5) & (index < np.array(part.grid.shape) - 0.5), axis=1)
        if not isinstance(part, AffineTransform):
            break
        points = part.map_points(points)
    return np.ones(len(points), bool)
