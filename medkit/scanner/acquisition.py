"""A model of how a scanner samples a fine grid, and its inverse; super-resolution is trained and corrected with it.

A voxel of a scan is the mean of its surroundings weighted by a Gaussian whose full width at half maximum is the voxel
size along each axis: the usual model of a slice's profile (Greenspan 2009; also Zhao 2021, SMORE). The model is linear
and separable. So each axis is a matrix, a scan has three of them, and the least-squares inverse has a closed form.
Images are torch tensors (I, J, K) on any device; a plane has one voxel along an axis.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from medkit.scanner.separable import apply_along_axes, gaussian_weights

if TYPE_CHECKING:
    import torch

    from medkit.space import Grid

FWHM = 2 * math.sqrt(2 * math.log(2))
"""Full width at half maximum of a Gaussian over its standard deviation."""
SLACK = 1e-3
"""Voxels by which a field of view may miss a whole number of voxels, since files round spacings."""
SAME = 1 + 1e-6
"""Largest ratio of two spacings that are equal except for rounding; such an axis stays unchanged."""
_WEAKEST = 1e-4
"""Smallest weight of the uncorrected image: details that the scan hardly shows are not made from rounding errors."""


@dataclass(frozen=True)
class Sampling:
    """How one axis of a fine grid is scanned. Lengths are in fine voxels; fine voxel n extends from n to n + 1."""

    size: int
    """Number of fine voxels."""
    count: int
    """Number of voxels of the scan."""
    step: float = 1.0
    """Distance from one voxel of the scan to the next."""
    start: float = 0.0
    """Position at which the first voxel of the scan starts."""
    width: float = 1.0
    """Full width at half maximum of the profile, as a share of the step."""

    @property
    def unchanged(self) -> bool:
        """Whether the voxels of the scan are the fine voxels."""
        return self.size == self.count and self.step < SAME and self.width <= 1

    @functools.cached_property
    def scan(self) -> np.ndarray:
        """(count, size) weights of the fine voxels in each voxel of the scan; rows sum to 1."""
        if self.unchanged:
            return np.eye(self.size)
        centres = self.start + (np.arange(self.count) + 0.5) * self.step - 0.5
        return gaussian_weights(centres, self.size, self.step * self.width / FWHM)

    @functools.cached_property
    def interpolation(self) -> np.ndarray:
        """(size, count) weights of the scan's voxels in their cubic B-spline at the fine voxels (see `bspline`)."""
        positions = (np.arange(self.size) + 0.5 - self.start) / self.step - 0.5
        return np.eye(self.size) if self.unchanged else bspline(self.count, positions)

    @functools.cached_property
    def gains(self) -> tuple[np.ndarray, np.ndarray]:
        """(count, count) patterns that the scan shows, as columns of length 1, and (count,) the square of their gains.

        Patterns and gains are the eigenvectors and eigenvalues of the scan times its transpose.
        """
        if self.unchanged:
            return np.eye(self.count), np.ones(self.count)
        values, vectors = np.linalg.eigh(self.scan @ self.scan.T)
        return vectors, np.maximum(values, 0)


def bspline(count: int, positions: np.ndarray) -> np.ndarray:
    """Return the weights (N, count) of `count` samples in the values of their cubic B-spline at `positions` (N,).

    Positions are in samples. Beyond both ends the samples are mirrored, with the mirror half a sample outside, as in
    `scipy.ndimage.map_coordinates(order=3, mode="reflect")`.
    """
    if count == 1:
        return np.ones((len(positions), 1))
    out: np.ndarray = np.linalg.solve(_basis(count, np.arange(count)).T, _basis(count, positions).T).T
    return out


def _basis(count: int, positions: np.ndarray) -> np.ndarray:
    """Return cubic B-splines (N, count) around each sample at `positions` (N,); those beyond the ends are mirrored."""
    out = np.zeros((len(positions), count))
    below = np.floor(positions).astype(int)
    for offset in range(-1, 3):
        distance = np.abs(positions - below - offset)
        inner, outer = 2 / 3 - distance**2 + distance**3 / 2, np.maximum(2 - distance, 0) ** 3 / 6
        weight = np.where(distance < 1, inner, outer)
        index = np.mod(below + offset, 2 * count)
        np.add.at(out, (np.arange(len(positions)), np.where(index < count, index, 2 * count - 1 - index)), weight)
    return out


