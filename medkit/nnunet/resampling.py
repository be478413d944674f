"""Resampling as nnU-Net does it, in parts that fit into memory: splines along each axis, slices one by one where thick.

nnU-Net calls scikit-image's `resize` on whole volumes in double precision. Its splines act along each axis by itself,
so a matrix along each axis returns the same.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from medkit.scanner.separable import apply_along_axes

if TYPE_CHECKING:
    import torch

ANISOTROPY = 3
"""Ratio of spacings above which slices are thick: they are resampled one by one, without blending them."""
_NEGLIGIBLE = 1e-12
"""Weights of a spline below this count as 0: so that a position depends on voxels near it only."""
_PART = 1 << 23
"""Voxels of a result that are computed at once."""


def new_shape(shape: Sequence[int], spacing: Sequence[float], wanted: Sequence[float]) -> tuple[int, ...]:
    """Return the size in voxels of an image of `shape` and `spacing` (mm) in the spacing `wanted` (mm)."""
    return tuple(round(s / w * n) for n, s, w in zip(shape, spacing, wanted, strict=True))


def thick_axis(spacing: Sequence[float], wanted: Sequence[float], separate: bool | None) -> int | None:
    """Return the axis across thick slices of an image, before or after a change of spacing (mm); None without any.

    `separate` decides whether slices are resampled one by one; None: if their distance is `ANISOTROPY` times as large.
    """
    if separate is False:
        return None
    found = spacing if separate else next((s for s in (spacing, wanted) if max(s) / min(s) > ANISOTROPY), None)
    axes = [axis for axis, size in enumerate(found) if size == max(found)] if found else []
    return axes[0] if len(axes) == 1 else None


@dataclass(frozen=True)
class Resampling:
    """A change of an image's size, row by row."""

    size: tuple[int, ...]
    """Size of the image in voxels, (I, J, K)."""
    shape: tuple[int, ...]
    """Size of the result."""
    axis: int | None
    """The axis across thick slices, of which the nearest is taken; None without any."""
    order: int
    """Order of the spline along the other axes."""

    def places(self) -> Iterator[slice]:
        """Yield rows of the result along its first axis, as many as are computed at once."""
        rows = max(1, _PART // max(self.shape[1] * self.shape[2], self.size[1] * self.size[2]))
        yield from (slice(n, min(n + rows, self.shape[0])) for n in range(0, self.shape[0], rows))

    def limits(self, image: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return the smallest and the largest value, which splines must not exceed, of an image or of its slices."""
        if self.order < 2:
            return ()
        dims = [n for n in range(3) if n != self.axis]
        return image.amin(dims, keepdim=True).double(), image.amax(dims, keepdim=True).double()

    def rows(self, image: torch.Tensor, place: slice, limits: Sequence[torch.Tensor]) -> torch.Tensor:
        """Return rows of the result, as float64, for an image (I, J, K) with these `limits`."""
        first, *others = self._matrices
        part, own = (image[place], None) if first is None else _band(image, first[place])
        if self.axis is not None:
            taken = self._nearest[place] if self.axis == 0 else self._nearest
            part = (image if self.axis == 0 else part).index_select(self.axis, taken)
            limits = [limit.index_select(self.axis, taken) for limit in limits]
        part = _product(part.double(), (own, *others), self.order)
        return part.clamp(*limits) if limits else part

    @functools.cached_property
    def _matrices(self) -> list[np.ndarray | None]:
        sides = zip(self.size, self.shape, strict=True)
        return [None if n == self.axis else _matrix(*side, self.order) for n, side in enumerate(sides)]

    @functools.cached_property
    def _nearest(self) -> torch.Tensor:
        """The number of the slice nearest to each position across the slices."""
        import torch
        from scipy.ndimage import map_coordinates

        axis = self.axis or 0
        size, wanted = self.size[axis], self.shape[axis]
        positions = float(size) / wanted * (np.arange(wanted) + 0.5) - 0.5
        return torch.from_numpy(map_coordinates(np.arange(size), [positions], order=0, mode="nearest"))


def resampled(image: torch.Tensor, change: Resampling) -> torch.Tensor:
    """Return an image (C, I, J, K) resampled, as float32; one that keeps its size is returned as it is."""
    import torch

    if change.size == change.shape:
        return image
    result = torch.empty((len(image), *change.shape), dtype=torch.float32)
    for channel, out in zip(image, result, strict=True):
        limits = change.limits(channel)
        for place in change.places():
            out[place] = change.rows(channel, place, limits)
    return result


def _band(image: torch.Tensor, matrix: np.ndarray) -> tuple[torch.Tensor, np.ndarray]:
    """Return the rows of an image that a matrix for its first axis needs, and the matrix for these."""
    used = np.flatnonzero(matrix.any(0))
    needed = slice(int(used[0]), int(used[-1]) + 1)
    return image[needed], matrix[:, needed]


def _product(part: torch.Tensor, matrices: Sequence[np.ndarray | None], order: int) -> torch.Tensor:
    """Return an image (I, J, K) multiplied by a matrix along each axis; straight lines have a faster way."""
    import torch

    own, *others = matrices
    if order != 1 or all(matrix is None for matrix in others):
        return apply_along_axes(part, matrices, smallest_first=True)
    part = apply_along_axes(part, (own, None, None))
    size = [n if matrix is None else len(matrix) for n, matrix in zip(part.shape[1:], others, strict=True)]
    return torch.nn.functional.interpolate(part[:, None], size, mode="bilinear", align_corners=False)[:, 0]


@functools.lru_cache(maxsize=8)
def _matrix(size: int, wanted: int, order: int) -> np.ndarray | None:
    """Return the weights (wanted, size) by which a spline resamples an axis between its outer borders; None: none."""
    from scipy.ndimage import zoom

    if size == wanted:
        return None
    matrix = zoom(np.eye(size), (wanted / size, 1), order=order, mode="nearest", grid_mode=True)
    matrix[np.abs(matrix) < _NEGLIGIBLE] = 0
    return np.asarray(matrix)
