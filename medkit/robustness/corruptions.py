"""Corruptions of images by scanners, movement and post-processing, at fixed strengths (as in ImageNet-C).

A corruption takes an image's channels, (C, I, J, K) float32, the spacing of its voxels, (3,) mm, a strength and a seed,
and returns the corrupted channels. The effects are those of `medkit.synthesis` and of MONAI's transforms on training
images, but with a given strength: the same seed returns the same image, and the same pattern at other strengths.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from medkit.synthesis.ranges import Random

_SAMPLE = 1_000_000
"""Number of voxels from which percentiles are computed."""

Corrupt = Callable[[np.ndarray, np.ndarray, float, int], np.ndarray]
"""Function of channels, spacing, strength and seed."""


@dataclass(frozen=True)
class Corruption:
    """One way in which images get worse."""

    name: str
    unit: str
    """What its strengths measure, for people."""
    strengths: tuple[float, ...]
    """In ascending order of the damage."""
    corrupt: Corrupt | None = None
    """None for an attack, which changes the network's input instead of the file (see `medkit.robustness.attacks`)."""


def corrupted(corruption: Corruption, strength: float, image: np.ndarray, spacing: np.ndarray, seed: int) -> np.ndarray:
    """Return the corrupted channels of an image, (C, I, J, K), in their own type; `spacing` (3,) in mm.

    No value falls below the lowest value that its channel had, like a scanner's noise floor. Integer types are rounded
    and clipped to their range.
    """
    assert corruption.corrupt is not None, "attacks change the network's input, not an image"
    values = image.astype(np.float32)
    out = corruption.corrupt(values, spacing, strength, seed)
    out = np.maximum(out, values.reshape(len(values), -1).min(axis=1)[:, None, None, None])
    if image.dtype.kind in "iu":
        limits = np.iinfo(image.dtype)
        out = np.rint(out).clip(limits.min, limits.max)
    return out.astype(image.dtype)


def _noisy(image: np.ndarray, spacing: np.ndarray, strength: float, seed: int) -> np.ndarray:
    from monai.transforms import RandGaussianNoise

    noise = RandGaussianNoise(prob=1.0, std=1.0, sample_std=False)
    noise.set_random_state(seed)
    grains = np.asarray(noise(np.zeros_like(image)))
    return image + strength * _span(image) * grains


def _blurred(image: np.ndarray, spacing: np.ndarray, strength: float, seed: int) -> np.ndarray:
    from monai.transforms import GaussianSmooth

    finest = _finest(image, spacing)
    sigma = [strength * finest / mm if n > 1 else 0.0 for n, mm in zip(image.shape[1:], spacing, strict=True)]
    return np.asarray(GaussianSmooth(sigma)(image))


def _moved(image: np.ndarray, spacing: np.ndarray, strength: float, seed: int) -> np.ndarray:
    from medkit.synthesis.artifacts import ghosted
    from medkit.synthesis.ranges import Ranges

    ranges = Ranges(ghosting=1.0, ghosts=(strength, strength))
    return _each(image, lambda channel: ghosted(channel, _random(seed), ranges))


def _biased(image: np.ndarray, spacing: np.ndarray, strength: float, seed: int) -> np.ndarray:
    from medkit.synthesis.artifacts import bias_field
    from medkit.synthesis.ranges import Ranges

    step = max(max(image.shape[1:]) / 3, 1.0)  # in voxels, so that pictures without a spacing get a smooth field too
    field = bias_field(image.shape[1:], 1.0, _random(seed), Ranges(bias_spacing=(step, step))).log()
    factor = (strength / field.std().clamp_min(1e-6) * field).exp().numpy()
    floor = image.reshape(len(image), -1).min(axis=1)[:, None, None, None]
    out: np.ndarray = (image - floor) * factor + floor
    return out


def _with_gamma(image: np.ndarray, spacing: np.ndarray, strength: float, seed: int) -> np.ndarray:
    from monai.transforms import AdjustContrast

    return np.stack([np.asarray(AdjustContrast(strength)(channel[None]))[0] for channel in image])


def _coarsened(image: np.ndarray, spacing: np.ndarray, strength: float, seed: int) -> np.ndarray:
    from medkit.scanner.separable import apply_along_axes
    from medkit.synthesis.appearance import slices

    wanted = strength * _finest(image, spacing)
    steps = [wanted / mm if n > 1 else 1.0 for n, mm in zip(image.shape[1:], spacing, strict=True)]
    matrices = [slices(n, step, 0.0, 0.5) if step > 1 else None for n, step in zip(image.shape[1:], steps, strict=True)]
    return _each(image, lambda channel: apply_along_axes(channel, matrices))


def _each(image: np.ndarray, change: Callable[..., object]) -> np.ndarray:
    """Change each channel separately, by a function of a tensor (1, I, J, K)."""
    import torch

    parts = [change(torch.from_numpy(np.ascontiguousarray(channel))[None]) for channel in image]
    return np.concatenate([np.asarray(part) for part in parts])


def _random(seed: int) -> Random:
    import torch

    from medkit.synthesis.ranges import Random

    return Random(seed, torch.device("cpu"))


def _finest(image: np.ndarray, spacing: np.ndarray) -> float:
    """Return the smallest spacing (mm) among the axes with more than one voxel."""
    return float(min(mm for n, mm in zip(image.shape[1:], spacing, strict=True) if n > 1))


def _span(image: np.ndarray) -> np.ndarray:
    """Return (C, 1, 1, 1) the span from the 1st to the 99th percentile of each channel; if 0, its whole range."""
    flat = image.reshape(len(image), -1)
    sample = flat[:, :: max(1, flat.shape[1] // _SAMPLE)]
    low, high = np.percentile(sample, (1, 99), axis=1)
    span = np.where(high > low, high - low, np.ptp(flat, axis=1))
    return span.astype(np.float32)[:, None, None, None]


_VOXELS = "voxels of the finest axis"
CORRUPTIONS: Mapping[str, Corruption] = {
    corruption.name: corruption
    for corruption in (
        Corruption("noise", "standard deviation as a share of the intensities' range", (0.03, 0.1, 0.2), _noisy),
        Corruption("blur", f"standard deviation in {_VOXELS}", (0.7, 1.5, 3.0), _blurred),
        Corruption("motion", "ghosts' share of the intensities", (0.1, 0.25, 0.5), _moved),
        Corruption("bias", "standard deviation of the bias field's logarithm", (0.15, 0.3, 0.6), _biased),
        Corruption("brighter", "exponent of the intensities", (0.8, 0.6, 0.4), _with_gamma),
        Corruption("darker", "exponent of the intensities", (1.25, 1.67, 2.5), _with_gamma),
        Corruption("resolution", f"thickness of voxels in {_VOXELS}", (1.5, 2.0, 4.0), _coarsened),
        Corruption("fgsm", "largest change of the network's input", (0.005, 0.01, 0.03)),
        Corruption("pgd", "largest change of the network's input", (0.005, 0.01, 0.03)),
    )
}
"""Name -> corruption, as `--shifts` takes them; those without a function are attacks, for classifiers only."""
