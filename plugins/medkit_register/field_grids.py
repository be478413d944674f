"""Grids for displacement fields: that of the image, or the points of the warp, which are fewer."""

from __future__ import annotations

import numpy as np

from medkit.space import Grid, three_axes
from medkit_register.warp import Lattice

MAX_SKEW = 1e-3
"""Lattice steps by which an axis of the grid may deviate, from end to end, from a parallel axis of the lattice."""


def parallel(to_lattice: np.ndarray, shape: tuple[int, int, int]) -> bool:
    """Whether each axis of a grid of that shape runs along one of the lattice.

    `to_lattice` (4, 4) takes voxel indices to indices of the lattice.
    """
    spans = np.abs(to_lattice[:3, :3]) * np.asarray(shape)
    along = spans.argmax(0)
    return len(set(along)) == 3 and bool((spans.sum(0) - spans.max(0)).max() < MAX_SKEW)


def warp_grid(lattice: Lattice, grid: Grid) -> Grid:
    """Return a grid that covers `grid`, along its axes, with the spacing of a warp's `lattice` where that is wider.

    Where the two are parallel, the points are those of the lattice: then a field on them, linear in between, is the
    field that the warp has. Along axes whose voxels are wider than the lattice's steps, the voxels stay.
    """
    to_lattice = np.linalg.inv(lattice.affine) @ grid.affine
    aligned = parallel(to_lattice, grid.shape)
    axes = [
        _aligned(to_lattice, axis, n) if aligned else _covering(lattice.spacing / float(grid.spacing[axis]), n)
        for axis, n in enumerate(grid.shape)
    ]
    index = np.diag([*(step for _, step, _ in axes), 1.0])
    index[:3, 3] = [first for first, _, _ in axes]
    return Grid(three_axes([count for _, _, count in axes]), grid.affine @ index, grid.dims)


def _aligned(to_lattice: np.ndarray, axis: int, size: int) -> tuple[float, float, int]:
    """Return first point, step and count, in voxels, of the lattice's points that cover an axis of `size` voxels."""
    row = to_lattice[int(np.abs(to_lattice[:3, axis]).argmax())]
    step = 1 / abs(float(row[axis]))
    if size == 1 or step <= 1:
        return 0.0, 1.0, size
    on_a_point = -float(row[3] / row[axis]) % step
    first = on_a_point - step * float(np.ceil((on_a_point + 0.5) / step))
    return first, step, 1 + int(np.ceil((size - 0.5 - first) / step))


def _covering(step: float, size: int) -> tuple[float, float, int]:
    """Return first point, step and count, in voxels, of points `step` apart about the middle of `size` voxels."""
    if size == 1 or step <= 1:
        return 0.0, 1.0, size
    count = 1 + int(np.ceil(size / step))
    return (size - 1 - step * (count - 1)) / 2, step, count
