"""Morphology in millimetres, on parts of a volume only, because distance transforms are slow.

Masks are (I, J, K); `spacing` is (3,), mm.
"""

from __future__ import annotations

import numpy as np
from scipy import ndimage

PLANAR = np.zeros((3, 3, 3), bool)
"""Neighbours within an axial slice, the two first axes."""
PLANAR[1, :, 1] = PLANAR[:, 1, 1] = True


def box_of(mask: np.ndarray, margin: float = 0, spacing: np.ndarray | None = None) -> tuple[slice, ...]:
    """Return the box around a mask that is not empty, enlarged by `margin` mm."""
    steps = np.ones(3) if spacing is None else spacing
    more = np.ceil(margin / steps).astype(int)
    out = []
    for axis in range(3):
        places = np.flatnonzero(mask.any(tuple(a for a in range(3) if a != axis)))
        out.append(slice(max(0, int(places[0]) - more[axis]), int(places[-1]) + 1 + more[axis]))
    return tuple(out)


def depth(mask: np.ndarray, spacing: np.ndarray) -> np.ndarray:
    """Return the distance of each voxel to the nearest one outside, mm; the borders of the volume are no outside."""
    out = np.zeros(mask.shape, np.float32)
    if mask.any():
        box = box_of(mask, 2 * float(spacing.max()), spacing)
        out[box] = ndimage.distance_transform_edt(mask[box], spacing)
    return out


def near(mask: np.ndarray, spacing: np.ndarray, distance: float) -> np.ndarray:
    """Return the voxels that are at most `distance` mm from a mask."""
    out = np.zeros_like(mask)
    if mask.any():
        box = box_of(mask, distance, spacing)
        out[box] = ndimage.distance_transform_edt(~mask[box], spacing) <= distance
    return out


def eroded(mask: np.ndarray, spacing: np.ndarray, radius: float) -> tuple[np.ndarray, np.ndarray]:
    """Return a mask eroded by a cuboid of half-width `radius` mm, and the half-widths in voxels (3,)."""
    half = np.ceil(radius / spacing).astype(int)
    return ndimage.minimum_filter(mask.view(np.uint8), 2 * half + 1, mode="nearest") > 0, half


def dilated(mask: np.ndarray, spacing: np.ndarray, radius: float) -> tuple[np.ndarray, np.ndarray]:
    """Return a mask dilated by a cuboid of half-width `radius` mm, and the half-widths in voxels (3,)."""
    half = np.ceil(radius / spacing).astype(int)
    return ndimage.maximum_filter(mask.view(np.uint8), 2 * half + 1, mode="constant") > 0, half


def closed(mask: np.ndarray, spacing: np.ndarray, radius: float) -> np.ndarray:
    """Return a mask closed by a ball of `radius` mm, with its holes filled; an empty one as it is."""
    if not mask.any():
        return mask
    box = box_of(mask)
    width = [(int(np.ceil(radius / s)) + 1,) * 2 for s in spacing]
    padded = np.pad(mask[box], width)
    shut = padded
    if radius >= spacing.min():  # a smaller ball closes nothing
        grown = ndimage.distance_transform_edt(~padded, spacing) <= radius
        shut = ndimage.distance_transform_edt(grown, spacing) > radius
    out = mask.copy()
    # not slice by slice, where a lung encloses the domes of the diaphragm
    out[box] |= ndimage.binary_fill_holes(shut | padded)[tuple(slice(a, -b) for a, b in width)]
    return out


def enclosed(mask: np.ndarray) -> np.ndarray:
    """Return what a mask encloses in its axial slices."""
    holes, count = ndimage.label(~mask, PLANAR)
    outside = np.zeros(count + 1, bool)
    outside[0] = True
    for axis in (0, 1):
        for end in (0, -1):
            outside[np.unique(np.take(holes, end, axis))] = True
    out: np.ndarray = ~outside[holes]
    return out
