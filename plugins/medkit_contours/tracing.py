"""From a label map to the outlines of its structures on every slice, along the edges of voxels.

The outlines enclose exactly the area of the voxels, and those of touching structures share their edges.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from medkit.space import Grid, apply_affine
from medkit_contours.polygons import Contour, ContourSet, Structure
from medkit_contours.structures import Box

THICK = 1.05
"""Ratio of the largest to the second largest spacing from which on the slices are those of the largest spacing."""
VIEWS = ("sagittal", "coronal", "axial")
"""Planes across the axis nearest to R, A and S."""


@dataclass(frozen=True, eq=False)
class Outline:
    """An outline on a slice."""

    number: int
    """The label that it belongs to."""
    slice: int
    """Index on the slice axis."""
    edges: np.ndarray
    """(N, 2): middles of its voxel edges in order, voxel indices along the first and second axis of the slice."""
    hole: bool
    """Whether it surrounds a hole."""

    @property
    def corners(self) -> np.ndarray:
        """(M, 2) voxel indices of the corners of the outline, in order."""
        following = np.roll(self.edges, -1, axis=0)
        # the middle of an edge across the first axis lies half-way between two indices of that axis
        across, next_across = self.edges[:, 0] % 1 != 0, following[:, 0] % 1 != 0
        first = np.where(across, self.edges[:, 0], following[:, 0])
        second = np.where(across, following[:, 1], self.edges[:, 1])
        corners: np.ndarray = np.stack([first, second], axis=1)[across != next_across]
        return corners


@dataclass(frozen=True, eq=False)
class Slices:
    """How a grid is cut into slices."""

    grid: Grid
    axis: int
    """The axis across the slices."""

    @property
    def plane(self) -> tuple[int, int]:
        """The two axes in the slices."""
        first, second = (axis for axis in range(3) if axis != self.axis)
        return first, second

    @cached_property
    def normal(self) -> np.ndarray:
        """(3,) RAS+, unit vector across the slices, towards higher indices."""
        first, second = (self.grid.affine[:3, axis] for axis in self.plane)
        across = np.cross(first, second)
        across *= np.sign(across @ self.grid.affine[:3, self.axis])
        unit: np.ndarray = across / np.linalg.norm(across)
        return unit

    @property
    def view(self) -> int:
        """The number of its plane in `VIEWS`: the nearest one."""
        return int(np.abs(self.normal).argmax())

    @cached_property
    def directions(self) -> np.ndarray:
        """(3, 2) RAS+, the two orthonormal directions in which places in a slice are counted, in mm."""
        first = self.grid.affine[:3, self.plane[0]]
        first = first / np.linalg.norm(first)
        return np.stack([first, np.cross(self.normal, first)], axis=1)

    @cached_property
    def flat(self) -> np.ndarray:
        """(2, 2) mm: takes voxel indices in a slice to places counted in `directions`."""
        steps: np.ndarray = self.directions.T @ self.grid.affine[:3, list(self.plane)]
        return steps

    @property
    def step(self) -> float:
        """mm between the planes of neighbouring slices."""
        return abs(float(self.normal @ self.grid.affine[:3, self.axis]))

    def points(self, indices: np.ndarray, number: int) -> np.ndarray:
        """Return places (N, 2) of slice `number`, voxel indices in the slice, as (N, 3) RAS+ mm."""
        full = np.empty((len(indices), 3))
        full[:, self.plane] = indices
        full[:, self.axis] = number
        return apply_affine(self.grid.affine, full)


def slices_of(grid: Grid, view: str = "auto") -> Slices:
    """Return the slices of a grid: those of a view, or by `auto` across the largest spacing, else the axial ones.

    view: `auto`, or one of `VIEWS`.
    """
    directions = np.abs(grid.affine[:3, :3] / grid.spacing)
    orders = ((0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0))
    order = max(orders, key=lambda axes: sum(directions[world, axis] for world, axis in enumerate(axes)))
    if view != "auto":
        return Slices(grid, order[VIEWS.index(view)])
    thin = [axis for axis in range(3) if grid.shape[axis] == 1]
    ranked = np.argsort(grid.spacing)
    if len(thin) == 1:
        return Slices(grid, thin[0])
    thick = grid.spacing[ranked[2]] > THICK * grid.spacing[ranked[1]]
    return Slices(grid, int(ranked[2]) if thick else order[2])


def outlines(labels: np.ndarray, places: Mapping[int, Box], slices: Slices) -> Iterator[Outline]:
    """Yield the outlines of the structures in `places` of a label map (I, J, K), structure by structure."""
    for number, box in places.items():
        mask = np.moveaxis(labels[box] == number, slices.axis, 0)
        corner = np.array([box[axis].start for axis in slices.plane])
        for index, plane in enumerate(mask, start=box[slices.axis].start):
            for edges in traced(plane):
                yield Outline(number, index, edges + corner, _area(edges) < 0)


def traced(plane: np.ndarray) -> list[np.ndarray]:
    """Return the outlines of a mask (rows, columns), each as the middles (N, 2) of its voxel edges.

    Voxels that meet at a corner only have outlines of their own.
    """
    from skimage.measure import find_contours

    if not plane.any():
        return []
    # level 0.5 lies half-way between the centres of a voxel inside and one outside: on their common edge
    return [found[:-1] - 1 for found in find_contours(np.pad(plane, 1).astype(np.float32), 0.5)]


def _area(points: np.ndarray) -> float:
    """Return the area of a polygon (N, 2), positive for the outside of a structure as scikit-image traces it."""
    x, y = points.T
    return float(np.dot(y, np.roll(x, -1)) - np.dot(x, np.roll(y, -1))) / 2


def contour_set(found: list[Outline], slices: Slices, names: Mapping[int, str]) -> ContourSet:
    """Return outlines as polygons in RAS+ mm, by structure."""
    by_number: dict[int, list[Contour]] = {number: [] for number in names}
    for one in found:
        by_number[one.number].append(Contour(slices.points(one.corners, one.slice), one.hole, one.slice))
    structures = tuple(Structure(n, names[n], tuple(by_number[n])) for n in sorted(names))
    return ContourSet(structures, slices.normal, slices.step, slices.grid, slices.axis)
