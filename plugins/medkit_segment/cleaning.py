"""Remove stray pieces from label maps, and close holes and gaps in masks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import ndimage

OUTSIDE = 0.3
"""Share of background in what surrounds a piece of a solid organ above which it lies beside the body."""
KEPT_SHARE = 0.2
"""Smallest piece of a structure that is kept, as a share of the voxels of its largest piece."""


@dataclass(frozen=True)
class Pieces:
    """What pieces the structures of a label map consist of, as a bundle's metadata state it under `medkit`."""

    connected: bool = False
    """Whether all structures form one body, such as a brain."""
    body: float = 0.0
    """Smallest share of the largest body's voxels that a separate body has, such as an arm; less is no body."""
    scattered: tuple[int, ...] = ()
    """Labels of structures that consist of many pieces, such as bones."""
    solid: tuple[int, ...] = ()
    """Labels of organs in which there is no background, such as lungs."""

    @classmethod
    def of(cls, block: Mapping[str, Any]) -> Pieces:
        """Read it from a bundle's metadata `medkit`."""
        lists = (tuple(int(n) for n in block.get(key) or ()) for key in ("scattered", "solid"))
        return cls(bool(block.get("connected")), float(block.get("body") or 0), *lists)

    def in_channels(self, values: Sequence[int]) -> Pieces:
        """Return the same for label maps that hold channels; `values`: channel -> label."""
        place = {label: channel for channel, label in enumerate(values)}
        lists = (tuple(place[n] for n in own if n in place) for own in (self.scattered, self.solid))
        return Pieces(self.connected, self.body, *lists)


def cleaned(labels: np.ndarray, pieces: Pieces) -> np.ndarray:
    """Return labels (I, J, K) without small pieces that are separate from the rest of their structure.

    Such a piece takes the label of the nearest voxels that stay; if it touches no other structure, it becomes
    background. Of a connected body only the largest piece stays, of scattered structures all pieces. Background amid
    solid organs belongs to them; pieces of these in the background, beside the body, are none.
    """
    if pieces.solid:
        labels = without_pockets(labels, pieces.solid)
    out = labels.copy()
    if pieces.connected or pieces.body:
        out[_small_pieces(labels > 0, 1.0 if pieces.connected else pieces.body, corners=False)] = 0
    for label in pieces.solid:
        own, (share,) = surrounded(out == label, out == 0)
        out[(share > OUTSIDE)[own]] = 0
    stray = np.zeros(out.shape, bool)
    for number, box in enumerate(ndimage.find_objects(out), start=1):
        if box is not None and number not in pieces.scattered:
            stray[box] |= _small_pieces(out[box] == number, KEPT_SHARE, corners=True)
    if stray.any():
        bodies, count = ndimage.label(out > 0)
        kept = np.bincount(bodies[(out > 0) & ~stray], minlength=count + 1) > 0
        out[~kept[bodies]] = 0
        out = _relabelled(out, stray & (out > 0))
    return out


def without_pockets(labels: np.ndarray, organs: Sequence[int]) -> np.ndarray:
    """Return labels (I, J, K) in which background that organs surround belongs to the nearest of them.

    What surrounds a piece of background are the voxels that share a face with it; most of them have to be organs.
    """
    wanted = np.isin(labels, organs)
    pieces, (share,) = surrounded(labels == 0, wanted)
    pocket = share > 0.5
    where = pocket[pieces]
    if not where.any():
        return labels
    nearest = ndimage.distance_transform_edt(~wanted, return_distances=False, return_indices=True)
    return np.where(where, labels[tuple(nearest)], labels)


