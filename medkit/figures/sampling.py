"""Values of images and labels on the planes of a picture."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from medkit.figures.planes import Plane
from medkit.space import apply_affine

if TYPE_CHECKING:
    from medkit.images.image import Image
    from medkit.space import Grid


def sample(image: Image, plane: Plane, outside: float = 0.0) -> np.ndarray:
    """Return the first channel on a plane, (rows, columns) float32, interpolated linearly; `outside` beyond the image.

    If pixels are larger than voxels, each is the mean of several samples, since single samples show noise as speckle.
    """
    pixel = np.linalg.norm(plane.down)
    factor = 2 if pixel > 1.4 * min(image.grid.spacing) else 1
    fine = plane.finer(factor)
    rows, columns = plane.shape
    return _linear(image, fine, outside).reshape(rows, factor, columns, factor).mean(axis=(1, 3), dtype=np.float32)


def _linear(image: Image, plane: Plane, outside: float) -> np.ndarray:
    """Return the first channel at the centres of a plane's pixels, interpolated linearly."""
    values = image.data[0]
    corners, inside = [], np.ones((1, 1), bool)
    for index, size in zip(_voxel_coordinates(image.grid, plane), values.shape, strict=True):
        inside = inside & (index >= -0.5) & (index < size - 0.5)
        index = np.clip(index, 0, size - 1)
        base = np.floor(index).astype(np.intp)
        upper = (index - base).astype(np.float32)
        pair = [(base, 1 - upper), (np.minimum(base + 1, size - 1), upper)]
        corners.append([(corner, weight) for corner, weight in pair if weight.any()])
    total = np.zeros(plane.shape, np.float32)
    for i, wi in corners[0]:
        for j, wj in corners[1]:
            for k, wk in corners[2]:
                total += wi * wj * wk * values[i, j, k].astype(np.float32)
    return np.where(inside, total, np.float32(outside))


def sample_mapped(
    image: Image, plane: Plane, moves: Callable[[np.ndarray], np.ndarray], outside: float = 0.0
) -> np.ndarray:
    """Return the first channel at the points to which a map takes those of a plane, (rows, columns) float32.

    moves: takes points (N, 3) to points of the image (N, 3), RAS+ mm.
    """
    from scipy.ndimage import map_coordinates

    rows, columns = plane.shape
    places = plane.origin + np.arange(rows)[:, None, None] * plane.down + np.arange(columns)[:, None] * plane.across
    index = apply_affine(image.grid.to_index, moves(places.reshape(-1, 3)))
    values = map_coordinates(image.data[0], index.T, output=np.float32, order=1, mode="nearest")
    inside = ((index >= -0.5) & (index < np.array(image.grid.shape) - 0.5)).all(axis=1)
    return np.where(inside, values, np.float32(outside)).reshape(plane.shape)


def sample_labels(image: Image, plane: Plane) -> np.ndarray:
    """Return the label of the nearest voxel on a plane, (rows, columns) int64; 0 outside the image."""
    values = image.data[0]
    indices, inside = [], np.ones((1, 1), bool)
    for index, size in zip(_voxel_coordinates(image.grid, plane), values.shape, strict=True):
        inside = inside & (index >= -0.5) & (index < size - 0.5)
        indices.append(np.clip(np.floor(index + 0.5), 0, size - 1).astype(np.intp))
    labels = np.where(inside, np.rint(values[tuple(indices)]), 0)
    return np.broadcast_to(labels, plane.shape).astype(np.int64)


def _voxel_coordinates(grid: Grid, plane: Plane) -> list[np.ndarray]:
    """Return continuous voxel indices of a plane's pixels: an array for each axis that broadcasts to (rows, columns).

    An index that does not change along the rows or columns has length one there. Slices along the grid are then read
    row by row, which is several times faster.
    """
    inverse = np.linalg.inv(grid.affine)
    origin = inverse[:3, :3] @ plane.origin + inverse[:3, 3]
    down, across = inverse[:3, :3] @ plane.down, inverse[:3, :3] @ plane.across
    rows, columns = np.arange(plane.shape[0])[:, None], np.arange(plane.shape[1])[None, :]
    coordinates = []
    for axis in range(3):
        along_rows = rows * down[axis] if abs(down[axis]) > 1e-6 else np.zeros((1, 1))
        along_columns = columns * across[axis] if abs(across[axis]) > 1e-6 else np.zeros((1, 1))
        coordinates.append(np.round(origin[axis] + along_rows + along_columns, 4))
    return coordinates
