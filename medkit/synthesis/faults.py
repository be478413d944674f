"""Scanner faults: bias field, ghosts, noise, wrong voxels."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch.nn import functional

if TYPE_CHECKING:
    from medkit.synthesis.ranges import Random, Ranges


def spoiled(image: torch.Tensor, spacing: float, random: Random, ranges: Ranges) -> torch.Tensor:
    """The image with ghosts, bias field, noise, single wrong voxels and bent intensities."""
    faults: Sequence[Callable[[torch.Tensor, Random, Ranges], torch.Tensor]] = (ghosted, scaled, noisy, speckled, bent)
    out = []
    for item in image:
        item = item * bias_field(item.shape[1:], spacing, random, ranges)
        for fault in faults:
            item = fault(item, random, ranges)
        out.append(item)
    return torch.stack(out)


def bias_field(shape: Sequence[int], spacing: float, random: Random, ranges: Ranges) -> torch.Tensor:
    """(1, I, J, K) smooth positive factor."""
    step = float(random.evenly(ranges.bias_spacing)) / spacing
    points = [max(2, round(n / step) + 1) for n in shape]
    strength = float(random.evenly((0.0, ranges.bias)))
    control = (strength * random.normals(1, 1, *points)).to(random.device)
    return functional.interpolate(control, tuple(shape), mode="trilinear", align_corners=True)[0].exp_()


def ghosted(image: torch.Tensor, random: Random, ranges: Ranges) -> torch.Tensor:
    """(1, I, J, K) with faint copies along one axis, as periodic motion during the scan leaves them."""
    if random.number() >= ranges.ghosting:
        return image
    axes = [axis for axis in (1, 2, 3) if image.shape[axis] > 1]
    axis = axes[int(random.number() * len(axes))]
    number = 2 + int(random.number() * 4)
    strength = float(random.evenly(ranges.ghosts))
    step = image.shape[axis] // number
    copies = sum(torch.roll(image, k * step, axis) for k in range(1, number))
    return image * (1 - strength) + copies * (strength / (number - 1))


def scaled(image: torch.Tensor, random: Random | None = None, ranges: Ranges | None = None) -> torch.Tensor:
    """The image over its `scale`: what networks here are given."""
    return image / scale(image)


def scale(image: torch.Tensor) -> torch.Tensor:
    """The 99th percentile of what is not 0, a number; 1 where all is."""
    values = image.reshape(-1)[::7]
    values = values[values > 0]
    if not len(values):
        return image.new_ones(())
    return values.kthvalue(max(1, round(0.99 * len(values)))).values.clamp_min(1e-6)


def noisy(image: torch.Tensor, random: Random, ranges: Ranges) -> torch.Tensor:
    """(1, I, J, K) with Gaussian or Rician noise; voxels that a tool has set to 0 stay 0."""
    sigma = float(random.evenly((0.0, ranges.noise)))
    if random.number() < ranges.rician:
        wrong = torch.hypot(image + sigma * random.noise(image.shape), sigma * random.noise(image.shape))
    else:
        wrong = image + sigma * random.noise(image.shape)
    empty = random.number() < 0.5
    return torch.where(image > 1e-3, wrong, 0.0 if empty else wrong)


def speckled(image: torch.Tensor, random: Random, ranges: Ranges) -> torch.Tensor:
    """(1, I, J, K) with a few black and white voxels."""
    if random.number() >= ranges.salt_and_pepper:
        return image
    share = float(random.evenly((0.0, ranges.spoiled)))
    draw = random.voxels(image.shape)
    return torch.where(draw < share / 2, 0.0, torch.where(draw > 1 - share / 2, 1.0, image))


def bent(image: torch.Tensor, random: Random, ranges: Ranges) -> torch.Tensor:
    """(1, I, J, K) raised to a power about 1."""
    power = math.exp(ranges.gamma * float(random.normals()))
    return image.clamp(min=0).pow(power)