def surrounded(mask: np.ndarray, *others: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the pieces of a mask by number (I, J, K), and the share of each of `others` in what surrounds each piece.

    The shares are (len(others), N + 1). What surrounds a piece are the voxels that share a face with it.
    """
    pieces, count = ndimage.label(mask)
    around, inside = np.zeros(count + 1), np.zeros((len(others), count + 1))
    for axis in range(3):
        one, other = ((*[slice(None)] * axis, part) for part in (slice(None, -1), slice(1, None)))
        for here, there in ((one, other), (other, one)):
            rim = (pieces[here] > 0) & (pieces[there] == 0)
            numbers = pieces[here][rim]
            around += np.bincount(numbers, minlength=count + 1)
            for own, near in zip(inside, others, strict=True):
                own += np.bincount(numbers, near[there][rim], minlength=count + 1)
    return pieces, np.divide(inside, around, out=np.zeros_like(inside), where=around > 0)


def _relabelled(labels: np.ndarray, stray: np.ndarray) -> np.ndarray:
    """Return the labels with those of neighbouring voxels in `stray` voxels, filled from the outside inwards."""
    padded = np.pad(np.where(stray, 0, labels), 1).astype(labels.dtype)
    flat, left = padded.reshape(-1), np.flatnonzero(np.pad(stray, 1))
    steps = [stride // padded.itemsize for stride in padded.strides]
    while len(left):
        found = np.zeros(len(left), labels.dtype)
        for step in (*steps, *(-n for n in steps)):
            found = np.where(found > 0, found, flat[left + step])
        flat[left] = found
        if not found.any():
            break
        left = left[found == 0]
    return padded[1:-1, 1:-1, 1:-1]


def largest(mask: np.ndarray) -> np.ndarray:
    """Return the largest piece of a mask (I, J, K); voxels belong together if they share a face."""
    pieces, count = ndimage.label(mask)
    if count < 2:
        return mask
    return pieces == np.bincount(pieces.ravel())[1:].argmax() + 1


def _small_pieces(mask: np.ndarray, share: float, *, corners: bool) -> np.ndarray:
    """Return the pieces of a mask (I, J, K) that have less than this share of the largest one's voxels.

    Voxels that share a face belong together; with `corners` also those that touch at a corner.
    """
    pieces, count = ndimage.label(mask, structure=np.ones((3, 3, 3)) if corners else None)
    if count < 2:
        return np.zeros_like(mask)
    sizes = np.bincount(pieces.ravel())
    sizes[0] = 0
    small = sizes < share * sizes.max()
    small[0] = False
    return small[pieces]


def filled(mask: np.ndarray, spacing: np.ndarray, gap: float) -> np.ndarray:
    """Return a mask (I, J, K) without holes and without gaps narrower than `gap` mm; `spacing` (3,) in mm."""
    box = _box_of(mask, margin=int(np.ceil(gap / spacing.min())) + 1)
    width = np.ceil(gap / spacing).astype(int)
    padded = np.pad(mask[box], [(n, n) for n in width])
    grown = ndimage.distance_transform_edt(~padded, spacing) <= gap / 2
    closed = ndimage.distance_transform_edt(grown, spacing) > gap / 2
    inner = tuple(slice(n, size - n) for n, size in zip(width, padded.shape, strict=True))
    out = mask.copy()
    out[box] |= ndimage.binary_fill_holes(closed | padded)[inner]
    return out


def without_outgrowths(mask: np.ndarray, spacing: np.ndarray, width: float) -> np.ndarray:
    """Return the largest piece of a mask (I, J, K) without what hangs on it by a bridge narrower than `width` mm."""
    box = _box_of(mask, margin=1)
    own = mask[box]
    core = largest(ndimage.distance_transform_edt(own, spacing) > width / 2)
    out = np.zeros_like(mask)
    out[box] = own & (ndimage.distance_transform_edt(~core, spacing) <= width / 2 + float(spacing.max()))
    return out


def _box_of(mask: np.ndarray, margin: int) -> tuple[slice, ...]:
    """Return the box around a mask, enlarged by `margin` voxels; the whole volume if the mask is empty."""
    box = ndimage.find_objects(mask.astype(np.uint8))
    if not box:
        return tuple(slice(0, size) for size in mask.shape)
    return tuple(
        slice(max(0, s.start - margin), min(size, s.stop + margin)) for s, size in zip(box[0], mask.shape, strict=True)
    )
