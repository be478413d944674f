"""Smoothing and sampling along one axis as a matrix, and images multiplied by such matrices along their three axes."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch

from medkit.scanner import border_gaussian_weights


@dataclass(frozen=True, eq=False)
class AxisSampling:
    """Sampling positions along one axis."""

    first: float
    """Voxel index of the first position."""
    step: float
    """Voxels between positions."""
    operator: np.ndarray
    """(positions, voxels) smoothing and sampling in one matrix; rows sum to 1."""


def axis_sampling(
    size: int, spacing_in: float, spacing: float, pad: tuple[int, int] | np.ndarray = (0, 0)
) -> AxisSampling:
    """Return positions `spacing` mm apart about the middle of an axis of `size` voxels of `spacing_in` mm.

    `pad` (low, high) adds so many positions at either end.
    """
    if size == 1:
        return AxisSampling(0.0, 1.0, np.ones((1, 1), np.float32))
    step = spacing / spacing_in
    count = max(2, math.ceil(size / step - 1e-6))
    first = (size - 1) / 2 - (count - 1) / 2 * step - int(pad[0]) * step
    positions = first + step * np.arange(count + int(pad[0]) + int(pad[1]))
    # at least half a step and half a voxel: enough against aliasing, and interpolation then blurs all phases equally
    operator = gaussians(positions, size, 0.5 * max(step, 1.0))
    return AxisSampling(float(first), step, operator)


def gaussians(positions: np.ndarray, size: int, sigma: float) -> np.ndarray:
    """Return the (positions, size) float32 matrix of Gaussians of `sigma` voxels; the border is repeated."""
    return border_gaussian_weights(positions, size, sigma).astype(np.float32)


def apply_along_axes(data: torch.Tensor, operators: list[np.ndarray]) -> torch.Tensor:
    """Return `data` (I, J, K) multiplied by one (positions, voxels) matrix along each axis."""
    i, j, k = (torch.from_numpy(operator).to(data.device) for operator in operators)
    out = torch.matmul(j, data @ k.T)
    return torch.matmul(i, out.reshape(out.shape[0], -1)).reshape(i.shape[0], *out.shape[1:])


def smooth(image: torch.Tensor, sigma: float) -> torch.Tensor:
    """Return `image` (I, J, K) after a Gaussian of `sigma` voxels, its border repeated; single-voxel axes stay."""
    one = np.ones((1, 1), np.float32)
    return apply_along_axes(image, [gaussians(np.arange(n), n, sigma) if n > 1 else one for n in image.shape])
