"""What the skull of a CT encloses, by Hounsfield units and shape."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from medkit_segment import shapes

BONE = 250.0
"""HU above which there is bone."""
SOFT = (-15.0, 110.0)
"""HU of brain, its fluid, and bleedings."""
STEP = 2.0
"""mm; about the finest voxel of the working copy."""
GAP = 5.0
"""mm; half the width of the openings of the skull that are closed."""
NECK = 7.0
"""mm; half the width of what connects the inside with the outside, such as the spinal canal."""
ENCLOSED = 0.7
"""Smallest mean share of the six directions in which bone lies around a brain."""
SMALLEST_ML = 400.0
"""ml; smaller insides are no head's."""


def inside(values: np.ndarray, spacing: np.ndarray) -> np.ndarray | None:
    """Return the mask (I, J, K) of what a skull encloses; `values` in HU, `spacing` (3,) in mm. None without one."""
    factors = np.maximum(1, np.round(STEP / spacing)).astype(int)
    size = spacing * factors
    coarse = values[tuple(slice(None, None, f) for f in factors)].astype(np.float32)
    coarse = ndimage.median_filter(coarse, size=3)
    wall, _ = shapes.dilated(coarse > BONE, size, 1.0)
    soft = (coarse > SOFT[0]) & (coarse < SOFT[1]) & ~wall
    if not soft.any():
        return None
    core = shapes.depth(soft, size) > NECK
    pieces, count = ndimage.label(core)
    best = None
    for number in range(1, count + 1):
        piece = pieces == number
        if piece.sum() * np.prod(size) / 1000 < SMALLEST_ML / 4:
            continue
        enclosed = _share_enclosed(piece, wall)
        if enclosed > ENCLOSED and (best is None or enclosed * piece.sum() > best[0]):
            best = (enclosed * piece.sum(), piece)
    if best is None:
        return None
    grown = shapes.near(best[1], size, NECK + GAP / 2) & (coarse > 2 * SOFT[0]) & (coarse < BONE)
    full = ndimage.binary_fill_holes(grown)
    if full.sum() * np.prod(size) / 1000 < SMALLEST_ML:
        return None
    for axis, factor in enumerate(factors):
        full = full.repeat(factor, axis)
    return full[tuple(slice(0, n) for n in values.shape)]


def _share_enclosed(piece: np.ndarray, wall: np.ndarray) -> float:
    """Return the mean share of the six directions in which bone lies behind the border of a piece."""
    seen = 0.0
    for axis in range(3):
        for flip in (False, True):
            bone = np.flip(wall, axis) if flip else wall
            behind = np.logical_or.accumulate(bone, axis)
            behind = np.flip(behind, axis) if flip else behind
            seen += float(behind[piece].mean())
    return seen / 6
