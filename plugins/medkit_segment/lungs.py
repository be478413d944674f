"""Lungs, airway and body in the working copy of a CT of the chest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy import ndimage

from medkit_segment import airway, shapes, sides

if TYPE_CHECKING:
    from medkit_segment.upright import Upright

EDGE = -400.0
"""HU of the border of a lung, about half-way between lung and soft tissue."""
LARGEST_SHIFT = 50.0
"""HU; errors of calibration are smaller."""
GAS = -960.0
"""HU; the median of gas around the body and in the bowel lies below, that of lungs (of emphysema too) above."""
LIGHT = -925.0
"""HU; a piece of air whose median lies above is no gas."""
VESSELS = -880.0
"""HU; vessels and their blurred borders raise part of a lung above it, of emphysema too; hardly any gas outside."""
VESSEL_SHARE = 0.08
"""Smallest share of a lung's inner voxels above `VESSELS`."""
SMALLEST = 20.0
"""ml; smaller pieces of air are no lung."""
SHARE = 0.04
"""Smallest share of the largest piece that makes a piece a lung; a lung above diaphragm domes may be in pieces."""
IN_FLESH, AMID_FLESH = 0.8, 0.6
"""Share of a lung's voxels that lie in axial slices of the body, or else of the voxels around it without its vessels
that are thick flesh."""
SECOND = 0.15
"""Smallest share of one lung that the other one has."""
LAYER = 20.0
"""mm; depth of a lung that reaches from one side of the field of view to the other."""
LIGHTER = 60.0
"""HU; a piece that is lighter than the largest one by more is gas, of the bowel."""
DENSER = 200.0
"""HU; a piece that is denser than the largest one by more may be a diseased lung, or bowel."""
CORNER = 0.2
"""Share of the slices in whose corner a piece of air lies, if it is outside of the body."""
CLOSED = 8.0
"""mm; radius of the ball that closes notches of vessels at the hilum, and of nodules at the wall."""
ONE_LUNG_ML, ONE_LUNG_MM = 300.0, 180.0
"""ml and mm; a single lung is larger than the first where the field of view is wider than the second: no sinuses."""
TABLE = 5.0
"""mm; half the thickness of what is taken off the body: tables, tubes, clothes."""


@dataclass(frozen=True)
class Lungs:
    """What was found, as masks (I, J, K). The body holds all others, which do not overlap."""

    body: np.ndarray
    left: np.ndarray
    right: np.ndarray
    airway: np.ndarray
    air: np.ndarray
    """Voxels under `EDGE`; the other voxels of the lungs were closed or filled."""
    padding: np.ndarray
    """What lies beyond a round field of view."""
    odd: float
    """ml of pieces that are much denser or lighter than the lungs."""


def find(scan: Upright) -> Lungs | None:
    """Return lungs, airway and body; None if there is no lung."""
    padding = _padding(scan.values)
    air = (scan.values < EDGE) & ~padding
    solid = scan.values >= EDGE
    flesh = _flesh(solid, scan)
    tube = airway.find(scan, flesh)
    both, odd = _lung_like(scan, air & ~airway.with_wall(tube, scan.spacing), flesh)
    if tube.any() and both.any() and _below(tube, both):
        tube = np.zeros_like(tube)  # gas in the bowel
        both, odd = _lung_like(scan, air, flesh)
    if not both.any():
        return None
    left, right = sides.split(both, scan)
    if not _plausible(left, right, scan):
        return None
    left, right = _closed(left, right, tube, scan)
    # with the lungs, since the chest wall in front of them may be thin
    body = _flesh(solid | left | right | tube, scan)
    return Lungs(body | shapes.enclosed(body), left, right, tube, air, padding, odd)


def _padding(values: np.ndarray) -> np.ndarray:
    """Return what lies beyond a round field of view: one lowest value, from the corners inwards."""
    pieces, count = ndimage.label(values <= values.min() + 0.5)
    outer = np.zeros(count + 1, bool)
    outer[np.unique(pieces[:: pieces.shape[0] - 1 or 1, :: pieces.shape[1] - 1 or 1])] = True
    outer[0] = False
    out: np.ndarray = outer[pieces]
    return out


def _flesh(solid: np.ndarray, scan: Upright) -> np.ndarray:
    """Return the parts of a mask that are thick enough for a body: the largest piece and others of its kind."""
    thick, _ = shapes.eroded(solid, scan.spacing, TABLE)
    core, count = ndimage.label(thick)
    if not count:
        return solid
    sizes = np.bincount(core.ravel(), minlength=count + 1)
    sizes[0] = 0
    kept = (sizes > 0.02 * sizes.max())[core]
    return solid & shapes.dilated(kept, scan.spacing, TABLE)[0]


def _lung_like(scan: Upright, aerated: np.ndarray, flesh: np.ndarray) -> tuple[np.ndarray, float]:
    """Return the pieces of air that have vessels in them and flesh around them, and ml of those of another density."""
    pieces, count = ndimage.label(aerated)
    sizes = np.bincount(pieces.ravel(), minlength=count + 1) * scan.voxel
    sizes[0] = 0
    medians = _medians(scan, pieces, sizes, flesh)
    if not medians:
        return np.zeros_like(aerated), 0.0
    main = max(medians, key=lambda number: sizes[number])
    boxes = ndimage.find_objects(pieces)
    middle = (boxes[main - 1][2].start + boxes[main - 1][2].stop) / 2
    kept = [
        number
        for number, median in medians.items()
        if sizes[number] >= SHARE * sizes[main]
        and median > medians[main] - LIGHTER
        and boxes[number - 1][2].stop > min(middle, pieces.shape[2] - 1)  # bowel lies lower
    ]
    odd = sum(sizes[number] for number in kept if medians[number] > medians[main] + DENSER)
    return np.isin(pieces, kept), float(odd)


