"""Methods that remove noise without a network: non-local means and BM4D."""

from __future__ import annotations

import math

import numpy as np

from medkit.errors import InputError, size_text
from medkit.scanner import Noise, without_floor

PATCH, DISTANCE = 5, 3
"""Side of the patches that are compared, and largest distance between their voxels, both in voxels."""
STRENGTH = 0.6
"""Cut-off of the difference between patches, in standard deviations of the noise (Buades et al. 2011)."""
SLAB = 64
"""Slices computed at once, which bounds the memory: it is several times that of the slices."""


def by_nlm(values: np.ndarray, noise: Noise) -> np.ndarray:
    """Return the non-local means (Buades et al. 2005; scikit-image) of an image (I, J, K) or (I, J), float32.

    They are computed in slabs that overlap by all that a voxel depends on, so that there are no seams.
    """
    from skimage.restoration import denoise_nl_means

    reach = DISTANCE + PATCH // 2 + 1
    out = np.empty(values.shape, np.float32)
    size = len(values)
    slabs = max(1, math.ceil(size / SLAB)) if values.ndim == 3 else 1
    for n in range(slabs):
        start, end = size * n // slabs, size * (n + 1) // slabs
        first, last = max(0, start - reach), min(size, end + reach)
        smooth = denoise_nl_means(
            values[first:last].astype(np.float32) / noise.sigma,
            patch_size=PATCH, patch_distance=DISTANCE, h=STRENGTH, sigma=1.0, fast_mode=True,
        )  # fmt: skip
        out[start:end] = smooth[start - first : len(smooth) - (last - end)]
    return without_floor(out * noise.sigma, noise)


def by_bm4d(values: np.ndarray, noise: Noise) -> np.ndarray:
    """Return a volume (I, J, K) after BM4D (Maggioni et al. 2013; the package bm4d), float32.

    Raises InputError for a plane.
    """
    from bm4d import bm4d  # type: ignore[import-not-found]

    if values.ndim != 3:
        raise InputError(f"bm4d: expected a volume, got a plane of {size_text(values.shape)} pixels")
    return without_floor(bm4d(values.astype(np.float32), noise.sigma).astype(np.float32), noise)
