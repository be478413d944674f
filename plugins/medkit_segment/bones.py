"""Bones in the working copy of a CT of the chest, without vessels that hold contrast agent."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scipy import ndimage

from medkit_segment import shapes
from medkit_segment.sides import middle_of

if TYPE_CHECKING:
    from medkit_segment.lungs import Lungs
    from medkit_segment.upright import Upright

EDGE = 180.0
"""HU above which there is bone, or blood with contrast agent."""
CORTEX = 450.0
"""HU that blood does not reach, except where the agent flows in."""
BLOOD = 130.0
"""HU above which the inside of a large vessel holds contrast agent."""
EVEN = 60.0
"""HU; largest standard deviation within 4 mm that a blood pool has."""
EVEN_SHARE = 0.2
"""The same as a share of the mean, where the agent flows in."""
POOL = 4.0
"""mm; half-width of the smallest blood pool that is looked for."""
CANAL = (60.0, 700.0)
"""mm2; cross-sections of the spinal canal."""
VERTEBRA = (26.0, 50.0)
"""mm from the spinal canal to the sides and to the front, within which vertebrae lie."""
ASIDE = 30.0
"""mm to the sides of the middle within which the spinal canal lies."""
SMOOTHED = 9
"""Slices with a canal over which the median of its place is taken."""
CANAL_MM = 4.0
"""mm from the middle of the spinal canal within which a hole is the canal itself."""
MARROW = 1500.0
"""mm2; larger holes in axial slices hold more than marrow: the chest within its ribs."""
TRUNK = (85.0, 150.0)
"""mm to the sides of the middle, and below the lungs, within which heart and large vessels are looked for."""
AMID = 0.9
"""Share of a piece that lies between the lungs and in front of the spine above which it is no bone."""
SMALLEST = 0.1
"""ml; smaller specks are calcifications or noise."""


def find(scan: Upright, found: Lungs) -> np.ndarray:
    """Return the mask (I, J, K) of bones."""
    dense = (scan.values > EDGE) & found.body & ~found.left & ~found.right & ~found.airway
    if not dense.any():
        return dense
    lungs = found.left | found.right
    middle = middle_of(scan, lungs)
    back = shapes.box_of(lungs)[1]
    canal = _canal(scan, middle, (back.start + back.stop) / 2)
    spine = _around_spine(scan, canal)
    bright = _pools(scan, found.body & ~spine & _trunk(scan, lungs, middle))
    if bright.any():
        dense = _without_blood(scan, dense, bright)
    pieces, count = ndimage.label(dense)
    sizes = np.bincount(pieces.ravel(), minlength=count + 1)
    amid = np.bincount(pieces[_between(found.left, found.right) & ~spine], minlength=count + 1)
    kept = (sizes * scan.voxel > SMALLEST) & (amid < AMID * sizes)
    kept[0] = False
    return _with_marrow(kept[pieces], canal, scan) & ~found.left & ~found.right & ~found.airway


def _trunk(scan: Upright, lungs: np.ndarray, middle: float) -> np.ndarray:
    """Return where heart and large vessels may lie: near the middle, and not far below the lungs."""
    x, _, z = np.ogrid[tuple(slice(0, n) for n in lungs.shape)]
    side, down = TRUNK
    lowest = shapes.box_of(lungs)[2].start
    inside = (np.abs(x - middle) * scan.spacing[0] < side) & ((z - lowest) * scan.spacing[2] > -down)
    return np.broadcast_to(inside, lungs.shape)


def _with_marrow(bone: np.ndarray, canal: np.ndarray | None, scan: Upright) -> np.ndarray:
    """Return bones with what they enclose in axial slices, but not the spinal canal."""
    holes, count = ndimage.label(shapes.enclosed(bone) & ~bone, shapes.PLANAR)
    if not count:
        return bone
    areas = np.bincount(holes.ravel(), minlength=count + 1) * scan.spacing[0] * scan.spacing[1]
    filled = areas < MARROW
    filled[0] = False
    if canal is not None:
        spots = np.round(canal).astype(int)
        radius = np.ceil(CANAL_MM / scan.spacing[:2]).astype(int)
        for k, spot in enumerate(spots):
            around = tuple(slice(max(0, c - r), c + r + 1) for c, r in zip(spot, radius, strict=True))
            filled[np.unique(holes[(*around, k)])] = False
    return bone | filled[holes]


def _between(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Return what lies between the lungs, from side to side: only vessels and calcifications are bright there."""
    return np.logical_or.accumulate(left) & np.logical_or.accumulate(right[::-1])[::-1]


