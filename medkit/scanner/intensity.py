"""Statistics of intensities: the scale on which networks are given images, and Otsu's threshold."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch

SHARE = 0.99
"""Share of the bright voxels that do not exceed the scale."""
STRIDE = 7
"""Every seventh voxel is used: enough for a percentile, in a seventh of the time."""
LEAST = 1e-6
"""Lower bound of the scale, so that images can be divided by it."""


def intensity_scale(image: torch.Tensor) -> torch.Tensor:
    """Return the 99th percentile of the voxels that are brighter than 0, a scalar tensor; 1 if no voxel is.

    Networks are trained on images divided by this number, so inference has to divide by the same one. Bundles whose
    configs run without medkit hold an expression of their own for it; a test compares them with this function.

    image: of any shape, on any device.
    """
    values = image.reshape(-1)[::STRIDE]
    values = values[values > 0]
    if not len(values):
        return image.new_ones(())
    return values.kthvalue(max(1, round(SHARE * len(values)))).values.clamp_min(LEAST)


def otsu_threshold(values: np.ndarray, bins: int = 256) -> float:
    """Return the threshold that separates values (N,) best into two classes (Otsu 1979); of a constant, the constant.

    Between two separate classes it is the middle of the gap. Without values it is 0.
    """
    if len(values) == 0 or values.min() == values.max():
        return float(values[0]) if len(values) else 0.0
    counts, edges = np.histogram(values, bins=bins)
    centres = (edges[1:] + edges[:-1]) / 2
    below = np.cumsum(counts)[:-1].astype(float)
    above = np.maximum(counts.sum() - below, 1)
    total = np.cumsum(counts * centres)
    between = below * above * (total[:-1] / below - (total[-1] - total[:-1]) / above) ** 2
    return float(edges[1:-1][between >= (1 - 1e-9) * between.max()].mean())
