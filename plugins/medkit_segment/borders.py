"""Borders that a CT shows by its Hounsfield units, drawn again on the scan's own voxels.

A network's labels are as coarse as its grid. Lungs and airway end where the air ends, bones where the dense tissue
ends. Next to consolidation or effusion a lung has no such border, so the network's border stays there. Volumes are
(I, J, K).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import ndimage

from medkit.errors import BundleError
from medkit_segment import shapes
from medkit_segment.cleaning import surrounded

_CORE = 1e-3
"""Smallest share of an organ's inside, near a voxel, that tells what the organ holds."""
_HOLDING = 0.05
"""Share of a piece of an organ that holds what the organ does, below which the piece may be something else."""
_TOUCHING = 0.2
"""Share of a piece's surface that touches an organ, from which on it belongs to it. Lost tips of lungs had 0.4, gas in
bowel below the diaphragm 0.02."""


@dataclass(frozen=True)
class Border:
    """How the border of organs is drawn again, as a bundle's metadata state it in `medkit.borders`."""

    labels: tuple[int, ...]
    """Labels of the organs."""
    around: int
    """Label of what surrounds them: the border may move into it, and it takes what an organ loses."""
    edge: float
    """HU of the border, about half-way between both sides."""
    dense: bool
    """Whether the organs lie above `edge`, as bones do, and not below, as air does."""
    band: float
    """mm; how far the border moves at most."""
    closed: float
    """mm; radius of the ball that closes notches, such as those of vessels, which stay in the organ."""
    core: float | None
    """HU; where the mean of an organ's inside near its border lies on the wrong side of it, the border stays."""
    attached: float | None = None
    """HU that organs surely hold, below or above it: which pieces are theirs (see `with_own_pieces`); None: unknown."""

    @classmethod
    def of(cls, stated: Mapping[str, Any]) -> Border:
        """Read one. Raises KeyError, TypeError and ValueError."""
        return cls(
            tuple(int(n) for n in stated["labels"]),
            int(stated["around"]),
            float(stated["edge"]),
            bool(stated["dense"]),
            float(stated["band"]),
            float(stated["closed"]),
            *(None if stated.get(key) is None else float(stated[key]) for key in ("core", "attached")),
        )

    def holds(self, values: np.ndarray) -> np.ndarray:
        """Return where intensities, HU, are those of the organs."""
        return values > self.edge if self.dense else values < self.edge


@dataclass(frozen=True)
class Borders:
    """All borders of a bundle that are drawn again, in this order."""

    unit: float
    """HU of an intensity of 1 in the image that the network sees."""
    borders: tuple[Border, ...]
    airway: int | None = None
    """Label of the airway, which grows from the trachea instead."""

    @classmethod
    def of(cls, block: Mapping[str, Any]) -> Borders | None:
        """Read them from a bundle's metadata `medkit`; None if they state none. Raises BundleError."""
        stated = block.get("borders")
        if stated is None:
            return None
        try:
            airway = None if stated.get("airway") is None else int(stated["airway"])
            return cls(float(stated["unit"]), tuple(Border.of(one) for one in stated["organs"]), airway)
        except (KeyError, TypeError, ValueError) as error:
            expected = "expected unit and organs, each with labels, around, edge, dense, band and closed"
            raise BundleError(f"medkit.borders: {expected}: {type(error).__name__}: {error}") from None


@dataclass(frozen=True)
class Movable:
    """Where a border may move."""

    gain: np.ndarray
    """The label that a voxel takes if its intensity is the organ's; 0: none. (I, J, K) uint8."""
    loss: np.ndarray
    """Whether a voxel leaves its organ if its intensity is not the organ's, (I, J, K) bool."""


