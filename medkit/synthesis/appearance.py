"""From labels to intensities: tissue contrasts, slices, the field of view."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch.nn import functional

if TYPE_CHECKING:
    from medkit.synthesis.ranges import Random, Ranges


def looked_up(table: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Entries of a table (N,) or of one per item (B, N) for labels (B, 1, I, J, K) of any integer type."""
    if table.dim() == 1:
        return table[labels.long()]
    if len(labels) == 1:
        return table[0].index_select(0, labels.reshape(-1).int()).reshape(labels.shape)
    return torch.stack([row[item.long()] for row, item in zip(table, labels, strict=True)])


def grain(shape: Sequence[int], random: Random, ranges: Ranges) -> torch.Tensor:
    """(B, 1, I, J, K) texture within tissues, standard deviation about 1."""
    noise = random.noise(shape)
    for item in noise:
        if random.number() < ranges.texture_grain:
            smooth = functional.avg_pool3d(item, 2, 1, 1)[..., 1:, 1:, 1:]
            item.copy_(smooth.mul_(math.sqrt(8)))
    return noise


def acquired(image: torch.Tensor, random: Random, ranges: Ranges) -> torch.Tensor:
    """The image as a scanner sees it: blurred, in slices, interpolated back to the grid."""
    out = []
    for item in image:
        steps = [1.0, 1.0, 1.0]
        if random.number() < ranges.coarse:
            steps = [float(random.evenly(ranges.coarseness))] * 3
        if random.number() < ranges.thick:
            steps[int(random.number() * 3)] = float(random.evenly(ranges.thickness))
        sigma = float(random.evenly(ranges.blur))
        operators = [
            slices(size, step, sigma, random.number()).to(image.device)
            for size, step in zip(item.shape[1:], steps, strict=True)
        ]
        out.append(along_axes(item[0], operators)[None])
    return torch.stack(out)


def slices(size: int, step: float, sigma: float, phase: float) -> torch.Tensor:
    """(size, size) matrix: blur by `sigma`, average over slices `step` voxels thick, interpolate back linearly."""
    voxels = torch.arange(size, dtype=torch.float32)
    spread = math.hypot(sigma, step / math.sqrt(12) if step > 1 else 0.0)
    if step <= 1:
        return _gaussian(voxels, size, spread)
    first = -phase * step
    count = math.ceil((size - 1 - first) / step) + 1
    down = _gaussian(first + step * torch.arange(count), size, spread)
    at = ((voxels - first) / step).clamp(0, count - 1)
    below = at.floor().clamp(max=count - 2)
    share = (at - below)[:, None]
    below = below.long()
    return down[below] * (1 - share) + down[below + 1] * share


def _gaussian(positions: torch.Tensor, size: int, sigma: float) -> torch.Tensor:
    """(positions, size) weights of a Gaussian of `sigma` voxels about each position; rows sum to 1."""
    weights = torch.exp(-0.5 * ((positions.clamp(0, size - 1)[:, None] - torch.arange(size)) / sigma) ** 2)
    return weights / weights.sum(1, keepdim=True)


def along_axes(image: torch.Tensor, operators: Sequence[torch.Tensor]) -> torch.Tensor:
    """The image (I, J, K) multiplied by a square matrix along each axis."""
    i, j, k = operators
    out = torch.matmul(j, image @ k.T)
    return (i @ out.reshape(out.shape[0], -1)).reshape(image.shape)


def outlined(mask: torch.Tensor, random: Random, ranges: Ranges) -> torch.Tensor:
    """The masks (B, 1, I, J, K) as tools draw them: up to `rim` voxels too wide."""
    out = []
    for item in mask:
        for _ in range(int(random.number() * (ranges.rim + 1))):
            for axis in (1, 2, 3):  # one axis after the other: far cheaper than a cube
                kernel = [3 if a == axis else 1 for a in (1, 2, 3)]
                item = functional.max_pool3d(item, kernel, 1, [k // 2 for k in kernel])
        out.append(item)
    return torch.stack(out)


def cropped(image: torch.Tensor, spacing: float, random: Random, ranges: Ranges) -> torch.Tensor:
    """The images (B, 1, I, J, K) with 0 where a field of view that is too small ends."""
    for item in image:
        for axis in (1, 2, 3):
            for side in (0, 1):
                if random.number() < ranges.cut:
                    width = min(int(random.number() * ranges.cut_width / spacing), item.shape[axis])
                    item.narrow(axis, side * (item.shape[axis] - width), width).zero_()
    return image
