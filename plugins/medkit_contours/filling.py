"""From contours to a label map: a voxel has the label of a structure if its centre lies inside the contours.

A contour counts through half the usual distance of planes on both sides, but not beyond half the way to the next one.
Inside is what an odd number of polygons surround, so holes and contours that reach a hole through a channel (keyholes)
are right.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from medkit.space import Grid, apply_affine
from medkit_contours.polygons import ContourSet, Structure, area_vector, directions_across

_TOLERANCE = 0.05
"""Share of a slice by which a grid may be tilted against the contours and still count as parallel."""
_DECIMALS = 6
"""Decimals of voxel indices: rounding errors must not decide on which side of a polygon a centre lies."""


@dataclass(frozen=True, eq=False)
class Filled:
    """A label map made from contours."""

    labels: np.ndarray
    """(I, J, K) unsigned integers."""
    voxels: dict[int, int]
    """Structure's number -> voxels inside its contours, before others are drawn over it."""
    shared: int
    """Voxels inside more than one structure; the smallest of the structures has them."""


def filled(contours: ContourSet, grid: Grid) -> Filled:
    """Return the label map of contours on a grid."""
    largest = max((one.number for one in contours.structures), default=1)
    labels = np.zeros(grid.shape, np.min_scalar_type(largest))
    voxels = {}
    shared = 0
    for one in sorted(contours.structures, key=_size, reverse=True):
        mask = mask_of(one, contours, grid)
        shared += int((labels[mask] > 0).sum())
        labels[mask] = one.number
        voxels[one.number] = int(mask.sum())
    return Filled(labels, voxels, shared)


def _size(structure: Structure) -> float:
    """Return the sum of the areas, mm2, that a structure's contours enclose."""
    return float(sum(np.linalg.norm(area_vector(one.points)) for one in structure.contours))


def mask_of(structure: Structure, contours: ContourSet, grid: Grid) -> np.ndarray:
    """Return the voxels (I, J, K) bool whose centres lie inside a structure's contours."""
    axis = parallel_axis(contours.normal, grid)
    step = structure.step or contours.step or slice_distance(contours.normal, grid)
    mask = np.zeros(grid.shape, bool)
    for slab, polygons in _planes(structure, contours.normal, step):
        if axis is None:
            _fill_oblique(mask, polygons, contours.normal, slab, grid)
        else:
            _fill_slices(mask, polygons, contours.normal, slab, grid, axis)
    return mask


def parallel_axis(normal: np.ndarray, grid: Grid) -> int | None:
    """Return the axis of a grid whose slices are parallel to the planes across `normal`; None if none is."""
    across = np.abs(normal @ grid.affine[:3, :3])
    axis = int((across / grid.spacing).argmax())
    tilt = sum(across[other] * grid.shape[other] for other in range(3) if other != axis)
    return axis if tilt <= _TOLERANCE * across[axis] else None


def slice_distance(normal: np.ndarray, grid: Grid) -> float:
    """Return the distance, mm along `normal`, between a grid's slices that are the most parallel to the planes."""
    return float(np.abs(normal @ grid.affine[:3, :3]).max())


def _planes(
    structure: Structure, normal: np.ndarray, step: float
) -> Iterator[tuple[tuple[float, float], list[np.ndarray]]]:
    """Yield for each plane of a structure the slab it counts for, mm along the normal, and its polygons.

    step: mm, the usual distance of planes; polygons: (N, 3) RAS+ mm.
    """
    heights = np.array([float((one.points @ normal).mean()) for one in structure.contours])
    order = np.argsort(heights, kind="stable")
    starts = np.flatnonzero(np.diff(heights[order], prepend=-np.inf) > step / 4)
    groups = [group for group in np.split(order, starts[1:]) if len(group)]
    planes = np.array([heights[group].mean() for group in groups])
    halves = np.minimum(np.diff(planes), step) / 2
    low, high = planes - np.append(step / 2, halves), planes + np.append(halves, step / 2)
    for slab, group in zip(zip(low.tolist(), high.tolist(), strict=True), groups, strict=True):
        yield slab, [structure.contours[n].points for n in group]


