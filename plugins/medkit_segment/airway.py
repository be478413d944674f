"""Trachea and main bronchi in the working copy of a CT of the chest, by region growing from the trachea."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scipy import ndimage

from medkit_segment import shapes
from medkit_segment.growing import connected

if TYPE_CHECKING:
    from medkit_segment.upright import Upright

GAS = -800.0
"""HU under which a round spot of a slice may be the trachea."""
AREA = (40.0, 800.0)
"""mm2; cross-sections that a trachea can have."""
WIDTH = 45.0
"""mm; no trachea is wider."""
ROUND = 0.5
"""Smallest share of its bounding box that a cross-section fills."""
LENGTH = 20.0
"""mm; shortest piece of a trachea that counts."""
REACH = (70.0, 60.0, 110.0)
"""mm to the sides, to front and back, and down from the trachea, within which the main bronchi lie."""
STEPS = tuple(range(-950, -650, 25))
"""HU; upper thresholds of growing, tried in turn until it leaks into the lungs."""
LEAK = 1.5
"""Growth of the volume from one threshold to the next that shows a leak, as a factor; plus `LEAK_ML`."""
LEAK_ML = 4.0
LARGEST = 180.0
"""ml; no trachea with its main bronchi is larger."""
BRONCHUS = 2.5
"""mm; radius of the thinnest bronchus that is counted as airway. Thinner ones belong to the lungs."""
WALL = 1.5
"""mm; thickness of the wall of trachea and main bronchi."""


def find(scan: Upright, flesh: np.ndarray) -> np.ndarray:
    """Return the mask (I, J, K) of trachea and main bronchi; empty if no trachea lies in the field of view.

    flesh: (I, J, K), the body without what is thin; the trachea lies behind some of it, and in front of some.
    """
    trachea = _trachea(scan, _amid(flesh))
    if not trachea.any():
        return trachea
    box = _reach(trachea, scan.spacing)
    grown = np.zeros_like(trachea)
    grown[box] = _grown(scan.values[box], trachea[box], scan.voxel) | trachea[box]
    return _thick(grown, scan.spacing) | trachea


def relabelled(labels: np.ndarray, scan: Upright, flesh: np.ndarray, label: int) -> np.ndarray:
    """Return labels (I, J, K) whose airway grows from the trachea, where one is found; else as they are.

    flesh: (I, J, K), as in `find`. label: of the airway. What a network took for airway, and is none, takes the label
    of its surroundings.
    """
    found = find(scan, flesh)
    if not found.any():
        return labels
    lost = (labels == label) & ~found
    out = np.where(found, label, labels).astype(labels.dtype)
    if lost.any():
        others = (out == label) | lost
        nearest = ndimage.distance_transform_edt(others, scan.spacing, return_distances=False, return_indices=True)
        out = np.where(lost, out[tuple(nearest)], out)
    return out


def with_wall(tube: np.ndarray, spacing: np.ndarray) -> np.ndarray:
    """Return an airway with its wall."""
    return shapes.near(tube, spacing, max(WALL, float(spacing.max())))


def _amid(flesh: np.ndarray) -> np.ndarray:
    """Return what has flesh in front of it and behind it."""
    behind = np.logical_or.accumulate(flesh, axis=1)
    return behind & np.logical_or.accumulate(flesh[:, ::-1], axis=1)[:, ::-1]


def _trachea(scan: Upright, place: np.ndarray) -> np.ndarray:
    """Return the column of round spots of gas that is the trachea, within `place`."""
    gas = (scan.values < GAS) & place
    spots, count = ndimage.label(gas, shapes.PLANAR)
    sizes = np.bincount(spots.ravel(), minlength=count + 1) * scan.spacing[0] * scan.spacing[1]
    fits = (sizes >= AREA[0]) & (sizes <= AREA[1])
    fits[0] = False
    boxes = ndimage.find_objects(spots)
    for number in np.flatnonzero(fits):
        fits[number] = _round(boxes[number - 1], sizes[number], gas.shape, scan.spacing)
    columns, count = ndimage.label(fits[spots])
    return _best_column(columns, count, scan)


def _round(box: tuple[slice, ...], area: float, shape: tuple[int, ...], spacing: np.ndarray) -> bool:
    """Return whether a spot is roundish, narrow, and off the borders of its slice."""
    sides = [(s.stop - s.start) * step for s, step in zip(box[:2], spacing[:2], strict=True)]
    inside = all(s.start > 0 and s.stop < size for s, size in zip(box[:2], shape[:2], strict=True))
    return inside and max(sides) < WIDTH and max(sides) < 2.5 * min(sides) and area > ROUND * sides[0] * sides[1]


def _best_column(columns: np.ndarray, count: int, scan: Upright) -> np.ndarray:
    """Return the longest column, weighted by how near to the middle of the body it lies."""
    best, mask = 0.0, np.zeros(columns.shape, bool)
    if not count:
        return mask
    middle = _middle(scan)
    for number, box in enumerate(ndimage.find_objects(columns), start=1):
        length = (box[2].stop - box[2].start) * scan.spacing[2]
        aside = abs((box[0].start + box[0].stop) / 2 - middle) * scan.spacing[0]
        score = length * np.exp(-((aside / 25) ** 2))
        if length >= LENGTH and score > best and score > LENGTH / 2:
            best, mask = score, columns == number
    return mask


def _middle(scan: Upright) -> float:
    """Return the middle of the body from side to side, in voxels."""
    solid = np.count_nonzero(scan.values > -200, axis=(1, 2)).astype(float)
    return float((solid * np.arange(len(solid))).sum() / max(solid.sum(), 1))


def _reach(trachea: np.ndarray, spacing: np.ndarray) -> tuple[slice, ...]:
    (box,) = ndimage.find_objects(trachea.astype(np.uint8))
    around = np.round(np.array(REACH) / spacing).astype(int)
    sides = [slice(max(0, s.start - n), s.stop + n) for s, n in zip(box[:2], around[:2], strict=True)]
    return (*sides, slice(max(0, box[2].start - around[2]), box[2].stop))


def _grown(values: np.ndarray, seeds: np.ndarray, voxel: float) -> np.ndarray:
    """Return what grows from the trachea before it leaks into the lungs; `voxel`: ml."""
    places = np.argwhere(seeds)
    places = places[:: max(1, len(places) // 200)]
    kept = seeds
    for high in STEPS:
        grown = connected(values, places, (-np.inf, high))
        volume, before = np.count_nonzero(grown) * voxel, np.count_nonzero(kept) * voxel
        if volume > LARGEST or volume > LEAK * before + LEAK_ML:
            break
        kept = grown | seeds
    return kept


def _thick(tube: np.ndarray, spacing: np.ndarray) -> np.ndarray:
    """Return the parts of an airway that are not thinner than main bronchi."""
    core = shapes.depth(tube, spacing) >= BRONCHUS
    return tube & shapes.near(core, spacing, BRONCHUS) if core.any() else tube
