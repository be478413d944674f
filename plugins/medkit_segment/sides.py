"""Left and right lung, also where they touch."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scipy import ndimage

from medkit_segment import shapes

if TYPE_CHECKING:
    from medkit_segment.upright import Upright

RADII = (0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0, 13.0, 16.0, 20.0)
"""mm; depths of erosion, tried in turn until two lungs come apart."""
SPINE_HU = 200.0
"""HU of bone."""
SPINE_MM, SPINE_MM2 = 40.0, 300.0
"""Width of the spine, mm, and the least bone that it has in an axial slice, mm2."""
LUNG_SHARE = 0.12
"""Smallest share of both cores that the smaller core has, if both are lungs."""


def split(lungs: np.ndarray, scan: Upright) -> tuple[np.ndarray, np.ndarray]:
    """Return the left and the right lung of a mask (I, J, K) of both, whose axes are RAS+; one may be empty."""
    depth = shapes.depth(lungs, scan.spacing)
    middle = middle_of(scan, lungs)
    for radius in (0.0, *RADII):
        cores, count = ndimage.label(depth > radius)
        left, right = _sided(cores, count, middle, scan.spacing)
        if left and right:
            return _shared_out(lungs, depth, np.isin(cores, left), np.isin(cores, right))
    places = np.flatnonzero(lungs.any((1, 2)))
    empty = np.zeros_like(lungs)
    weights = np.count_nonzero(lungs, axis=(1, 2))[places]
    return (lungs, empty) if (places * weights).sum() / weights.sum() < middle else (empty, lungs)


def _sided(cores: np.ndarray, count: int, middle: float, spacing: np.ndarray) -> tuple[list[int], list[int]]:
    """Return the numbers of the cores on the left and on the right; both empty if a large core spans both sides."""
    if not count:
        return [], []
    across = _profiles(cores, count)
    sizes = across.sum(1)
    total = sizes.sum()
    large = np.flatnonzero(sizes > max(3, 0.002 * sizes.max()))
    sides: tuple[list[int], list[int]] = ([], [])
    shares = [0.0, 0.0]
    for number, profile in ((n + 1, across[n]) for n in large):
        below = profile[: max(0, int(middle) + 1)].sum() / profile.sum()
        if profile.sum() > LUNG_SHARE * total and LUNG_SHARE < below < 1 - LUNG_SHARE and _spans(profile, spacing[0]):
            return [], []
        side = 0 if below >= 0.5 else 1
        sides[side].append(int(number))
        shares[side] += profile.sum() / total
    return sides if min(shares) > 0.02 else ([], [])


def _profiles(cores: np.ndarray, count: int) -> np.ndarray:
    """Return how many voxels each piece has in each sagittal slice, (count, I)."""
    out = np.zeros((count, len(cores)), np.int64)
    for place, plane in enumerate(cores):
        out[:, place] = np.bincount(plane.ravel(), minlength=count + 1)[1:]
    return out


def _spans(profile: np.ndarray, step: float) -> bool:
    """Return whether a core is too wide to be a single lung."""
    places = np.flatnonzero(profile)
    return bool((places[-1] - places[0]) * step > 60)


def _shared_out(
    lungs: np.ndarray, depth: np.ndarray, left: np.ndarray, right: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return the voxels of both lungs, shared out from the cores by a watershed of the depth."""
    from skimage.segmentation import watershed

    marks = left.astype(np.int32) + 2 * right
    basins = watershed(-depth, marks, mask=lungs)
    return basins == 1, basins == 2


def middle_of(scan: Upright, lungs: np.ndarray) -> float:
    """Return where the middle of the body lies from side to side, in voxels: at the spine, or else at x = 0."""
    box = shapes.box_of(lungs)
    back = slice(max(0, box[1].start - 4), (box[1].start + box[1].stop) // 2)
    bone = scan.values[:, back, box[2]] > SPINE_HU
    width = max(1, round(SPINE_MM / scan.spacing[0]))
    profile = ndimage.uniform_filter1d(np.count_nonzero(bone, axis=(1, 2)).astype(float), width, mode="constant")
    area = profile.max() * width * scan.spacing[0] * scan.spacing[1] / bone.shape[2]
    return float(np.mean(np.flatnonzero(profile == profile.max()))) if area > SPINE_MM2 else scan.midline
