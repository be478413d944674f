"""Operators on images that act along each axis by itself: products with matrices, and matrices of Gaussian weights."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, eq=False)
class BandMatrix:
    """A matrix (positions, voxels) for a long axis, whose rows are 0 except near their own position."""

    voxels: int
    """Number of columns."""
    bands: Sequence[tuple[int, np.ndarray]]
    """For some rows after the others: their first column that is not 0, and their weights (rows, columns) from it."""

    @property
    def shape(self) -> tuple[int, int]:
        """(positions, voxels)."""
        return sum(len(weights) for _, weights in self.bands), self.voxels

    def along(self, image: torch.Tensor, axis: int) -> torch.Tensor:
        """Return an image (..., I, J, K) multiplied along one of its last three axes, 0 to 2."""
        import torch

        parts = []
        for first, weights in self.bands:
            matrices: list[np.ndarray | None] = [None, None, None]
            matrices[axis] = weights
            parts.append(apply_along_axes(image.narrow(axis - 3, first, weights.shape[1]), matrices))
        return torch.cat(parts, axis - 3)


Operator = np.ndarray | BandMatrix
"""A matrix (positions, voxels) for one axis."""


def apply_along_axes(
    image: torch.Tensor, matrices: Sequence[Operator | torch.Tensor | None], *, smallest_first: bool = False
) -> torch.Tensor:
    """Return an image (..., I, J, K) multiplied by a matrix along each of its last three axes.

    The matrices are (positions, voxels); arrays may have any number type, tensors have that of the image. None leaves
    an axis as it is. The order is K, J, I; with `smallest_first` the axes that shrink most come first, which is faster
    if the sizes change much.
    """
    order = [2, 1, 0]
    if smallest_first:
        ratios = [1.0 if matrix is None else matrix.shape[0] / matrix.shape[1] for matrix in matrices]
        order = sorted(range(3), key=ratios.__getitem__)
    for axis in order:
        matrix = matrices[axis]
        if matrix is None:
            continue
        if isinstance(matrix, BandMatrix):
            image = matrix.along(image, axis)
            continue
        matrix = image.new_tensor(matrix) if isinstance(matrix, np.ndarray) else matrix
        if axis == 2:
            image = image @ matrix.T
        elif axis == 1:
            image = matrix @ image
        else:
            image = (matrix @ image.flatten(-2)).reshape(*image.shape[:-3], len(matrix), *image.shape[-2:])
    return image


def gaussian_weights(positions: np.ndarray, size: int, sigma: float) -> np.ndarray:
    """Return (positions, size) weights of Gaussians of `sigma` voxels about each position; rows sum to 1.

    Positions are in voxels; those outside the axis of `size` voxels are moved to its outermost voxel.
    """
    centres = np.clip(positions, 0, size - 1)
    return _normalised(np.exp(-0.5 * ((centres[:, None] - np.arange(size)) / sigma) ** 2))


def border_gaussian_weights(positions: np.ndarray, size: int, sigma: float) -> np.ndarray:
    """Return (positions, size) weights as `gaussian_weights`, but of an axis whose outermost voxels are repeated."""
    reach = math.ceil(3 * sigma) + 1
    centres = np.clip(positions, -0.5, size - 0.5)[:, None]  # further out everything is the border
    taps = np.floor(centres) + np.arange(-reach, reach + 2)
    weights = np.exp(-0.5 * ((centres - taps) / sigma) ** 2)
    rows = np.broadcast_to(np.arange(len(positions))[:, None], taps.shape)
    matrix = np.zeros((len(positions), size))
    np.add.at(matrix, (rows, np.clip(taps, 0, size - 1).astype(int)), weights)
    return _normalised(matrix)


def _normalised(matrix: np.ndarray) -> np.ndarray:
    normalised: np.ndarray = matrix / matrix.sum(axis=1, keepdims=True)
    return normalised
