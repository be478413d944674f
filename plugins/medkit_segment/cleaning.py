"""Remove stray pieces from label maps, and close holes and gaps in masks."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

KEPT_SHARE = 0.2
"""Smallest piece of a structure that is kept, as a share of the voxels of its largest piece."""


def cleaned(labels: np.ndarray, *, connected: bool) -> np.ndarray:
    """Return labels (I, J, K) without small pieces that are separate from the rest of their structure.

    Such a piece takes the label of the nearest voxels that stay; if it touches no other structure, it becomes
    background. With `connected` all structures form one body, such as a brain, and only its largest piece stays.
    """
    out = np.where(largest(labels > 0), labels, 0).astype(labels.dtype) if connected else labels.copy()
    stray = np.zeros(out.shape, bool)
    for number, box in enumerate(ndimage.find_objects(out), start=1):
        if box is not None:
            stray[box] |= _small_pieces(out[box] == number)
    if stray.any():
        bodies, count = ndimage.label(out > 0)
        kept = np.bincount(bodies[(out > 0) & ~stray], minlength=count + 1) > 0
        out[~kept[bodies]] = 0
        out = _relabelled(out, stray & (out > 0))
    return out


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


def _small_pieces(mask: np.ndarray) -> np.ndarray:
    """Return the voxels in pieces smaller than `KEPT_SHARE`; voxels that touch at a corner belong together."""
    pieces, count = ndimage.label(mask, structure=np.ones((3, 3, 3)))
    if count < 2:
        return np.zeros_like(mask)
    sizes = np.bincount(pieces.ravel())
    small = sizes < KEPT_SHARE * sizes[1:].max()
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


def _box_of(mask: np.ndarray, margin: int) -> tuple[slice, ...]:
    """Return the box around a mask, enlarged by `margin` voxels; the whole volume if the mask is empty."""
    box = ndimage.find_objects(mask.astype(np.uint8))
    if not box:
        return tuple(slice(0, size) for size in mask.shape)
    return tuple(
        slice(max(0, s.start - margin), min(size, s.stop + margin)) for s, size in zip(box[0], mask.shape, strict=True)
    )
