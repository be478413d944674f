"""Methods that find bias fields without a network: N4, and homomorphic filtering."""

from __future__ import annotations

import importlib
import math
from typing import Any

import numpy as np

from medkit.scanner import span
from medkit_enhance.fourier import filtered

WEAK = 0.04
"""Standard deviation of a field's logarithm, over the foreground, below which the image is left unchanged: in images
whose field was removed before, up to 0.038 is found (ten real heads)."""
LEVELS, ITERATIONS = 4, 50
"""N4: number of levels, each with twice as many meshes as the previous one, and iterations per level."""
MESH = 4
"""N4: smallest number of voxels of the shrunk image along a mesh; small images have fewer levels."""
CONVERGENCE = 1e-3
"""N4: change of the field below which a level ends."""
SHRINK = 4
"""N4: voxels along each axis that are averaged to one, since a field changes slowly."""
SMALLEST = 12
"""N4: smallest number of voxels along an axis of the averaged image."""
WIDTH = 25.0
"""Homomorphic filter: standard deviation, in mm, of the Gaussian whose result counts as slow changes."""


def foreground(values: np.ndarray) -> np.ndarray:
    """Return which voxels are brighter than half the threshold of Otsu (1979), so that dark tissue is included."""
    from skimage.filters import threshold_otsu

    low, high = span(values)
    some = np.clip(values.ravel()[:: 1 + values.size // 500_000], low, high)
    mask: np.ndarray = values > low + (float(threshold_otsu(some)) - low) / 2
    return mask


def strength(log_field: np.ndarray, values: np.ndarray) -> float:
    """Return the standard deviation of a field's logarithm over the foreground; both are (I, J, K) or (I, J)."""
    return float(log_field[foreground(values)].std())


def corrected(values: np.ndarray, log_field: np.ndarray) -> np.ndarray:
    """Return the image divided by its field; the foreground keeps its mean."""
    mask = foreground(values)
    out = values * np.exp(-log_field)
    return (out * (values[mask].mean() / out[mask].mean())).astype(np.float32)


def by_n4(values: np.ndarray, spacing: np.ndarray, threads: int) -> np.ndarray:
    """Return the log bias field, float32, of an image (I, J, K) or (I, J), by itk's N4 (Tustison et al. 2010)."""
    factors = [max(1, min(SHRINK, size // SMALLEST)) for size in values.shape]
    small = _shrunk(values, factors)
    floor = max(float(small.max()), 1e-6) * 1e-3
    mask = foreground(small) & (small > floor)
    small = np.maximum(small, floor)  # N4 takes logarithms, and the field is computed as a quotient
    bias = _n4(small, mask, threads)
    log_field = np.log(small) - np.log(np.maximum(bias, 1e-12))
    inside = log_field[mask]
    log_field = np.clip(log_field, inside.min(), inside.max())  # outside the mask it is extrapolated
    return _enlarged(log_field - inside.mean(), values.shape, factors)


def _n4(image: np.ndarray, mask: np.ndarray, threads: int) -> np.ndarray:
    """Return the image that itk's filter has corrected."""
    import itk

    # `itk.N4BiasFieldCorrectionImageFilter` loads the code for all types of images: 17 s instead of 3
    module = importlib.import_module("itk.itkN4BiasFieldCorrectionImageFilterPython")
    dims = image.ndim
    levels = max(1, min(LEVELS, 1 + int(math.log2(max(1, min(image.shape) / MESH)))))
    name = f"itkN4BiasFieldCorrectionImageFilterIF{dims}IUC{dims}IF{dims}"
    n4: Any = getattr(module, name).New()
    n4.SetInput(itk.image_from_array(np.ascontiguousarray(image, np.float32)))
    n4.SetMaskImage(itk.image_from_array(np.ascontiguousarray(mask, np.uint8)))
    n4.SetUseMaskLabel(False)
    n4.SetMaximumNumberOfIterations([ITERATIONS] * levels)
    n4.SetNumberOfFittingLevels(levels)
    n4.SetConvergenceThreshold(CONVERGENCE)
    n4.SetNumberOfWorkUnits(threads)
    n4.Update()
    out: np.ndarray = itk.array_from_image(n4.GetOutput())
    return out


def _shrunk(values: np.ndarray, factors: list[int]) -> np.ndarray:
    """Return means over blocks of `factors` voxels; incomplete blocks at the ends of axes are left out."""
    out = values.astype(np.float32, copy=False)
    for axis, factor in enumerate(factors):
        count = out.shape[axis] // factor
        shape = (*out.shape[:axis], count, factor, *out.shape[axis + 1 :])
        out = out.take(range(count * factor), axis).reshape(shape).mean(axis + 1)
    return out


def _enlarged(values: np.ndarray, shape: tuple[int, ...], factors: list[int]) -> np.ndarray:
    """Return the inverse of `_shrunk`: linear between the middles of blocks, constant beyond the outermost."""
    out = values.astype(np.float32)
    for axis, (size, factor) in enumerate(zip(shape, factors, strict=True)):
        at = np.clip((np.arange(size) + 0.5) / factor - 0.5, 0, values.shape[axis] - 1)
        below = np.minimum(at.astype(int), max(values.shape[axis] - 2, 0))
        share = (at - below).astype(np.float32).reshape(-1, *[1] * (out.ndim - axis - 1))
        above = np.minimum(below + 1, values.shape[axis] - 1)
        out = out.take(below, axis) * (1 - share) + out.take(above, axis) * share
    return out


def by_homomorphic(values: np.ndarray, spacing: np.ndarray) -> np.ndarray:
    """Return the logarithm of the illumination (Oppenheim et al. 1968) of an image (I, J, K) or (I, J), float32.

    It is what a Gaussian in Fourier space leaves of the logarithm of the foreground; `spacing` (n,) is in mm.
    """
    mask = foreground(values)
    logs = np.log(np.maximum(values.astype(np.float32), span(values)[1] * 1e-3)) * mask
    weight = _low_pass(mask.astype(np.float32), spacing)
    field = _low_pass(logs.astype(np.float32), spacing) / np.maximum(weight, 1e-3)
    out: np.ndarray = (field - field[mask].mean()).astype(np.float32)
    return out


def _low_pass(values: np.ndarray, spacing: np.ndarray) -> np.ndarray:
    return filtered(values, spacing, lambda frequency: np.exp(-0.5 * (2 * math.pi * WIDTH * frequency) ** 2))
