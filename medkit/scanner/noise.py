"""How noisy an image is: robust estimates from its finest details and, in MR, from its background."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

CLEAN = 0.01
"""Share of an image's range: noise below it is not worth smoothing anatomy for."""
QUIET = 0.8
"""Share of that: what is less in the quiet parts of an image is not noise but anatomy elsewhere."""
_WINDOW, _FEWEST = 8, 16
"""Blocks of a part of the image along an axis; parts without which there is no telling quiet ones apart."""
_GAUSS = 0.6745
"""Median of the absolute value of a standard normal variable."""
_RAYLEIGH = math.sqrt(math.pi / (4 - math.pi))
"""Mean over standard deviation of what a magnitude image shows where there is no signal: 1.91."""


@dataclass(frozen=True)
class Noise:
    """The noise of an image."""

    sigma: float
    """Standard deviation in the image's units: that of each of two channels where the noise is Rician."""
    relative: float
    """The same as a share of the image's range (see `span`)."""
    kind: Literal["gaussian", "rician"]
    """Rician: the image is a magnitude, whose background shows it."""
    quiet: float | None = None
    """As `relative`, of the quieter parts: a quarter of them have less. None for small images."""

    @property
    def negligible(self) -> bool:
        """Whether it is too weak to be worth smoothing for."""
        return self.relative < CLEAN or (self.quiet is not None and self.quiet < QUIET * CLEAN)

    def rounded(self) -> dict[str, Any]:
        """For the sidecar."""
        return {k: float(f"{v:.4g}") if isinstance(v, float) else v for k, v in asdict(self).items()}


def span(values: np.ndarray) -> tuple[float, float]:
    """The range that intensities of an image take, a few stray voxels apart: 0.1th and 99.9th percentile."""
    low, high = np.percentile(values.ravel()[:: max(1, values.size // 2_000_000)], [0.1, 99.9])
    return (float(low), float(high)) if high > low else (float(values.min()), float(values.max()))


def estimate(values: np.ndarray) -> Noise:
    """The noise of an image (I, J, K), or (I, J), of any number type.

    The standard deviation is the median absolute diagonal detail of Haar wavelets over 0.6745 (Donoho & Johnstone
    1994), over what lies in the foreground. Where the background is a Rayleigh distribution of about that width the
    noise is Rician (Gudbjartsson & Patz 1995). Noise that an interpolation has smoothed is underestimated.
    """
    low, high = span(values)
    blocks = _blocks(values)
    means = blocks.mean(-1)
    flat = blocks.min(-1) == blocks.max(-1)
    ends = flat & ((means <= low) | (means >= high))  # padding, and what is too bright for the file, have no noise left
    foreground = (means > low + 0.15 * (high - low)) & ~ends
    seen = foreground if foreground.any() else ~ends
    details = np.abs(_detail(blocks))
    sigma = float(np.median(details[seen])) / _GAUSS if seen.any() else 0.0
    magnitude = _is_magnitude(blocks[(means < 2 * sigma) & ~flat], sigma, len(means), float(values.min()))
    quiet = _quiet(details, seen, [size // 2 for size in values.shape if size > 1])
    scale = high - low or 1.0
    kind: Literal["gaussian", "rician"] = "rician" if magnitude else "gaussian"
    return Noise(sigma, sigma / scale, kind, None if quiet is None else quiet / scale)


def _quiet(details: np.ndarray, seen: np.ndarray, shape: list[int]) -> float | None:
    """The standard deviation in quiet parts of the foreground (25th percentile); None where there are few parts."""
    counts = [size // _WINDOW for size in shape]
    if math.prod(counts) < _FEWEST:
        return None
    whole = tuple(slice(0, count * _WINDOW) for count in counts)
    split = [n for count in counts for n in (count, _WINDOW)]
    order = [*range(0, len(split), 2), *range(1, len(split), 2)]
    parts, inside = (
        x.reshape(shape)[whole].reshape(split).transpose(order).reshape(math.prod(counts), -1) for x in (details, seen)
    )
    parts = parts[inside.mean(1) > 0.9]
    return float(np.percentile(np.median(parts, 1), 25)) / _GAUSS if len(parts) >= _FEWEST else None


def _blocks(values: np.ndarray) -> np.ndarray:
    """(blocks, 2^n) float32: blocks of two voxels along each of the n axes that have as many."""
    axes = [axis for axis, size in enumerate(values.shape) if size > 1]
    parts = [values[tuple(slice(0, size // 2 * 2) for size in values.shape)]]
    for axis in axes:
        index = (slice(None),) * axis
        parts = [part[(*index, slice(start, None, 2))] for part in parts for start in (0, 1)]
    return np.stack([part.reshape(-1) for part in parts], 1, dtype=np.float32, casting="unsafe")


def _detail(blocks: np.ndarray) -> np.ndarray:
    """(blocks,) the diagonal detail of each: of white noise it has the standard deviation of a voxel."""
    signs = np.ones(1, np.float32)
    for _ in range(int(math.log2(blocks.shape[1]))):
        signs = np.concatenate([signs, -signs])
    out: np.ndarray = blocks @ (signs / math.sqrt(len(signs)))
    return out


def _is_magnitude(background: np.ndarray, sigma: float, count: int, lowest: float) -> bool:
    """Whether blocks without signal hold the magnitude of complex noise."""
    if sigma == 0 or lowest < 0 or len(background) < 0.02 * count:
        return False
    return bool(abs(float(background.mean() / background.std()) - _RAYLEIGH) < 0.3)


def without_floor(smooth: np.ndarray, noise: Noise) -> np.ndarray:
    """The signal under a smoothed magnitude image: the mean of its Rice distribution inverted (Koay & Basser 2006)."""
    if noise.kind != "rician" or noise.sigma == 0:
        return smooth
    signal, mean = _rice()
    levels = smooth / noise.sigma
    inverted = np.interp(levels, mean, signal)
    out = np.where(levels < mean[-1], inverted, np.sqrt(np.maximum(levels**2 - 1, 0))) * noise.sigma
    return out.astype(np.float32)


def with_floor(signal: np.ndarray, noise: Noise) -> np.ndarray:
    """The inverse of `without_floor`: what a scan with this noise shows of a signal on average, float32."""
    if noise.kind != "rician" or noise.sigma == 0:
        return signal
    known, mean = _rice()
    levels = np.abs(signal) / noise.sigma
    out = np.where(levels < known[-1], np.interp(levels, known, mean), np.sqrt(levels**2 + 1)) * noise.sigma
    return out.astype(np.float32)


def _rice() -> tuple[np.ndarray, np.ndarray]:
    """Signals, and the means of the Rice distributions about them, for noise of 1."""
    from scipy.special import ive

    signal = np.linspace(0, 12, 1201)
    power = signal**2 / 4
    return signal, math.sqrt(math.pi / 2) * ((1 + 2 * power) * ive(0, power) + 2 * power * ive(1, power))
