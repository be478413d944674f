"""Filters in Fourier space."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

MIRROR = 60.0
"""mm by which an image is mirrored on each side, so that opposite ends do not mix."""


def filtered(values: np.ndarray, spacing: np.ndarray, gain: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """Return an image (I, J, K) or (I, J) times `gain` in Fourier space, float32.

    `spacing` (n,) is in mm; `gain` is a function of the frequency per mm.
    """
    from scipy import fft

    values = values.astype(np.float32, copy=False)
    room = [min(size - 1, round(MIRROR / mm)) for size, mm in zip(values.shape, spacing, strict=True)]
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
