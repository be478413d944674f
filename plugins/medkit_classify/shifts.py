"""Changed images for a calibration: mild changes, after which an image is still like the others, and strong ones."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

BLUR, SHARPENING, DEGREES, SCALE, SHIFT, GAMMA, NOISE = 0.6, 0.5, 5.0, 0.06, 1.0, 0.15, 0.01
"""Largest mild changes: pixels, share of the details, degrees, share of the size, pixels, exponent's logarithm, share
of the range. They are those between two scanners, or two ways to reduce an image to the network's size."""


def mildly_changed(images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return (N, I, J) images from 0 to 1, each with small changes of sharpness, place, size, contrast and noise."""
    return np.stack([_mild(image, rng) for image in images])


def strongly_changed(images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return (N, I, J) images, each inverted, turned, upside down, cut to its middle, or small inside a border."""
    changes = (_inverted, _turned, _upside_down, _cut, _bordered)
    return np.stack([_scaled(changes[n % len(changes)](image, rng)) for n, image in enumerate(images)])


def _mild(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    if rng.random() < 0.5:
        out = ndimage.gaussian_filter(image, rng.uniform(0, BLUR))
    else:
        out = image + rng.uniform(0, SHARPENING) * (image - ndimage.gaussian_filter(image, 0.7))
    if rng.random() < 0.5:
        angle, scale = np.deg2rad(rng.uniform(-DEGREES, DEGREES)), rng.uniform(1 - SCALE, 1 + SCALE)
        matrix = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        middle = (np.array(image.shape) - 1) / 2
        offset = middle - matrix @ (middle + rng.uniform(-SHIFT, SHIFT, 2))
        out = ndimage.affine_transform(out, matrix, offset, order=int(rng.choice([1, 3])), mode="nearest")
    if rng.random() < 0.5:
        out = out.clip(0, 1) ** np.exp(rng.uniform(-GAMMA, GAMMA))
    return _scaled(out + rng.normal(0, rng.uniform(0, NOISE), image.shape))


def _inverted(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return 1 - image


def _turned(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return np.rot90(image, int(rng.choice([1, 3])))


def _upside_down(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return image[:, ::-1]


def _cut(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return _resized(image, rng.uniform(0.4, 0.6))


def _bordered(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return _resized(image, rng.uniform(1.4, 2.0), outside=float(rng.integers(2)))


def _resized(image: np.ndarray, step: float, outside: float = 0.0) -> np.ndarray:
    """Return an image of the same number of pixels, `step` as far from each other, about the middle."""
    middle = (np.array(image.shape) - 1) / 2
    out: np.ndarray = ndimage.affine_transform(
        image, [step, step], middle - step * middle, order=1, mode="constant", cval=outside
    )
    return out


def _scaled(image: np.ndarray) -> np.ndarray:
    """Return an image with its 1st and 99th percentile at 0 and 1, clipped, as the preprocessing does."""
    low, high = np.quantile(image, [0.01, 0.99])
    out: np.ndarray = ((image - low) / max(float(high - low), 1e-6)).clip(0, 1)
    return out