def _pools(scan: Upright, place: np.ndarray) -> np.ndarray:
    """Return the inner parts of heart and large vessels with contrast agent: even and bright, somewhere in `place`."""
    inner, half = shapes.eroded(scan.values > BLOOD, scan.spacing, POOL)
    inner &= place
    if not inner.any():
        return inner
    box = shapes.box_of(inner, 2 * POOL, scan.spacing)
    part = scan.values[box]
    mean = ndimage.uniform_filter(part, 2 * half + 1)
    spread = ndimage.uniform_filter(part**2, 2 * half + 1) - mean**2
    inner[box] &= spread < np.maximum(EVEN, EVEN_SHARE * mean) ** 2
    return inner


def _around_spine(scan: Upright, centre: np.ndarray | None) -> np.ndarray:
    """Return the place of the vertebrae in each slice, as seen from the spinal canal; all of the back without one."""
    out = np.zeros(scan.values.shape, bool)
    if centre is None:
        out[:, : scan.values.shape[1] // 2] = True
        return out
    side, front = np.round(np.array(VERTEBRA) / scan.spacing[:2]).astype(int)
    for k, (x, y) in enumerate(np.round(centre).astype(int)):
        out[max(0, x - side) : x + side + 1, : max(0, y + front), k] = True
    return out


def _canal(scan: Upright, middle: float, front: float) -> np.ndarray | None:
    """Return the place of the spinal canal in each slice, (K, 2) voxels, from neighbours where it is open, or None.

    middle, front: where it lies from side to side, and in front of which it does not lie, in voxels.
    """
    bone = scan.values > EDGE
    holes, count = ndimage.label(shapes.enclosed(bone) & ~bone, shapes.PLANAR)
    areas = np.bincount(holes.ravel(), minlength=count + 1) * scan.spacing[0] * scan.spacing[1]
    fits = np.flatnonzero((areas >= CANAL[0]) & (areas <= CANAL[1]))
    fits = fits[fits > 0]
    if not len(fits):
        return None
    places = np.array(ndimage.center_of_mass(holes > 0, holes, fits))
    places = places[(np.abs(places[:, 0] - middle) * scan.spacing[0] < ASIDE) & (places[:, 1] < front)]
    seen = np.unique(places[:, 2])
    if len(seen) < 3:
        return None
    # of the openings of a slice the hindmost; in front of the canal lies marrow, with openings of its own
    hindmost = np.array([min(places[places[:, 2] == k], key=lambda place: place[1]) for k in seen])
    steady = ndimage.median_filter(hindmost[:, :2], size=(SMOOTHED, 1), mode="nearest")
    slices = np.arange(scan.values.shape[2])
    return np.stack([np.interp(slices, seen, steady[:, axis]) for axis in (0, 1)], axis=1)


def _without_blood(scan: Upright, dense: np.ndarray, bright: np.ndarray) -> np.ndarray:
    """Return bone, told from blood pools by a watershed of the gradient."""
    from skimage.segmentation import watershed

    box = shapes.box_of(dense)
    part = scan.values[box]
    hard = (part > CORTEX) & dense[box] & ~shapes.near(bright[box], scan.spacing, 3 * POOL)
    marks = hard.astype(np.int32)
    marks[bright[box]] = 2
    slope = ndimage.generic_gradient_magnitude(part, ndimage.sobel)
    parts = watershed(slope, marks, mask=dense[box] | bright[box])
    loose = dense[box] & (parts == 0)
    out = np.zeros_like(dense)
    out[box] = dense[box] & ((parts == 1) | loose)
    return out
