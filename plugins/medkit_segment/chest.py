"""Lungs, airway, bones and body of a CT of the chest, by Hounsfield units and shape: `--method threshold`.

The work is done on an upright, coarser copy of the scan: axes towards the right, the front and the head (RAS+), voxels
of about `STEP` mm. The borders of lungs are then drawn again on the scan's own voxels.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from medkit.errors import InputError
from medkit_segment import bones, doubts, finer, lungs
from medkit_segment.structures import AIRWAY, BODY, BONES, LUNG_LEFT, LUNG_RIGHT
from medkit_segment.upright import Upright, midline_of, shrunk, turned_back, upright

if TYPE_CHECKING:
    from medkit.images import Image

FEWEST = 4
"""Fewest voxels along each axis."""
STEP = 2.0
"""mm; about the finest voxel of the working copy."""


@dataclass(frozen=True)
class Chest:
    """The labels of a chest, and what is doubtful about them."""

    labels: np.ndarray
    """(I, J, K) uint8 on the scan's own grid, numbers of `medkit_segment.structures.CHEST_LABELS`."""
    doubts: list[str] = field(default_factory=list)
    """What a person should look at, in phrases."""


def chest_labels(image: Image) -> Chest:
    """Return the structures of a chest in a CT of any orientation, spacing and field of view.

    Raises InputError if there is no lung in it.
    """
    if min(image.grid.shape) < FEWEST:
        raise InputError(f"expected a volume of the chest, got {' x '.join(map(str, image.grid.shape))} voxels")
    turn, values, affine = upright(image)
    spacing = np.sqrt((affine[:3, :3] ** 2).sum(0))
    factors = np.maximum(1, np.round(STEP / spacing)).astype(int)
    scan = Upright(shrunk(values, factors), spacing * factors, midline_of(affine, values.shape) / factors[0])
    found = lungs.find(scan)
    if found is None:
        raise InputError("expected a CT of the chest, found no lung in it")
    coarse = np.zeros(scan.values.shape, np.uint8)
    coarse[found.body] = BODY
    coarse[bones.find(scan, found)] = BONES
    coarse[found.airway] = AIRWAY
    coarse[found.left], coarse[found.right] = LUNG_LEFT, LUNG_RIGHT
    labels = finer.refined(coarse, found, values, factors)
    return Chest(turned_back(labels, turn), doubts.of_lungs(scan, found))