def _fill_slices(
    mask: np.ndarray,
    polygons: Sequence[np.ndarray],
    normal: np.ndarray,
    slab: tuple[float, float],
    grid: Grid,
    axis: int,
) -> None:
    """Fill polygons of one plane into the slices of a mask that lie within `slab`, mm along the normal."""
    plane = [other for other in range(3) if other != axis]
    corner, across = float(normal @ grid.affine[:3, 3]), float(normal @ grid.affine[:3, axis])
    heights = corner + across * np.arange(grid.shape[axis])
    slack = 1e-6 * (slab[1] - slab[0])
    for number in np.flatnonzero((heights >= slab[0] - slack) & (heights < slab[1] - slack)):
        origin = grid.affine[:3, 3] + number * grid.affine[:3, axis]
        # the polygon is shifted along the normal into the slice, then expressed by the slice's two axes
        to_index = np.linalg.inv(np.column_stack([grid.affine[:3, plane], normal]))[:2]
        inside = surrounded([(p - origin) @ to_index.T for p in polygons], (grid.shape[plane[0]], grid.shape[plane[1]]))
        np.moveaxis(mask, axis, 0)[number] |= inside


def surrounded(polygons: Sequence[np.ndarray], shape: tuple[int, int]) -> np.ndarray:
    """Return the pixels (rows, columns) bool whose centres an odd number of polygons (N, 2) surround.

    The polygons are in pixel indices. Of an edge that runs through centres, those on the side of lower indices count
    as inside, so that polygons which share an edge never share a pixel.
    """
    points = np.concatenate(polygons)
    low = np.clip(np.floor(points.min(axis=0)), 0, shape).astype(int)
    high = np.clip(np.ceil(points.max(axis=0)) + 1, low, shape).astype(int)
    inside = np.zeros(shape, bool)
    inside[low[0] : high[0], low[1] : high[1]] = _surrounded([p - low for p in polygons], tuple(high - low))
    return inside


def _surrounded(polygons: Sequence[np.ndarray], shape: tuple[int, int]) -> np.ndarray:
    """Return `surrounded` for a window that holds the polygons: a pixel is inside after an odd number of crossings."""
    start = np.round(np.concatenate(polygons), _DECIMALS)
    end = np.round(np.concatenate([np.roll(p, -1, axis=0) for p in polygons]), _DECIMALS)
    low, high = np.minimum(start[:, 0], end[:, 0]), np.maximum(start[:, 0], end[:, 0])
    first = np.clip(np.ceil(low), 0, shape[0]).astype(int)
    count = np.maximum(np.clip(np.ceil(high), 0, shape[0]).astype(int) - first, 0)
    edge = np.repeat(np.arange(len(start)), count)
    row = first[edge] + np.arange(len(edge)) - np.repeat(np.cumsum(count) - count, count)
    slope = (end[edge, 1] - start[edge, 1]) / (end[edge, 0] - start[edge, 0])
    crossing = np.round(start[edge, 1] + (row - start[edge, 0]) * slope, _DECIMALS)
    crossed = np.zeros((shape[0], shape[1] + 1), np.int32)
    np.add.at(crossed, (row, np.clip(np.ceil(crossing), 0, shape[1]).astype(int)), 1)
    odd: np.ndarray = np.cumsum(crossed, axis=1)[:, :-1] % 2 == 1
    return odd


def _fill_oblique(
    mask: np.ndarray, polygons: Sequence[np.ndarray], normal: np.ndarray, slab: tuple[float, float], grid: Grid
) -> None:
    """Fill polygons of one plane into the voxels of a mask whose centres lie within `slab`, mm along the normal."""
    from skimage.measure import points_in_poly

    half = (slab[1] - slab[0]) / 2
    reach = np.concatenate([p + side * half * normal for p in polygons for side in (-1, 1)])
    reach = apply_affine(np.linalg.inv(grid.affine), reach)
    low = np.clip(np.floor(reach.min(axis=0)), 0, grid.shape).astype(int)
    high = np.clip(np.ceil(reach.max(axis=0)) + 1, low, grid.shape).astype(int)
    voxels = np.indices(tuple(high - low)).reshape(3, -1).T + low
    centres = apply_affine(grid.affine, voxels)
    heights = centres @ normal
    within = (heights >= slab[0]) & (heights < slab[1])
    flat = directions_across(normal)
    inside = np.zeros(int(within.sum()), bool)
    for polygon in polygons:
        inside ^= points_in_poly(centres[within] @ flat, polygon @ flat)
    mask[tuple(voxels[within][inside].T)] = True
