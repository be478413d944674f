"""The noise of an image: robust estimates from its finest details and, in MR, from its background."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

CLEAN = 0.01
"""Noise below this share of an image's range is too weak to be worth smoothing."""
QUIET = 0.8
"""If the quiet parts of an image have less than this share of `CLEAN`, the details elsewhere are anatomy, not noise."""
_WINDOW, _FEWEST = 8, 16
"""Blocks along each axis in one part of the image; smallest number of parts among which quiet ones are looked for."""
_GAUSS = 0.6745
"""Median of the absolute value of a standard normal variable."""
_RAYLEIGH = math.sqrt(math.pi / (4 - math.pi))
"""Mean over standard deviation of the Rayleigh distribution, which a magnitude image shows without signal: 1.91."""


@dataclass(frozen=True)
class Noise:
    """The noise of an image."""

    sigma: float
    """Standard deviation in the image's units; of Rician noise that of each of the two channels."""
    relative: float
    """`sigma` as a share of the image's range (see `span`)."""
    kind: Literal["gaussian", "rician"]
    """`rician` if the background shows that the image is a magnitude."""
    quiet: float | None = None
    """The same share in quiet parts of the image: a quarter of the parts have less. None for small images."""

    @property
    def negligible(self) -> bool:
        """Whether the noise is too weak to be worth smoothing."""
        return self.relative < CLEAN or (self.quiet is not None and self.quiet < QUIET * CLEAN)

    def rounded(self) -> dict[str, Any]:
        """Return the fields with 4 digits, for the sidecar."""
        return {k: float(f"{v:.4g}") if isinstance(v, float) else v for k, v in asdict(self).items()}


def span(values: np.ndarray) -> tuple[float, float]:
    """Return the range of an image's intensities without a few stray voxels: the 0.1th and 99.9th percentile."""
    low, high = np.percentile(values.ravel()[:: max(1, values.size // 2_000_000)], [0.1, 99.9])
    return (float(low), float(high)) if high > low else (float(values.min()), float(values.max()))


def estimate(values: np.ndarray) -> Noise:
    """Return the noise of an image (I, J, K), or (I, J), of any number type.

    The standard deviation is the median absolute diagonal detail of Haar wavelets in the foreground, divided by 0.6745
    (Donoho & Johnstone 1994). If the background has a Rayleigh distribution of about that width, the noise is Rician
    (Gudbjartsson & Patz 1995). Noise that was smoothed by interpolation is underestimated.
    """
    low, high = span(values)
    blocks = _blocks(values)
    means = blocks.mean(-1)
    flat = blocks.min(-1) == blocks.max(-1)
    cut = flat & ((means <= low) | (means >= high))  # padding, and values cut off at the file's maximum, show no noise
    foreground = (means > low + 0.15 * (high - low)) & ~cut
    used = foreground if foreground.any() else ~cut
    details = np.abs(_detail(blocks))
    sigma = float(np.median(details[used])) / _GAUSS if used.any() else 0.0
    magnitude = _is_magnitude(blocks[(means < 2 * sigma) & ~flat], sigma, len(means), float(values.min()))
    quiet = _quiet(details, used, [size // 2 for size in values.shape if size > 1])
    scale = high - low or 1.0
    kind: Literal["gaussian", "rician"] = "rician" if magnitude else "gaussian"
    return Noise(sigma, sigma / scale, kind, None if quiet is None else quiet / scale)


def _quiet(details: np.ndarray, used: np.ndarray, shape: list[int]) -> float | None:
    """Return the noise's standard deviation in quiet parts of the foreground (25th percentile); None for few parts.

    `details` (blocks,) and `used` (blocks,) bool are those of a grid of blocks of this `shape`.
    """
    counts = [size // _WINDOW for size in shape]
    if math.prod(counts) < _FEWEST:
        return None
    whole = tuple(slice(0, count * _WINDOW) for count in counts)
    split = [n for count in counts for n in (count, _WINDOW)]
    order = [*range(0, len(split), 2), *range(1, len(split), 2)]
    parts, inside = (
        x.reshape(shape)[whole].reshape(split).transpose(order).reshape(math.prod(counts), -1) for x in (details, used)
    )
    parts = parts[inside.mean(1) > 0.9]
    return float(np.percentile(np.median(parts, 1), 25)) / _GAUSS if len(parts) >= _FEWEST else None


def _blocks(values: np.ndarray) -> np.ndarray:
    """Return (blocks, 2^n) float32: blocks of two voxels along each of the n axes with more than one voxel."""
    axes = [axis for axis, size in enumerate(values.shape) if size > 1]
    parts = [values[tuple(slice(0, size // 2 * 2) for size in values.shape)]]
    for axis in axes:
        index = (slice(None),) * axis
        parts = [part[(*index, slice(start, None, 2))] for part in parts for start in (0, 1)]
    return np.stack([part.reshape(-1) for part in parts], 1, dtype=np.float32, casting="unsafe")


def _detail(blocks: np.ndarray) -> np.ndarray:
    """Return the diagonal detail of each block, (blocks,); for white noise its deviation is that of a voxel."""
    signs = np.ones(1, np.float32)
    for _ in range(int(math.log2(blocks.shape[1]))):
        signs = np.concatenate([signs, -signs])
    out: np.ndarray = blocks @ (signs / math.sqrt(len(signs)))
    return out


def _is_magnitude(background: np.ndarray, sigma: float, count: int, lowest: float) -> bool:
    """Return whether blocks without signal show the magnitude of complex noise."""
    if sigma == 0 or lowest < 0 or len(background) < 0.02 * count:
        return False
    return bool(abs(float(background.mean() / background.std()) - _RAYLEIGH) < 0.3)


def without_floor(smooth: np.ndarray, noise: Noise) -> np.ndarray:
    """Return the signal of a smoothed magnitude image, float32, without the bias of Rician noise.

    The smoothed image is the mean of the Rice distribution, which is inverted (Koay & Basser 2006).
    """
    if noise.kind != "rician" or noise.sigma == 0:
        return smooth
    signal, mean = _rice()
    levels = smooth / noise.sigma
    inverted = np.interp(levels, mean, signal)
    out = np.where(levels < mean[-1], inverted, np.sqrt(np.maximum(levels**2 - 1, 0))) * noise.sigma
    return out.astype(np.float32)


def with_floor(signal: np.ndarray, noise: Noise) -> np.ndarray:
    """Return the mean that a scan with this noise shows for a signal, float32. The inverse of `without_floor`."""
    if noise.kind != "rician" or noise.sigma == 0:
        return signal
    known, mean = _rice()
    levels = np.abs(signal) / noise.sigma
    out = np.where(levels < known[-1], np.interp(levels, known, mean), np.sqrt(levels**2 + 1)) * noise.sigma
    return out.astype(np.float32)


def _rice() -> tuple[np.ndarray, np.ndarray]:
    """Return signals, and the means of their Rice distributions, for noise of 1."""
    from scipy.special import ive

    signal = np.linspace(0, 12, 1201)
    power = signal**2 / 4
    return signal, math.sqrt(math.pi / 2) * ((1 + 2 * power) * ive(0, power) + 2 * power * ive(1, power))
