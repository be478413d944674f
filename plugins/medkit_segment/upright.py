"""The working copy of a scan: axes towards right, front and head, and voxels that are not too fine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from medkit.images import Image


RANGE = (-1100, 3071)
"""HU; what lies outside says nothing about tissue: beyond the field of view, and metal."""


@dataclass(frozen=True)
class Upright:
    """A scan in its working copy."""

    values: np.ndarray
    """(I, J, K) float32, Hounsfield units; axes towards right, front and head."""
    spacing: np.ndarray
    """(3,) mm."""
    midline: float = 0.0
    """Index on the first axis at which x is 0 mm, about the middle of the scanner."""

    def size(self, mask: np.ndarray) -> float:
        """Return the volume of a mask in ml."""
        return float(np.count_nonzero(mask)) * self.voxel

    @property
    def voxel(self) -> float:
        """Volume of a voxel in ml."""
        return float(np.prod(self.spacing)) / 1000


def upright(image: Image) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return how the axes are turned (3, 2), as nibabel states it, the turned voxels (I, J, K), and their affine."""
    from nibabel import orientations

    turn = orientations.io_orientation(image.grid.affine)
    values = orientations.apply_orientation(image.data[0], turn)
    return turn, values, image.grid.affine @ orientations.inv_ornt_aff(turn, image.grid.shape)


def midline_of(affine: np.ndarray, shape: tuple[int, ...]) -> float:
    """Return the index on the first axis at which x is 0 mm, in the middle of the other axes."""
    middle = (np.array(shape[1:]) - 1) / 2
    return float(-(affine[0, 1:3] @ middle + affine[0, 3]) / affine[0, 0])


def turned_back(labels: np.ndarray, turn: np.ndarray) -> np.ndarray:
    """Return upright voxels (I, J, K) along the axes of the scan."""
    from nibabel import orientations

    back = orientations.ornt_transform(orientations.axcodes2ornt("RAS"), turn)
    return orientations.apply_orientation(labels, back).copy(order="K")


def shrunk(values: np.ndarray, factors: np.ndarray) -> np.ndarray:
    """Return means of blocks of voxels, float32; the last block of an axis may repeat the outermost voxels."""
    order = in_memory(values)
    out = values.transpose(order)
    clipped = False
    for axis, factor in enumerate(int(f) for f in factors[order]):
        if factor == 1:
            continue
        size = out.shape[axis]
        starts = np.arange(0, size, factor)
        parts = (np.take(out, np.minimum(starts + n, size - 1), axis) for n in range(factor))
        total = sum(part if clipped else np.clip(part, *RANGE).astype(np.float32) for part in parts)
        out, clipped = total / np.float32(factor), True
    out = out if clipped else np.clip(out, *RANGE).astype(np.float32)
    return np.ascontiguousarray(out.transpose(np.argsort(order)))


def in_memory(values: np.ndarray) -> np.ndarray:
    """Return the axes (3,) from the slowest to the fastest in memory; loops in this order run several times faster."""
    return np.argsort(np.abs(values.strides))[::-1]
