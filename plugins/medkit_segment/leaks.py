"""Leaks of grown regions: where a region has gone through a neck into something else, or over the whole image."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

RADII = (0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
"""mm; half-widths of necks that are looked for."""
WIDER = 2.0
"""How many times as deep as the neck the region is on both sides of it."""
SHARE = 0.25
"""Smallest share of the seeds' own part that counts as a leak behind a neck."""
FINE = 5_000_000
"""Voxels of a region's box above which necks are looked for on coarser ones."""


@dataclass(frozen=True)
class Leak:
    """What lies behind a neck."""

    mask: np.ndarray
    """(I, J, K) bool, to be left out of the region."""
    place: np.ndarray
    """(3,) voxel indices of its voxel nearest to the rest, at the neck."""
    width: float
    """mm, upper bound of the neck's width."""


def find(mask: np.ndarray, seeds: np.ndarray, spacing: np.ndarray) -> Leak | None:
    """Return what lies behind the narrowest neck between the seeds and a large part of a region; None without one.

    mask: (I, J, K), the region. seeds: (N, 3) voxel indices inside. spacing: (3,) mm.
    """
    (box,) = ndimage.find_objects(mask.astype(np.uint8))
    step = max(1, round((mask[box].size / FINE) ** (1 / 3)))
    part = mask[box][::step, ::step, ::step]
    first = np.array([s.start for s in box])
    own = np.minimum((seeds - first) // step, np.array(part.shape) - 1)
    depth = ndimage.distance_transform_edt(np.pad(part, 1), spacing * step)[1:-1, 1:-1, 1:-1]
    for radius in RADII:
        behind = _behind(part, depth, own, radius, spacing * step)
        if behind is not None:
            return _leak(mask, behind, (box, step), radius, spacing)
    return None


def _behind(
    part: np.ndarray, depth: np.ndarray, seeds: np.ndarray, radius: float, spacing: np.ndarray
) -> np.ndarray | None:
    """Return what lies behind necks of a half-width of `radius` mm, if it is large and wide, else None."""
    from skimage.segmentation import watershed

    cores, count = ndimage.label(depth > radius)
    if count < 2:
        return None
    # of each voxel, the place of the nearest core, since seeds may lie near the surface
    near = ndimage.distance_transform_edt(cores == 0, spacing, return_distances=False, return_indices=True)
    numbers = np.arange(1, count + 1)
    peaks = ndimage.maximum(depth, cores, numbers)
    mine = np.unique(cores[tuple(near[(slice(None), *seeds.T)])])
    sizes = np.bincount(cores.ravel(), minlength=count + 1)[1:]
    wide = peaks >= WIDER * radius
    others = [n for n in numbers if n not in mine and wide[n - 1]]
    if not others or not wide[mine - 1].any() or sizes[np.array(others) - 1].sum() < SHARE * sizes[mine - 1].sum():
        return None
    marks = np.where(np.isin(cores, mine), 1, np.where(np.isin(cores, others), 2, 0)).astype(np.int32)
    behind: np.ndarray = watershed(-depth, marks, mask=part) == 2
    return behind


def _leak(
    mask: np.ndarray, behind: np.ndarray, where: tuple[tuple[slice, ...], int], radius: float, spacing: np.ndarray
) -> Leak:
    box, step = where
    fine = behind
    for axis in range(3):
        fine = np.repeat(fine, step, axis)
    out = np.zeros_like(mask)
    out[box] = mask[box] & fine[tuple(slice(0, s.stop - s.start) for s in box)]
    rest = mask & ~out
    distance = ndimage.distance_transform_edt(~rest[box], spacing)
    distance[~out[box]] = np.inf
    place = np.array(np.unravel_index(np.argmin(distance), distance.shape)) + [s.start for s in box]
    return Leak(out, place, 2 * (radius + float(spacing.max())))
