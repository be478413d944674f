"""What a person should look at in the lungs that were found."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from medkit_segment.lungs import Lungs
    from medkit_segment.upright import Upright

CUT_MM2 = 400.0
"""Area of a lung on a border of the field of view above which it counts as cut off."""
BOTH_L = (1.0, 9.5)
"""Litres that two whole lungs of adults can have."""
UNEQUAL = 0.55
"""Smallest usual share of the smaller lung's volume in the larger one's."""
ONE_LUNG = 0.05
"""Share below which there is only one lung."""


def of_lungs(scan: Upright, found: Lungs) -> list[str]:
    """Return the doubts in phrases; empty if there are none."""
    return list(_doubts(scan, found))


def _doubts(scan: Upright, found: Lungs) -> Iterator[str]:
    volumes = {"left": scan.size(found.left) / 1000, "right": scan.size(found.right) / 1000}
    cut = [side for side in volumes if _cut_off(getattr(found, side), found.padding, scan.spacing)]
    if cut:
        yield f"{' and '.join(cut)} lung cut off by the field of view"
    small, large = sorted(volumes, key=lambda side: volumes[side])
    if volumes[small] < ONE_LUNG * volumes[large]:
        yield f"only one lung was found, the {large} one"
    elif volumes[small] < UNEQUAL * volumes[large] and not cut:
        yield f"{small} lung {volumes[small]:.1f} l, {large} lung {volumes[large]:.1f} l"
    total = sum(volumes.values())
    if total > BOTH_L[1] or (total < BOTH_L[0] and not cut):
        yield f"{total:.1f} l of lung, expected {BOTH_L[0]:g} to {BOTH_L[1]:g} l"
    if found.odd:
        yield f"{found.odd:.0f} ml of it in pieces that may be bowel"
    top = np.flatnonzero((found.left | found.right).any((0, 1)))[-1]
    if not found.airway.any() and (scan.values.shape[2] - 1 - top) * scan.spacing[2] > 20:
        yield "no trachea was found"


def _cut_off(lung: np.ndarray, padding: np.ndarray, spacing: np.ndarray) -> bool:
    """Return whether a lung lies at a border of the volume, or of a round field of view."""
    for axis in range(3):
        area = float(np.prod(np.delete(spacing, axis)))
        if any(np.count_nonzero(np.take(lung, end, axis)) * area > CUT_MM2 for end in (0, -1)):
            return True
        beside = (lung & np.roll(padding, 1, axis)) | (lung & np.roll(padding, -1, axis))
        if np.count_nonzero(beside) * area > CUT_MM2:
            return True
    return False
