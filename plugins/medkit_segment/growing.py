"""Region growing from seeds: ITK's connected threshold and confidence connected filters."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import ndimage

MULTIPLIER = 2.5
"""Standard deviations around the mean that the automatic range spans."""
ITERATIONS = 4
"""How often the automatic range is computed again from the region that has grown."""
RADIUS = 2
"""Voxels around each seed from which the first range is computed, along each axis."""


@dataclass(frozen=True)
class Grown:
    """A region."""

    mask: np.ndarray
    """(I, J, K) bool."""
    limits: tuple[float, float]
    """The values that it took in."""


def connected(values: np.ndarray, seeds: np.ndarray, limits: tuple[float, float]) -> np.ndarray:
    """Return the voxels (I, J, K) within `limits` that hang together with a seed by shared faces.

    seeds: (N, 3) voxel indices; those outside of `limits` grow nothing.
    """
    pieces, count = ndimage.label((values >= limits[0]) & (values <= limits[1]))
    grown = np.zeros(count + 1, bool)
    grown[pieces[tuple(seeds.T)]] = True
    grown[0] = False
    out: np.ndarray = grown[pieces]
    return out


def grow(values: np.ndarray, seeds: np.ndarray, limits: tuple[float, float] | None) -> Grown:
    """Grow a region in an image (I, J, K) from seeds, (N, 3) voxel indices, and fill its holes.

    limits: lowest and highest value to take in; None: the mean and `MULTIPLIER` standard deviations of the region.
    """
    automatic = limits is None
    grower = _filter("ConfidenceConnected" if automatic else "ConnectedThreshold", values, seeds)
    if limits is None:
        grower.SetMultiplier(MULTIPLIER)
        grower.SetNumberOfIterations(ITERATIONS)
        grower.SetInitialNeighborhoodRadius(RADIUS)
    else:
        grower.SetLower(float(np.clip(limits[0], -1e30, 1e30)))
        grower.SetUpper(float(np.clip(limits[1], -1e30, 1e30)))
    grower.SetReplaceValue(1)
    grower.Update()
    mask = _array(grower) > 0
    if limits is None:
        mean, spread = float(grower.GetMean()), float(grower.GetVariance()) ** 0.5
        limits = (mean - MULTIPLIER * spread, mean + MULTIPLIER * spread)
    return Grown(ndimage.binary_fill_holes(mask) if mask.any() else mask, limits)


def _filter(name: str, values: np.ndarray, seeds: np.ndarray) -> Any:
    """Return one of ITK's filters for an image, with its seeds."""
    import itk

    # `itk.ConfidenceConnectedImageFilter` loads the code for all types of images: 10 s instead of 2
    module = importlib.import_module(f"itk.itk{name}ImageFilterPython")
    grower: Any = getattr(module, f"itk{name}ImageFilterIF3IUC3" if "Conf" in name else f"itk{name}ImageFilterIF3IF3")
    grower = grower.New()
    grower.SetInput(itk.image_from_array(np.ascontiguousarray(values, np.float32)))
    for seed in seeds:
        grower.AddSeed([int(n) for n in seed[::-1]])  # ITK counts the axes of arrays from the last one
    return grower


def _array(grower: Any) -> np.ndarray:
    import itk

    out: np.ndarray = itk.array_from_image(grower.GetOutput())
    return out
