"""Methods that strengthen contrast: CLAHE, local gamma, and filters in Fourier space.

All take an image (I, J, K) or (I, J) and its spacing (n,) in mm, and return float32 within the range of the image.
"""

from __future__ import annotations

import math

import numpy as np

from medkit.scanner import span
from medkit_enhance.fourier import filtered

CLIP = 0.01
"""CLAHE: limit on a bin of a local histogram, as a share of the region's voxels."""
REGIONS = 8
"""CLAHE: regions along each axis, each with a histogram."""
NEIGHBOURHOOD = 20.0
"""Local gamma: standard deviation, in mm, of the Gaussian that measures the brightness of a voxel's surroundings."""
CUTOFF = 25.0
"""Butterworth and homomorphic filters: details smaller than this, in mm, are strengthened."""
ORDER = 2
"""Order of the Butterworth filter."""
GAIN = 1.6
"""Butterworth and homomorphic filters: factor on details."""
SHADE = 0.6
"""Homomorphic filter: factor on slow changes of the logarithm."""


def _unit(values: np.ndarray) -> tuple[np.ndarray, float, float]:
    """Return the image on a scale of 0 to 1, and the intensities that became 0 and 1."""
    low, high = span(values)
    return np.clip((values.astype(np.float32) - low) / (high - low or 1.0), 0, 1), low, high


def by_clahe(values: np.ndarray, spacing: np.ndarray) -> np.ndarray:
    """Return the image after contrast limited adaptive histogram equalisation (Zuiderveld 1994; scikit-image)."""
    from skimage.exposure import equalize_adapthist

    unit, low, high = _unit(values)
    regions = tuple(max(4, math.ceil(size / REGIONS)) for size in values.shape)
    out = equalize_adapthist(unit, kernel_size=regions, clip_limit=CLIP).astype(np.float32)
    return out * (high - low) + low


def by_gamma(values: np.ndarray, spacing: np.ndarray) -> np.ndarray:
    """Return the image with a local gamma of 2^(2 m - 1) for surroundings of brightness m (Moroney 2000).

    Dark surroundings become lighter.
    """
    from scipy.ndimage import gaussian_filter

    unit, low, high = _unit(values)
    around = gaussian_filter(unit, NEIGHBOURHOOD / spacing, mode="nearest")
    return unit ** (2 ** (2 * around - 1)) * (high - low) + low


def by_butterworth(values: np.ndarray, spacing: np.ndarray) -> np.ndarray:
    """Return the image with details smaller than 25 mm strengthened by a Butterworth filter of order 2."""
    unit, low, high = _unit(values)
    out = filtered(unit, spacing, lambda f: 1 + (GAIN - 1) * _butterworth(f))
    return np.clip(out, 0, 1) * (high - low) + low


def by_homomorphic(values: np.ndarray, spacing: np.ndarray) -> np.ndarray:
    """Return the image with slow changes of the logarithm weakened and details strengthened (Oppenheim et al. 1968)."""
    unit, low, high = _unit(values)
    logs = np.log1p(unit * 255) / math.log(256)
    changed = filtered(logs, spacing, lambda f: SHADE + (GAIN - SHADE) * _butterworth(f))
    # restore the mean brightness, which fell with the slow changes
    changed = np.clip(changed + (1 - SHADE) * float(logs.mean()), 0, 1)
    return np.expm1(changed * math.log(256)).astype(np.float32) / 255 * (high - low) + low


def _butterworth(frequency: np.ndarray) -> np.ndarray:
    """Return 0 for slow changes and 1 for fast ones; `frequency` is per mm."""
    power = (frequency * CUTOFF) ** (2 * ORDER)
    out: np.ndarray = power / (1 + power)
    return out
