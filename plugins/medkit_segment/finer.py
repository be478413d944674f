"""Labels of the working copy, drawn again on the scan's own voxels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
from scipy import ndimage

from medkit_segment.lungs import EDGE
from medkit_segment.structures import BODY, LUNG_LEFT, LUNG_RIGHT
from medkit_segment.upright import in_memory

if TYPE_CHECKING:
    from medkit_segment.lungs import Lungs


def refined(coarse: np.ndarray, found: Lungs, values: np.ndarray, factors: np.ndarray) -> np.ndarray:
    """Return labels (I, J, K) uint8 on finer voxels `values`, HU, each a share 1 / `factors` of a coarse one."""
    if (factors == 1).all():
        return coarse
    lung = (coarse == LUNG_LEFT) | (coarse == LUNG_RIGHT)
    around = ndimage.binary_dilation(lung) & ((coarse == BODY) | (coarse == 0))
    gain = np.where(around, ndimage.grey_dilation(np.where(lung, coarse, 0), size=(3, 3, 3)), 0).astype(np.uint8)
    # voxels closed or filled stay as they are; only the threshold's border is drawn again
    loss = lung & found.air & ~ndimage.binary_erosion(lung, border_value=1)
    order = in_memory(values)
    turned = [np.ascontiguousarray(array.transpose(order)) for array in (coarse, gain, loss)]
    slabs = _slabs(turned, values.transpose(order), factors[order])
    return np.concatenate([_redrawn(slab, *parts) for slab, parts in slabs]).transpose(np.argsort(order))


def _redrawn(values: np.ndarray, out: np.ndarray, gains: np.ndarray, losses: np.ndarray) -> np.ndarray:
    """Return labels with lung gained where there is air, and lost where there is none; all (i, J, K)."""
    air = values < EDGE
    np.copyto(out, gains, where=(gains > 0) & air)
    out[losses & ~air] = BODY
    return out


def _slabs(
    coarse: Sequence[np.ndarray], values: np.ndarray, factors: np.ndarray
) -> Iterator[tuple[np.ndarray, list[np.ndarray]]]:
    """Yield parts of the fine voxels along the first axis, with the coarse arrays spread over them."""
    step = int(factors[0])
    for place in range(coarse[0].shape[0]):
        slab = values[place * step : (place + 1) * step]
        yield slab, [_spread(array[place : place + 1], factors, slab.shape) for array in coarse]


def _spread(array: np.ndarray, factors: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    for axis, factor in enumerate(int(f) for f in factors):
        array = np.repeat(array, factor, axis)
    return array[tuple(slice(0, size) for size in shape)]
