"""How a scanner samples a fine grid, and the way back: what super-resolution is trained, corrected and measured with.

A voxel of a scan shows its surroundings weighted by a Gaussian whose full width at half maximum is the voxel's size
along each axis: the usual model of a slice's profile (Greenspan 2009; also Zhao 2021, SMORE). It is linear and
separable, so an axis is a matrix, a scan three of them, and the least-squares answer to it has a closed form. Arrays
are torch tensors (I, J, K) on any device; a plane has one voxel along an axis.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch

    from medkit.space import Grid

FWHM = 2 * math.sqrt(2 * math.log(2))
"""Full width at half maximum of a Gaussian over its standard deviation."""
SLACK = 1e-3
"""Voxels by which spacings that are rounded in a file may miss a whole number of them."""
SAME = 1 + 1e-6
"""Voxels of equal size but for rounding: that axis is left alone."""
_WEAKEST = 1e-4
"""Least weight of the image as it was, so that what the scan hardly sees is not made up from rounding errors."""


@dataclass(frozen=True)
class Sampling:
    """How one axis of a fine grid is scanned. Lengths are in fine voxels; voxel n reaches from n to n + 1."""

    size: int
    """Fine voxels."""
    count: int
    """Voxels of the scan."""
    step: float = 1.0
    """From one voxel of the scan to the next; 1: it has this axis as it is."""
    start: float = 0.0
    """Where its first voxel begins."""
    width: float = 1.0
    """Full width at half maximum of the profile, as a share of the step."""

    @property
    def alike(self) -> bool:
        """Whether the scan has the fine voxels themselves."""
        return self.size == self.count and self.step < SAME and self.width <= 1

    @functools.cached_property
    def scan(self) -> np.ndarray:
        """(count, size) what a voxel of the scan takes from each fine one; rows sum to 1."""
        if self.alike:
            return np.eye(self.size)
        centres = np.clip(self.start + (np.arange(self.count) + 0.5) * self.step - 0.5, 0, self.size - 1)
        sigma = self.step * self.width / FWHM
        weights = np.exp(-0.5 * ((centres[:, None] - np.arange(self.size)) / sigma) ** 2)
        return weights / weights.sum(1, keepdims=True)

    @functools.cached_property
    def interpolation(self) -> np.ndarray:
        """(size, count) the cubic B-spline through the scan's voxels at the fine ones (see `bspline`)."""
        places = (np.arange(self.size) + 0.5 - self.start) / self.step - 0.5
        return np.eye(self.size) if self.alike else bspline(self.count, places)

    @functools.cached_property
    def gains(self) -> tuple[np.ndarray, np.ndarray]:
        """(count, count) what the scan sees, as columns of length 1, and (count,) the square of its gain for each."""
        if self.alike:
            return np.eye(self.count), np.ones(self.count)
        values, vectors = np.linalg.eigh(self.scan @ self.scan.T)
        return vectors, np.maximum(values, 0)


def bspline(count: int, places: np.ndarray) -> np.ndarray:
    """(len(places), count) weights with which `count` samples give the values of their cubic B-spline at `places`.

    Places are in samples; beyond both ends the samples go on as in a mirror that stands half a sample outside:
    `scipy.ndimage.map_coordinates(order=3, mode="reflect")` gives the same.
    """
    if count == 1:
        return np.ones((len(places), 1))
    out: np.ndarray = np.linalg.solve(_basis(count, np.arange(count)).T, _basis(count, places).T).T
    return out


def _basis(count: int, places: np.ndarray) -> np.ndarray:
    """(len(places), count) cubic B-splines about each sample, those beyond the ends folded back."""
    out = np.zeros((len(places), count))
    below = np.floor(places).astype(int)
    for offset in range(-1, 3):
        away = np.abs(places - below - offset)
        weight = np.where(away < 1, 2 / 3 - away**2 + away**3 / 2, np.maximum(2 - away, 0) ** 3 / 6)
        index = np.mod(below + offset, 2 * count)
        np.add.at(out, (np.arange(len(places)), np.where(index < count, index, 2 * count - 1 - index)), weight)
    return out


