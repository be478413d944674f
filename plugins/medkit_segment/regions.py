"""Thirds, core and peel of lungs, the regions of density studies."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from scipy import ndimage

SIDES = ("lung_left", "lung_right")
THIRDS = ("upper", "middle", "lower")
LAYERS = ("core", "peel")
FINE = 5_000_000
"""Voxels of a lung above which the depth is measured on coarser ones."""
REGIONS: Mapping[int, str] = {
    10 * (side + 1) + 2 * third + layer + 1: f"{SIDES[side]}_{THIRDS[third]}_{LAYERS[layer]}"
    for side in range(2)
    for third in range(3)
    for layer in range(2)
}
"""Numbers of the regions and their names: 11 to 16 for the left lung, 21 to 26 for the right one."""


def regions_of(lungs: Mapping[str, np.ndarray], affine: np.ndarray) -> np.ndarray:
    """Return the labels of `REGIONS`, (I, J, K) uint8.

    The thirds have equal heights between the highest and the lowest slice of a lung. The peel is the half of a lung's
    voxels that is nearest to its surface, the core the other half.

    lungs: name of `SIDES` -> mask (I, J, K).
    affine: (4, 4), voxel index -> RAS+ mm.
    """
    out = np.zeros_like(next(iter(lungs.values())), np.uint8)
    for number, side in enumerate(SIDES):
        mask = lungs.get(side)
        if mask is not None and mask.any():
            (box,) = ndimage.find_objects(mask.astype(np.uint8))
            part = mask[box]
            third = _third_of(part, affine[2, :3])
            peel = _peel_of(part, np.sqrt((affine[:3, :3] ** 2).sum(0)))
            out[box][part] = (10 * (number + 1) + 2 * third + peel + 1)[part]
    return out


def _third_of(mask: np.ndarray, upwards: np.ndarray) -> np.ndarray:
    """Return for each voxel 0, 1 or 2 from the top; `upwards`: (3,), mm by which a step along each axis rises."""
    i, j, k = (np.arange(n, dtype=np.float32) * step for n, step in zip(mask.shape, upwards, strict=True))
    height = i[:, None, None] + j[:, None] + k
    low, high = float(height[mask].min()), float(height[mask].max())
    third: np.ndarray = np.digitize(-height, [-high + (high - low) / 3, -high + (high - low) * 2 / 3]).astype(np.uint8)
    return third


def _peel_of(mask: np.ndarray, spacing: np.ndarray) -> np.ndarray:
    """Return 1 for the voxels near the surface and 0 for the others."""
    step = max(1, round((mask.size / FINE) ** (1 / 3)))
    some = np.pad(mask[::step, ::step, ::step], 1)
    depth = ndimage.distance_transform_edt(some, spacing * step)[1:-1, 1:-1, 1:-1]
    peel = (depth <= np.median(depth[some[1:-1, 1:-1, 1:-1]])).astype(np.uint8)
    for axis in range(3):
        peel = np.repeat(peel, step, axis)
    return peel[tuple(slice(0, n) for n in mask.shape)]
