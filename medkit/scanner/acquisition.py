"""A model of how a scanner samples a fine grid, and its inverse; super-resolution is trained and corrected with it.

A voxel of a scan is the mean of its surroundings weighted by a Gaussian whose full width at half maximum is the voxel
size along each axis: the usual model of a slice's profile (Greenspan 2009; also Zhao 2021, SMORE). The model is linear
and separable. So each axis is a matrix, a scan has three of them, and the least-squares inverse has a closed form.
Images are torch tensors (I, J, K) on any device; a plane has one voxel along an axis.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from medkit.scanner.separable import BandMatrix, Operator, apply_along_axes, gaussian_weights

if TYPE_CHECKING:
    import torch

    from medkit.space import Grid

FWHM = 2 * math.sqrt(2 * math.log(2))
"""Full width at half maximum of a Gaussian over its standard deviation."""
SLACK = 1e-3
"""Voxels by which a field of view may miss a whole number of voxels, since files round spacings."""
SAME = 1 + 1e-6
"""Largest ratio of two spacings that are equal except for rounding; such an axis stays unchanged."""
LONG = 1024
"""Voxels of a scan along an axis from which on the axis is worked on in parts."""
PART = 256
"""Rows of a matrix for a long axis, and voxels of a scan, that are one part."""
FADED = 32
"""Voxels of a scan over which the weights of a cubic B-spline, and of the correction, fade to nothing (0.27^32)."""
REACH = 6.5
"""Standard deviations within which a voxel's profile counts on a long axis: beyond are 1e-9 of it."""
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

    @property
    def long(self) -> bool:
        """Whether the axis is worked on in parts, since whole matrices grow with the square of its length."""
        return self.count > LONG and not self.unchanged

    @functools.cached_property
    def scan(self) -> Operator:
        """(count, size) weights of the fine voxels in each voxel of the scan; rows sum to 1."""
        if not self.long:
            return self.profiles(slice(0, self.count), slice(0, self.size))
        bands = []
        for rows in _parts(self.count):
            columns = self._seen(rows)
            bands.append((columns.start, self.profiles(rows, columns)))
        return BandMatrix(self.size, bands)

    @functools.cached_property
    def back(self) -> Operator:
        """(size, count), the transpose of `scan`."""
        if not isinstance(self.scan, BandMatrix):
            return self.scan.T
        bands = []
        for fine in _parts(self.size):
            rows = self._seeing(fine)
            if rows.stop <= rows.start:
                bands.append((0, np.zeros((fine.stop - fine.start, 1))))
                continue
            seen = self._seen(rows)
            columns = slice(min(seen.start, fine.start), max(seen.stop, fine.stop))
            weights = self.profiles(rows, columns)[:, fine.start - columns.start : fine.stop - columns.start]
            bands.append((rows.start, weights.T))
        return BandMatrix(self.count, bands)

    @functools.cached_property
    def interpolation(self) -> Operator:
        """(size, count) weights of the scan's voxels in their cubic B-spline at the fine voxels (see `bspline`)."""
        positions = (np.arange(self.size) + 0.5 - self.start) / self.step - 0.5
        if not self.long:
            return np.eye(self.size) if self.unchanged else bspline(self.count, positions)
        mirrored = np.mod(positions + 0.5, 2 * self.count)
        positions = np.minimum(mirrored, 2 * self.count - mirrored) - 0.5
        bands = []
        for fine in _parts(self.size):
            places = positions[fine]
            first = max(0, math.floor(places.min()) - FADED)
            last = min(self.count, math.ceil(places.max()) + FADED)
            bands.append((first, bspline(last - first, places - first)))
        return BandMatrix(self.count, bands)

    def gains(self, rows: slice) -> tuple[np.ndarray, np.ndarray]:
        """(n, n) patterns that n voxels of the scan show, as columns of length 1, and (n,) the square of their gains.

        Patterns and gains are the eigenvectors and eigenvalues of the scan times its transpose.
        """
        if self.unchanged:
            return np.eye(0), np.ones(self.count)
        seen = self._seen(rows)
        # away from the ends, parts that see the fine voxels at the same places have the same patterns
        place = round(self.start + rows.start * self.step - seen.start, 9)
        key = (rows.stop - rows.start, place, seen.start == 0, seen.stop == self.size)
        if key not in self._known:
            scan = self.profiles(rows, seen)
            values, vectors = np.linalg.eigh(scan @ scan.T)
            self._known[key] = vectors, np.maximum(values, 0)
        return self._known[key]

    @functools.cached_property
    def _known(self) -> dict[tuple[Any, ...], tuple[np.ndarray, np.ndarray]]:
        """What `gains` has found."""
        return {}

    def kept(self) -> tuple[float, float]:
        """Return the sum of squares and the trace of the scan of the interpolation, (count, count)."""
        if self.unchanged:
            return float(self.count), float(self.count)
        if self.long:  # both grow by the same with every voxel in the middle
            one, two = (self._shorter(count).kept() for count in (LONG // 2, LONG))
            more = (self.count - LONG) / (LONG - LONG // 2)
            return two[0] + more * (two[0] - one[0]), two[1] + more * (two[1] - one[1])
        assert isinstance(self.scan, np.ndarray)
        assert isinstance(self.interpolation, np.ndarray)
        loop = self.scan @ self.interpolation
        return float(np.square(loop).sum()), float(np.trace(loop))

    def profiles(self, rows: slice, columns: slice) -> np.ndarray:
        """Return the weights of some fine voxels, all that count, in some voxels of the scan; rows sum to 1."""
        if self.unchanged:
            return np.eye(self.size)[rows, columns]
        centres = self.start + (np.arange(rows.start, rows.stop) + 0.5) * self.step - 0.5
        return gaussian_weights(centres - columns.start, columns.stop - columns.start, self._sigma)

    @property
    def _sigma(self) -> float:
        return self.step * self.width / FWHM

    def _seen(self, rows: slice) -> slice:
        """Return the fine voxels that some voxels of the scan show."""
        if not self.long:
            return slice(0, self.size)
        reach = REACH * self._sigma + 1
        first = self.start + (rows.start + 0.5) * self.step - 0.5 - reach
        last = self.start + (rows.stop - 0.5) * self.step - 0.5 + reach
        return slice(min(max(0, math.floor(first)), self.size - 1), max(1, min(self.size, math.ceil(last) + 1)))

    def _seeing(self, fine: slice) -> slice:
        """Return the voxels of the scan that show some fine voxels."""
        reach = REACH * self._sigma + 1
        first, last = (
            (place + 0.5 - self.start) / self.step - 0.5 for place in (fine.start - reach, fine.stop + reach)
        )
        # those beyond the ends see the outermost fine voxel
        start = 0 if fine.start == 0 else max(0, math.floor(first))
        stop = self.count if fine.stop == self.size else min(self.count, math.ceil(last) + 1)
        return slice(start, stop)

    def _shorter(self, count: int) -> Sampling:
        size = self.size - round((self.count - count) * self.step)
        return Sampling(size, count, self.step, self.start, self.width)


def _parts(count: int) -> Iterator[slice]:
    """Yield an axis in parts."""
    for first in range(0, count, PART):
        yield slice(first, min(count, first + PART))


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

    def _along(self, image: torch.Tensor, matrix: Callable[[Sampling], Operator]) -> torch.Tensor:
        """Return an image multiplied by a matrix along each axis, except along unchanged ones."""
        matrices = [None if axis.unchanged else matrix(axis) for axis in self.axes]
        return apply_along_axes(image, matrices, smallest_first=True)

    @functools.cached_property
    def leftover(self) -> float:
        """Standard deviation of a scan minus the scan of its interpolation, if the scan is noise of 1."""
        count = math.prod(axis.count for axis in self.axes)
        kept, shared = (math.prod(numbers) for numbers in zip(*(axis.kept() for axis in self.axes), strict=True))
        return math.sqrt(max(kept - 2 * shared + count, 0.0) / count)

    def corrected(self, fine: torch.Tensor, missing: torch.Tensor, sigma: float) -> torch.Tensor:
        """Return a fine image corrected by `missing`: a scan minus the scan of the image, with noise of `sigma`.

        This is iterated back-projection (Irani & Peleg 1991), all steps at once, stopped at the level of the noise. The
        result is the most likely image if its error is white noise. The variance of the error is estimated first, from
        how much stronger `missing` is in patterns that the scan shows well. If it is not positive, the image is
        returned as it is.
        """
        pieces = list(self._pieces(missing))
        strength = sum(float(((piece.patterns.square() - sigma**2) * piece.gain).sum()) for piece in pieces)
        error = strength / sum(float(piece.gain.square().sum()) for piece in pieces)
        if error <= 0:
            return fine
        weight = max(sigma**2 / error, _WEAKEST)
        answer = missing.new_zeros(missing.shape)
        for piece in pieces:
            answer[piece.place] += piece.share * piece.image(weight)
        return fine + self._along(answer, lambda axis: axis.back)

    def _pieces(self, missing: torch.Tensor) -> Iterator[_Piece]:
        """Yield an image in pieces: one, if no axis is long."""
        for overlapped in itertools.product(*(list(_overlapped(axis)) for axis in self.axes)):
            place = tuple(rows for rows, _ in overlapped)
            found = [axis.gains(rows) for axis, rows in zip(self.axes, place, strict=True)]
            vectors = [None if axis.unchanged else own[0] for axis, own in zip(self.axes, found, strict=True)]
            turned = [None if own is None else own.T for own in vectors]
            patterns = apply_along_axes(missing[place], turned, smallest_first=True)
            gain = _product([own[1] for own in found], patterns)
            yield _Piece(place, _product([share for _, share in overlapped], patterns), vectors, patterns, gain)


@dataclass(frozen=True, eq=False)
class _Piece:
    """A piece of a scan, as the patterns that it shows."""

    place: tuple[slice, ...]
    share: torch.Tensor
    """(I, J, K) how much its voxels count: where pieces overlap, all together 1."""
    vectors: Sequence[np.ndarray | None]
    """The patterns of each axis."""
    patterns: torch.Tensor
    gain: torch.Tensor
    """(I, J, K) squares of the patterns' gains."""

    def image(self, weight: float) -> torch.Tensor:
        """Return the image of all patterns that is most likely, where the error of one has this `weight`."""
        return apply_along_axes(self.patterns / (self.gain + weight), self.vectors, smallest_first=True)


def _overlapped(axis: Sampling) -> Iterator[tuple[slice, np.ndarray]]:
    """Yield the voxels of a scan's axis in parts that overlap, and how much each voxel counts: all together 1.

    What lies near the inner ends of a part depends on what is beyond them: it does not count.
    """
    if not axis.long:
        yield slice(0, axis.count), np.ones(axis.count)
        return
    starts = range(0, axis.count - FADED, PART)
    for first in starts:
        end = first + PART + 2 * FADED
        last = min(axis.count, end)
        place = np.arange(first, last) + 0.5
        up = np.ones(last - first) if first == 0 else np.clip((place - first - FADED / 2) / FADED, 0, 1)
        down = np.ones(last - first) if first == starts[-1] else np.clip((end - FADED / 2 - place) / FADED, 0, 1)
        yield slice(first, last), up * down


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