@dataclass(frozen=True)
class Acquisition:
    """A scan of a fine grid."""

    axes: tuple[Sampling, Sampling, Sampling]
    """How each axis is sampled."""

    @property
    def steps(self) -> tuple[float, float, float]:
        """Size of the scan's voxels in fine voxels, along each axis."""
        i, j, k = (axis.step for axis in self.axes)
        return i, j, k

    def scanned(self, fine: torch.Tensor) -> torch.Tensor:
        """Return the scan of a fine image."""
        return self._along(fine, lambda axis: axis.scan)

    def interpolated(self, scan: torch.Tensor) -> torch.Tensor:
        """Return a scan on the fine grid, interpolated by cubic B-splines."""
        return self._along(scan, lambda axis: axis.interpolation)

    def _along(self, image: torch.Tensor, matrix: Callable[[Sampling], np.ndarray]) -> torch.Tensor:
        """Return an image multiplied by a matrix along each axis, except along unchanged ones."""
        matrices = [None if axis.unchanged else matrix(axis) for axis in self.axes]
        return apply_along_axes(image, matrices, smallest_first=True)

    @functools.cached_property
    def leftover(self) -> float:
        """Standard deviation of a scan minus the scan of its interpolation, if the scan is noise of 1."""
        loops = [axis.scan @ axis.interpolation for axis in self.axes]
        count = math.prod(len(loop) for loop in loops)
        kept, shared = (math.prod(float(f(loop)) for loop in loops) for f in (_power, np.trace))
        return math.sqrt(max(kept - 2 * shared + count, 0.0) / count)

    def corrected(self, fine: torch.Tensor, missing: torch.Tensor, sigma: float) -> torch.Tensor:
        """Return a fine image corrected by `missing`: a scan minus the scan of the image, with noise of `sigma`.

        This is iterated back-projection (Irani & Peleg 1991), all steps at once, stopped at the level of the noise. The
        result is the most likely image if its error is white noise. The variance of the error is estimated first, from
        how much stronger `missing` is in patterns that the scan shows well. If it is not positive, the image is
        returned as it is.
        """
        patterns = self._along(missing, lambda axis: axis.gains[0].T)
        gain = _product([axis.gains[1] for axis in self.axes], patterns)
        error = float(((patterns.square() - sigma**2) * gain).sum() / gain.square().sum())
        if error <= 0:
            return fine
        weight = max(sigma**2 / error, _WEAKEST)
        answer = self._along(patterns / (gain + weight), lambda axis: axis.gains[0])
        return fine + self._along(answer, lambda axis: axis.scan.T)


def _power(matrix: np.ndarray) -> float:
    return float(np.square(matrix).sum())


def _product(factors: Sequence[np.ndarray], like: torch.Tensor) -> torch.Tensor:
    """Return the outer product (I, J, K) of three vectors, in the type and on the device of `like`."""
    i, j, k = (like.new_tensor(factor) for factor in factors)
    return i[:, None, None] * j[:, None] * k


# ---- grids


def acquisition_of(scan: Grid, fine: Grid) -> Acquisition:
    """Return how `scan` samples `fine`, a grid that `refined` made from it."""
    i, j, k = (_sampling(*numbers) for numbers in zip(scan.shape, fine.shape, scan.spacing / fine.spacing, strict=True))
    return Acquisition((i, j, k))


def _sampling(count: int, size: int, step: float) -> Sampling:
    return Sampling(size, count, float(step), (size - count * float(step)) / 2 if step > SAME else 0.0)


def refined(grid: Grid, spacing: Sequence[float]) -> Grid:
    """Return a grid with voxels of `spacing`, (3,) mm, over the same field of view: same middle, same directions.

    If no whole number of voxels fits, the new field of view is larger, by less than half a voxel on either side. Axes
    whose spacing is equal or finer, and axes of one voxel, stay as they are.
    """
    from medkit.space import Grid

    steps = np.array([
        own / wanted if own > wanted * SAME and size > 1 else 1.0
        for own, wanted, size in zip(grid.spacing, spacing, grid.shape, strict=True)
    ])  # fmt: skip
    shape = [math.ceil(size * step - SLACK) if step > 1 else size for size, step in zip(grid.shape, steps, strict=True)]
    affine = grid.affine.copy()
    affine[:3, :3] /= steps
    middle = (np.array(grid.shape) - 1) / 2
    affine[:3, 3] += grid.affine[:3, :3] @ middle - affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    return Grid((shape[0], shape[1], shape[2]), affine, grid.dims)