def with_own_pieces(labels: np.ndarray, values: np.ndarray, border: Border) -> np.ndarray:
    """Return labels in which organs have the pieces that hang on them, and no others without what they hold.

    A piece that holds nothing of it, such as a part of the pelvis, goes if another one of its organ does; so a lung
    full of fluid stays. `values`: HU on the same grid.
    """
    if border.attached is None:
        return labels
    alike = values > border.attached if border.dense else values < border.attached
    out = labels.copy()
    for label in border.labels:
        pieces, count = ndimage.label(labels == label, np.ones((3, 3, 3)))
        share = ndimage.mean(alike, pieces, np.arange(count + 1)) if count > 1 else np.ones(1)
        strange = np.r_[False, share[1:] < _HOLDING]
        if strange.any() and not strange[1:].all():
            out[strange[pieces]] = border.around
    pieces, touching = surrounded(alike & (out == border.around), *(out == label for label in border.labels))
    where = (touching.max(0) >= _TOUCHING)[pieces]
    out[where] = np.array(border.labels, out.dtype)[touching.argmax(0)][pieces[where]]
    return out


def movable(labels: np.ndarray, values: np.ndarray, spacing: np.ndarray, border: Border) -> Movable:
    """Return where the border in `labels` may move; `values`: HU on the same grid, `spacing` (3,) in mm."""
    organ = np.isin(labels, border.labels)
    gain = np.zeros(labels.shape, np.uint8)
    loss = np.zeros(labels.shape, bool)
    if not organ.any():
        return Movable(gain, loss)
    box = shapes.box_of(organ, border.band + float(spacing.max()), spacing)
    own, inside, hu = labels[box], organ[box], values[box]
    distance, nearest = _nearest(own, inside, spacing, border)
    gain[box] = np.where((distance <= border.band) & (own == border.around), nearest, 0)
    depth = ndimage.distance_transform_edt(inside, spacing)
    may_lose = inside & (depth <= border.band)
    if border.core is not None:
        may_lose &= _as_the_organ(inside & (depth > border.band), hu, spacing, border, border.core)
    loss[box] = may_lose & ~_notches(own, hu, gain[box], may_lose, spacing, border)
    return Movable(gain, loss)


def _nearest(
    labels: np.ndarray, inside: np.ndarray, spacing: np.ndarray, border: Border
) -> tuple[np.ndarray, np.ndarray | int]:
    """Return the distance of each voxel to the nearest organ, mm, and the label of that organ."""
    if len(border.labels) == 1:
        return ndimage.distance_transform_edt(~inside, spacing), border.labels[0]
    distance, place = ndimage.distance_transform_edt(~inside, spacing, return_indices=True)
    return distance, labels[tuple(place)]


def _as_the_organ(core: np.ndarray, values: np.ndarray, spacing: np.ndarray, border: Border, edge: float) -> np.ndarray:
    """Return whether the organ's inside near a voxel has a mean intensity on the organ's side of `edge`."""
    width = 2 * border.band / spacing
    weight = ndimage.gaussian_filter(core.astype(np.float32), width)
    total = ndimage.gaussian_filter(np.where(core, values, 0).astype(np.float32), width)
    known = weight > _CORE
    mean = np.divide(total, weight, out=np.zeros_like(total), where=known)
    return known & (mean > edge if border.dense else mean < edge)


def _notches(
    labels: np.ndarray, values: np.ndarray, gain: np.ndarray, may_lose: np.ndarray, spacing: np.ndarray, border: Border
) -> np.ndarray:
    """Return the notches and holes of the organs after they have lost what is not theirs."""
    holds = border.holds(values)
    out = np.zeros(labels.shape, bool)
    for label in border.labels:
        moved = ((labels == label) & (holds | ~may_lose)) | ((gain == label) & holds)
        out |= shapes.closed(moved, spacing, border.closed) & ~moved
    return out


def redraw(labels: np.ndarray, where: Movable, values: np.ndarray, border: Border) -> None:
    """Move a border in `labels`; all arrays on the scan's grid, `values` in HU."""
    order = np.argsort(labels.strides)[::-1]
    planes = [array.transpose(order) for array in (labels, where.gain, where.loss, values)]
    for own, gain, loss, hu in zip(*planes, strict=True):
        near = np.nonzero((gain > 0) | loss)  # few voxels, so the order of the values in memory does not matter
        if len(near[0]):
            before, taken, holds = own[near], gain[near], border.holds(hu[near])
            after = np.where((taken > 0) & holds & (before == border.around), taken, before)
            own[near] = np.where(loss[near] & ~holds, border.around, after)
