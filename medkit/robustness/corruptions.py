"""What scanners, movement and post-processing do to images, at strengths that are fixed.

Each shift takes an image's channels, (C, I, J, K) float32, the spacing of its voxels, (3,) mm, a strength and a seed,
and gives the channels spoilt. It is what `medkit.synthesis.draw` and MONAI's transforms do to training images, without their
draws of how strong: the same seed gives the same image, and the same pattern at other strengths.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from medkit.synthesis.ranges import Random

_SAMPLE = 1_000_000
"""Voxels looked at for percentiles."""

Spoil = Callable[[np.ndarray, np.ndarray, float, int], np.ndarray]


@dataclass(frozen=True)
class Corruption:
    """A way in which images get worse."""

    name: str
    what: str
    """What its strengths are, for people."""
    strengths: tuple[float, ...]
    """From little to much."""
    spoil: Spoil | None = None
    """None for an attack, which is made of what the network is given (see `medkit.robustness.attacks`)."""


def spoilt(shift: Corruption, strength: float, image: np.ndarray, spacing: np.ndarray, seed: int) -> np.ndarray:
    """The channels of an image, (C, I, J, K), spoilt, in their own type.

    Nothing falls below the lowest value that a channel had, as a scanner's floor would have it; what a whole number
    cannot hold is rounded and cut off.
    """
    assert shift.spoil is not None, "attacks spoil what the network is given"
    values = image.astype(np.float32)
    out = shift.spoil(values, spacing, strength, seed)
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
    from medkit.synthesis.faults import ghosted
    from medkit.synthesis.ranges import Ranges

    ranges = Ranges(ghosting=1.0, ghosts=(strength, strength))
    return _each(image, lambda channel: ghosted(channel, _random(seed), ranges))


def _biased(image: np.ndarray, spacing: np.ndarray, strength: float, seed: int) -> np.ndarray:
    from medkit.synthesis.faults import bias_field
    from medkit.synthesis.ranges import Ranges

    step = max(max(image.shape[1:]) / 3, 1.0)  # in voxels, so that pictures without a size get a field as smooth
    field = bias_field(image.shape[1:], 1.0, _random(seed), Ranges(bias_spacing=(step, step))).log()
    factor = (strength / field.std().clamp_min(1e-6) * field).exp().numpy()
    floor = image.reshape(len(image), -1).min(axis=1)[:, None, None, None]
    out: np.ndarray = (image - floor) * factor + floor
    return out


def _bent(image: np.ndarray, spacing: np.ndarray, strength: float, seed: int) -> np.ndarray:
    from monai.transforms import AdjustContrast

    return np.stack([np.asarray(AdjustContrast(strength)(channel[None]))[0] for channel in image])


def _coarsened(image: np.ndarray, spacing: np.ndarray, strength: float, seed: int) -> np.ndarray:
    import torch

    from medkit.synthesis.appearance import along_axes, slices

    wanted = strength * _finest(image, spacing)
    steps = [wanted / mm if n > 1 else 1.0 for n, mm in zip(image.shape[1:], spacing, strict=True)]
    operators = [
        slices(n, step, 0.0, 0.5) if step > 1 else torch.eye(n) for n, step in zip(image.shape[1:], steps, strict=True)
    ]
    return _each(image, lambda channel: along_axes(channel[0], operators)[None])


def _each(image: np.ndarray, spoil: Callable[..., object]) -> np.ndarray:
    """Each channel by itself, by a function of a tensor (1, I, J, K)."""
    import torch

    parts = [spoil(torch.from_numpy(np.ascontiguousarray(channel))[None]) for channel in image]
    return np.concatenate([np.asarray(part) for part in parts])


def _random(seed: int) -> Random:
    import torch

    from medkit.synthesis.ranges import Random

    return Random(seed, torch.device("cpu"))


def _finest(image: np.ndarray, spacing: np.ndarray) -> float:
    """The smallest spacing of an axis along which the image extends, mm."""
    return float(min(mm for n, mm in zip(image.shape[1:], spacing, strict=True) if n > 1))


def _span(image: np.ndarray) -> np.ndarray:
    """(C, 1, 1, 1) from the 1st to the 99th percentile of each channel, which may be the same; then the whole range."""
    flat = image.reshape(len(image), -1)
    sample = flat[:, :: max(1, flat.shape[1] // _SAMPLE)]
    low, high = np.percentile(sample, (1, 99), axis=1)
    span = np.where(high > low, high - low, np.ptp(flat, axis=1))
    return span.astype(np.float32)[:, None, None, None]


_VOXELS = "voxels of the finest axis"
SHIFTS: Mapping[str, Corruption] = {
    shift.name: shift
    for shift in (
        Corruption("noise", "standard deviation as a share of the intensities' range", (0.03, 0.1, 0.2), _noisy),
        Corruption("blur", f"standard deviation in {_VOXELS}", (0.7, 1.5, 3.0), _blurred),
        Corruption("motion", "ghosts' share of the intensities", (0.1, 0.25, 0.5), _moved),
        Corruption("bias", "standard deviation of the bias field's logarithm", (0.15, 0.3, 0.6), _biased),
        Corruption("brighter", "exponent of the intensities", (0.8, 0.6, 0.4), _bent),
        Corruption("darker", "exponent of the intensities", (1.25, 1.67, 2.5), _bent),
        Corruption("resolution", f"thickness of voxels in {_VOXELS}", (1.5, 2.0, 4.0), _coarsened),
        Corruption("fgsm", "largest change of the network's input", (0.005, 0.01, 0.03)),
        Corruption("pgd", "largest change of the network's input", (0.005, 0.01, 0.03)),
    )
}
"""Name -> shift; those without a function are attacks, which classifiers alone are given."""
