"""Bias fields found without a network: N4, and homomorphic filtering."""

from __future__ import annotations

import importlib
import math
from typing import Any

import numpy as np

from medkit.scanner import span

WEAK = 0.04
"""Standard deviation of the logarithm of a field, over the foreground, below which it is left alone: of images whose
field was taken away, up to 0.038 is found once more (ten real heads)."""
LEVELS, ITERATIONS = 4, 50
"""N4's levels, each with twice the meshes of the one before, and the iterations of each."""
MESH = 4
"""Voxels of the shrunk image along a mesh at least: small images get fewer levels."""
CONVERGENCE = 1e-3
SHRINK = 4
"""Voxels that N4 takes for one: a field changes slowly."""
SMALLEST = 12
"""Voxels that are left along an axis at least."""
WIDTH = 25.0
"""mm: standard deviation of the Gaussian that is the homomorphic filter's notion of slow."""


def foreground(values: np.ndarray) -> np.ndarray:
    """What is brighter than the threshold that parts an image best in two (Otsu 1979), halved: dark tissue is seen."""
    from skimage.filters import threshold_otsu

    low, high = span(values)
    some = np.clip(values.ravel()[:: 1 + values.size // 500_000], low, high)
    mask: np.ndarray = values > low + (float(threshold_otsu(some)) - low) / 2
    return mask


def strength(field: np.ndarray, values: np.ndarray) -> float:
    """Standard deviation over the foreground of a field's logarithm (both (I, J, K) or (I, J))."""
    return float(field[foreground(values)].std())


def corrected(values: np.ndarray, field: np.ndarray) -> np.ndarray:
    """The image over its field, whose logarithm is given; the foreground keeps its mean."""
    mask = foreground(values)
    out = values * np.exp(-field)
    return (out * (values[mask].mean() / out[mask].mean())).astype(np.float32)


def by_n4(values: np.ndarray, spacing: np.ndarray, threads: int) -> np.ndarray:
    """The logarithm of the bias field (N4, Tustison et al. 2010; itk) of an image (I, J, K) or (I, J), float32."""
    factors = [max(1, min(SHRINK, size // SMALLEST)) for size in values.shape]
    small = _shrunk(values, factors)
    floor = max(float(small.max()), 1e-6) * 1e-3
    mask = foreground(small) & (small > floor)
    small = np.maximum(small, floor)  # N4 takes logarithms, and the field is found as a quotient
    bias = _n4(small, mask, threads)
    log_field = np.log(small) - np.log(np.maximum(bias, 1e-12))
    inside = log_field[mask]
    log_field = np.clip(log_field, inside.min(), inside.max())  # beyond the mask it is extrapolated
    return _enlarged(log_field - inside.mean(), values.shape, factors)


def _n4(image: np.ndarray, mask: np.ndarray, threads: int) -> np.ndarray:
    """The corrected image of itk's filter."""
    import itk

    # `itk.N4BiasFieldCorrectionImageFilter` loads all that any type of image could need: 17 s where this takes 3
    module = importlib.import_module("itk.itkN4BiasFieldCorrectionImageFilterPython")
    dims = image.ndim
    levels = max(1, min(LEVELS, 1 + int(math.log2(max(1, min(image.shape) / MESH)))))
    name = f"itkN4BiasFieldCorrectionImageFilterIF{dims}IUC{dims}IF{dims}"
    found: Any = getattr(module, name).New()
    found.SetInput(itk.image_from_array(np.ascontiguousarray(image, np.float32)))
    found.SetMaskImage(itk.image_from_array(np.ascontiguousarray(mask, np.uint8)))
    found.SetUseMaskLabel(False)
    found.SetMaximumNumberOfIterations([ITERATIONS] * levels)
    found.SetNumberOfFittingLevels(levels)
    found.SetConvergenceThreshold(CONVERGENCE)
    found.SetNumberOfWorkUnits(threads)
    found.Update()
    out: np.ndarray = itk.array_from_image(found.GetOutput())
    return out


def _shrunk(values: np.ndarray, factors: list[int]) -> np.ndarray:
    """Means over blocks; what is left over at the ends of axes is left out."""
    out = values.astype(np.float32, copy=False)
    for axis, factor in enumerate(factors):
        count = out.shape[axis] // factor
        shape = (*out.shape[:axis], count, factor, *out.shape[axis + 1 :])
        out = out.take(range(count * factor), axis).reshape(shape).mean(axis + 1)
    return out


def _enlarged(values: np.ndarray, shape: tuple[int, ...], factors: list[int]) -> np.ndarray:
    """The inverse of `_shrunk`: linear between the middles of blocks, constant beyond the outermost."""
    out = values.astype(np.float32)
    for axis, (size, factor) in enumerate(zip(shape, factors, strict=True)):
        at = np.clip((np.arange(size) + 0.5) / factor - 0.5, 0, values.shape[axis] - 1)
        below = np.minimum(at.astype(int), max(values.shape[axis] - 2, 0))
        share = (at - below).astype(np.float32).reshape(-1, *[1] * (out.ndim - axis - 1))
        above = np.minimum(below + 1, values.shape[axis] - 1)
        out = out.take(below, axis) * (1 - share) + out.take(above, axis) * share
    return out


def by_homomorphic(values: np.ndarray, spacing: np.ndarray) -> np.ndarray:
    """The logarithm of the illumination (Oppenheim et al. 1968) of an image (I, J, K) or (I, J), float32.

    What changes slowly in the logarithm of the foreground, found by a Gaussian in Fourier space; `spacing` (n,) mm.
    """
    mask = foreground(values)
    logs = np.log(np.maximum(values.astype(np.float32), span(values)[1] * 1e-3)) * mask
    weight = _low_pass(mask.astype(np.float32), spacing)
    field = _low_pass(logs.astype(np.float32), spacing) / np.maximum(weight, 1e-3)
    out: np.ndarray = (field - field[mask].mean()).astype(np.float32)
    return out


def _low_pass(values: np.ndarray, spacing: np.ndarray) -> np.ndarray:
    from medkit_enhance.contrast import filtered

    return filtered(values, spacing, lambda frequency: np.exp(-0.5 * (2 * math.pi * WIDTH * frequency) ** 2))
