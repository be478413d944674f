"""From labels to intensities: tissue contrasts, the scanner's slices, masks and the field of view."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.nn import functional

from medkit.scanner.separable import apply_along_axes, gaussian_weights

if TYPE_CHECKING:
    from medkit.synthesis.ranges import Random, Ranges


def looked_up(table: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return the entries of a table (N,), or of one per item (B, N), for labels (B, 1, I, J, K) of any integer type."""
    if table.dim() == 1:
        return table[labels.long()]
    if len(labels) == 1:
        return table[0].index_select(0, labels.reshape(-1).int()).reshape(labels.shape)
    return torch.stack([row[item.long()] for row, item in zip(table, labels, strict=True)])


def grain(shape: Sequence[int], random: Random, ranges: Ranges) -> torch.Tensor:
    """Return texture within tissues, `shape` (B, 1, I, J, K), with a standard deviation of about 1."""
    noise = random.noise(shape)
    for item in noise:
        if random.number() < ranges.texture_grain:
            smooth = functional.avg_pool3d(item, 2, 1, 1)[..., 1:, 1:, 1:]
            item.copy_(smooth.mul_(math.sqrt(8)))
    return noise


def acquired(image: torch.Tensor, random: Random, ranges: Ranges) -> torch.Tensor:
    """Return images (B, 1, I, J, K) as a scanner shows them: blurred, in slices, interpolated back to the grid."""
    out = []
    for item in image:
        steps = [1.0, 1.0, 1.0]
        if random.number() < ranges.coarse:
            steps = [float(random.evenly(ranges.coarseness))] * 3
        if random.number() < ranges.thick:
            steps[int(random.number() * 3)] = float(random.evenly(ranges.thickness))
        sigma = float(random.evenly(ranges.blur))
        matrices = [
            slices(size, step, sigma, random.number()).to(image.device)
            for size, step in zip(item.shape[1:], steps, strict=True)
        ]
        out.append(apply_along_axes(item, matrices))
    return torch.stack(out)


def slices(size: int, step: float, sigma: float, phase: float) -> torch.Tensor:
    """Return a matrix (size, size) that blurs an axis, averages over slices and interpolates back linearly.

    step: thickness of the slices in voxels; sigma: blur in voxels; phase: 0 to 1, where in a step the slices start.
    """
    spread = math.hypot(sigma, step / math.sqrt(12) if step > 1 else 0.0)
    if step <= 1:
        return torch.from_numpy(gaussian_weights(np.arange(size), size, spread)).float()
    first = -phase * step
    count = math.ceil((size - 1 - first) / step) + 1
    down = torch.from_numpy(gaussian_weights(first + step * np.arange(count), size, spread)).float()
    voxels = torch.arange(size, dtype=torch.float32)
    positions = ((voxels - first) / step).clamp(0, count - 1)
    below = positions.floor().clamp(max=count - 2)
    share = (positions - below)[:, None]
    below = below.long()
    return down[below] * (1 - share) + down[below + 1] * share


def outlined(mask: torch.Tensor, random: Random, ranges: Ranges) -> torch.Tensor:
    """Return masks (B, 1, I, J, K) as skull-stripping tools draw them: up to `rim` voxels too wide."""
    out = []
    for item in mask:
        for _ in range(int(random.number() * (ranges.rim + 1))):
            for axis in (1, 2, 3):  # axis by axis, which is far cheaper than a cube
                kernel = [3 if a == axis else 1 for a in (1, 2, 3)]
                item = functional.max_pool3d(item, kernel, 1, [k // 2 for k in kernel])
        out.append(item)
    return torch.stack(out)


def cropped(image: torch.Tensor, spacing: float, random: Random, ranges: Ranges) -> torch.Tensor:
    """Set images (B, 1, I, J, K) to 0 in place beyond a field of view that is too small, and return them.

    spacing: mm of their voxels.
    """
    for item in image:
        for axis in (1, 2, 3):
            for side in (0, 1):
                if random.number() < ranges.cut:
                    width = min(int(random.number() * ranges.cut_width / spacing), item.shape[axis])
                    item.narrow(axis, side * (item.shape[axis] - width), width).zero_()
    return image
