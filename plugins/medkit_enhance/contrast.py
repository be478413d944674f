"""Contrast strengthened: CLAHE, local gamma, and filters in Fourier space.

All take an image (I, J, K) or (I, J) and give float32 within the range that the image had.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from medkit.scanner import span

CLIP = 0.01
"""CLAHE's limit on a bin of a local histogram, as a share of the region's voxels."""
REGIONS = 8
"""Regions along each axis that have a histogram of their own."""
NEIGHBOURHOOD = 20.0
"""mm: standard deviation of the Gaussian that says how bright a voxel's surroundings are."""
CUTOFF = 25.0
"""mm: details smaller than this are strengthened."""
ORDER = 2
"""Of the Butterworth filter."""
GAIN = 1.6
"""Factor on details."""
SHADE = 0.6
"""Factor on the logarithm of slow changes in the homomorphic filter."""


def _unit(values: np.ndarray) -> tuple[np.ndarray, float, float]:
    """The image on a scale of 0 to 1, and what these were."""
    low, high = span(values)
    return np.clip((values.astype(np.float32) - low) / (high - low or 1.0), 0, 1), low, high


def by_clahe(values: np.ndarray, spacing: np.ndarray) -> np.ndarray:
    """Contrast limited adaptive histogram equalisation (Zuiderveld 1994; scikit-image)."""
    from skimage.exposure import equalize_adapthist

    unit, low, high = _unit(values)
    regions = tuple(max(4, math.ceil(size / REGIONS)) for size in values.shape)
    out = equalize_adapthist(unit, kernel_size=regions, clip_limit=CLIP).astype(np.float32)
    return out * (high - low) + low


def by_gamma(values: np.ndarray, spacing: np.ndarray) -> np.ndarray:
    """Local gamma: 2^(2 m - 1) for surroundings of brightness m, so dark ones are lightened (Moroney 2000)."""
    from scipy.ndimage import gaussian_filter

    unit, low, high = _unit(values)
    around = gaussian_filter(unit, NEIGHBOURHOOD / spacing, mode="nearest")
    return unit ** (2 ** (2 * around - 1)) * (high - low) + low


def by_butterworth(values: np.ndarray, spacing: np.ndarray) -> np.ndarray:
    """Details smaller than 25 mm strengthened by a Butterworth filter of order 2."""
    unit, low, high = _unit(values)
    out = filtered(unit, spacing, lambda f: 1 + (GAIN - 1) * _butterworth(f))
    return np.clip(out, 0, 1) * (high - low) + low


def by_homomorphic(values: np.ndarray, spacing: np.ndarray) -> np.ndarray:
    """Slow changes of the logarithm weakened, details strengthened (Oppenheim et al. 1968)."""
    unit, low, high = _unit(values)
    logs = np.log1p(unit * 255) / math.log(256)
    changed = filtered(logs, spacing, lambda f: SHADE + (GAIN - SHADE) * _butterworth(f))
    # the mean brightness went down with the slow changes
    changed = np.clip(changed + (1 - SHADE) * float(logs.mean()), 0, 1)
    return np.expm1(changed * math.log(256)).astype(np.float32) / 255 * (high - low) + low


def _butterworth(frequency: np.ndarray) -> np.ndarray:
    """0 for slow changes, 1 for fast ones; `frequency` per mm."""
    power = (frequency * CUTOFF) ** (2 * ORDER)
    out: np.ndarray = power / (1 + power)
    return out


def filtered(values: np.ndarray, spacing: np.ndarray, gain: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """An image times `gain` in Fourier space, float32; gain is a function of the frequency per mm.

    The image goes on as in a mirror for up to 60 mm on each side, so that opposite ends do not meet.
    """
    from scipy import fft

    values = values.astype(np.float32, copy=False)
    room = [min(size - 1, round(60 / mm)) for size, mm in zip(values.shape, spacing, strict=True)]
    sizes = [fft.next_fast_len(size + 2 * more, real=True) for size, more in zip(values.shape, room, strict=True)]
    ends = [(m, n - size - m) for m, n, size in zip(room, sizes, values.shape, strict=True)]
    wide = np.pad(values, ends, mode="symmetric")
    axes = [np.fft.fftfreq(n, mm) for n, mm in zip(sizes[:-1], spacing[:-1], strict=True)]
    axes.append(np.fft.rfftfreq(sizes[-1], spacing[-1]))
    squares = sum(np.meshgrid(*[(axis**2).astype(np.float32) for axis in axes], indexing="ij", sparse=True))
    spectrum = fft.rfftn(wide, overwrite_x=True)
    spectrum *= gain(np.sqrt(squares)).astype(np.float32)
    out = fft.irfftn(spectrum, wide.shape, overwrite_x=True)
    inside = tuple(slice(m, m + size) for m, size in zip(room, values.shape, strict=True))
    return np.ascontiguousarray(out[inside], np.float32)