def _medians(scan: Upright, pieces: np.ndarray, sizes: np.ndarray, flesh: np.ndarray) -> dict[int, float]:
    """Return number -> median HU of the pieces that are like lungs; `sizes`: ml, by number."""
    boxes = ndimage.find_objects(pieces)
    within = flesh | shapes.enclosed(flesh)
    shift = _shift(scan.values)
    margin = 2 + np.ceil(TABLE / scan.spacing).astype(int)
    inside: dict[int, float] = {}
    open_: dict[int, float] = {}
    corner: dict[int, float] = {}
    for number in map(int, np.flatnonzero(sizes > SMALLEST)):
        box = tuple(slice(max(0, s.start - n), s.stop + n) for s, n in zip(boxes[number - 1], margin, strict=True))
        own = pieces[box] == number
        values = scan.values[box][ndimage.binary_erosion(own, border_value=1)]
        in_corner = _in_corner(pieces, number)
        if not _like_lung(values - shift, corner=in_corner):
            continue
        if within[box][own].mean() > IN_FLESH:
            inside[number] = float(np.median(values))
        elif _amid_flesh(own, within[box], scan.spacing, pieces.shape):
            (corner if in_corner else open_)[number] = float(np.median(values))
    if not inside:
        # a lung in a corner is only seen in scans that are cut all around the lungs; else the table lies there
        return open_ | corner
    most = max(sizes[number] for number in inside)
    if sum(sizes[number] > SECOND * most for number in inside) > 1:
        return inside  # both lungs
    return inside | {number: median for number, median in open_.items() if not _spans(boxes[number - 1], pieces.shape)}


def _spans(box: tuple[slice, ...], shape: tuple[int, ...]) -> bool:
    """Return whether a piece reaches from the left border to the right one, as tables do."""
    return box[0].start == 0 and box[0].stop == shape[0]


def _shift(values: np.ndarray) -> float:
    """Return by how many HU the air around the body is off -1000, where it is seen in the corners of the slices."""
    corners = [float(np.median(values[x, y])) for x in (0, -1) for y in (0, -1)]
    near = [level + 1000 for level in corners if abs(level + 1000) <= LARGEST_SHIFT]
    return min(near, default=0.0)


def _like_lung(values: np.ndarray, *, corner: bool) -> bool:
    """Return whether the inner voxels of a piece of air, HU, are those of a lung and not of gas.

    corner: whether the piece lies where hardly ever a lung does, but table and clothes.
    """
    median = float(np.median(values)) if len(values) else -np.inf
    return median > LIGHT or (not corner and median > GAS and float(np.mean(values > VESSELS)) > VESSEL_SHARE)


def _in_corner(pieces: np.ndarray, number: int) -> bool:
    """Return whether a piece runs along an edge of the volume that is parallel to the body, as what is outside does."""
    return max(float(np.mean(pieces[x, y] == number)) for x in (0, -1) for y in (0, -1)) > CORNER


def _amid_flesh(own: np.ndarray, flesh: np.ndarray, spacing: np.ndarray, whole: tuple[int, ...]) -> bool:
    """Return whether most of what surrounds a piece of air belongs to the body, unlike the foam of a table.

    own, flesh: in the box of the piece. whole: shape of the volume; a thin layer from one side to the other is foam.
    """
    grown, _ = shapes.dilated(own, spacing, TABLE)
    full = own | shapes.eroded(grown, spacing, TABLE)[0]
    rim = ndimage.binary_dilation(full) & ~full
    if not rim.any() or flesh[rim].mean() <= AMID_FLESH:
        return False
    across = any(own.shape[axis] == whole[axis] for axis in (0, 1))
    return not across or float(shapes.depth(full, spacing).max()) > LAYER


def _below(tube: np.ndarray, lungs: np.ndarray) -> bool:
    """Return whether a tube ends in the lower half of the lungs, as no trachea does."""
    bounds = shapes.box_of(lungs)[2]
    return shapes.box_of(tube)[2].stop < (bounds.start + bounds.stop) / 2


def _plausible(left: np.ndarray, right: np.ndarray, scan: Upright) -> bool:
    """Return whether there are two lungs, or one that is large, or a field of view that holds no more than one."""
    sizes = scan.size(left), scan.size(right)
    wide = scan.values.shape[0] * scan.spacing[0] > ONE_LUNG_MM
    return min(sizes) > 0.05 * max(sizes) or max(sizes) > ONE_LUNG_ML or not wide


def _closed(left: np.ndarray, right: np.ndarray, tube: np.ndarray, scan: Upright) -> tuple[np.ndarray, np.ndarray]:
    """Return both lungs without the notches and holes of vessels and nodules."""
    taken = tube.copy()
    out = []
    for lung, other in ((left, right), (right, left)):
        full = shapes.closed(lung, scan.spacing, CLOSED) & ~taken & ~other
        out.append(full)
        taken = taken | full
    return out[0], out[1]