@dataclass(frozen=True)
class Acquisition:
    """A scan of a fine grid: the sampling of each of its axes."""

    axes: tuple[Sampling, Sampling, Sampling]

    @property
    def steps(self) -> tuple[float, float, float]:
        """How many fine voxels one of the scan's measures, along each axis."""
        i, j, k = (axis.step for axis in self.axes)
        return i, j, k

    def scanned(self, fine: torch.Tensor) -> torch.Tensor:
        """The scan of a fine image."""
        return along(fine, [axis.scan for axis in self.axes])

    def interpolated(self, scan: torch.Tensor) -> torch.Tensor:
        """A scan on the fine grid, by cubic B-splines."""
        return along(scan, [axis.interpolation for axis in self.axes])

    @functools.cached_property
    def leftover(self) -> float:
        """Standard deviation of what noise of 1 leaves between a scan and the scan of its own interpolation."""
        loops = [axis.scan @ axis.interpolation for axis in self.axes]
        count = math.prod(len(loop) for loop in loops)
        kept, shared = (math.prod(float(f(loop)) for loop in loops) for f in (_power, np.trace))
        return math.sqrt(max(kept - 2 * shared + count, 0.0) / count)

    def corrected(self, fine: torch.Tensor, missing: torch.Tensor, sigma: float) -> torch.Tensor:
        """A fine image with what it lacks: `missing` is a scan minus the scan of the image, with noise of `sigma`.

        Iterated back-projection (Irani & Peleg 1991) of all steps at once, stopped where the noise begins: the most
        likely image if what it lacks is noise of another strength, which is first estimated from how much more there is
        of `missing` where the scan sees well. None: the image comes back as it is.
        """
        seen = along(missing, [axis.gains[0].T for axis in self.axes])
        gain = _product([axis.gains[1] for axis in self.axes], seen)
        lacking = float(((seen.square() - sigma**2) * gain).sum() / gain.square().sum())
        if lacking <= 0:
            return fine
        weight = max(sigma**2 / lacking, _WEAKEST)
        answer = along(seen / (gain + weight), [axis.gains[0] for axis in self.axes])
        return fine + along(answer, [axis.scan.T for axis in self.axes])


def _power(matrix: np.ndarray) -> float:
    return float(np.square(matrix).sum())


def _product(factors: Sequence[np.ndarray], like: torch.Tensor) -> torch.Tensor:
    """(I, J, K) the outer product of three vectors."""
    i, j, k = (like.new_tensor(factor) for factor in factors)
    return i[:, None, None] * j[:, None] * k


def along(image: torch.Tensor, operators: Sequence[np.ndarray | torch.Tensor]) -> torch.Tensor:
    """The image (I, J, K) multiplied by a matrix along each axis, those first that make it smaller."""
    order = sorted(range(3), key=lambda axis: operators[axis].shape[0] / operators[axis].shape[1])
    for axis in order:
        operator = operators[axis]
        if operator.shape[0] == operator.shape[1] and _is_identity(operator):
            continue
        matrix = image.new_tensor(operator) if isinstance(operator, np.ndarray) else operator
        if axis == 2:
            image = image @ matrix.T
        elif axis == 1:
            image = matrix @ image
        else:
            image = (matrix @ image.reshape(len(image), -1)).reshape(-1, *image.shape[1:])
    return image


def _is_identity(operator: np.ndarray | torch.Tensor) -> bool:
    return isinstance(operator, np.ndarray) and bool(np.array_equal(operator, np.eye(len(operator))))


# ---- grids


def acquisition_of(scan: Grid, fine: Grid) -> Acquisition:
    """How `scan` samples `fine`, a grid that `refined` made of it."""
    i, j, k = (_sampling(*numbers) for numbers in zip(scan.shape, fine.shape, scan.spacing / fine.spacing, strict=True))
    return Acquisition((i, j, k))


def _sampling(count: int, size: int, step: float) -> Sampling:
    return Sampling(size, count, float(step), (size - count * float(step)) / 2 if step > SAME else 0.0)


def refined(grid: Grid, spacing: Sequence[float]) -> Grid:
    """A grid of voxels of `spacing`, (3,) mm, over the same part of the body: the same middle, the same directions.

    The edges of its outermost voxels are those of the grid's where a whole number of voxels fits, else they lie beyond
    them, by less than half a voxel on either side. Axes of that spacing or a finer one, and those of one voxel, stay.
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
