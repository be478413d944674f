"""Scanner artifacts of drawn images: bias field, ghosts, noise, single wrong voxels.

How strong they are is drawn from `medkit.synthesis.ranges.Ranges`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch.nn import functional

from medkit.scanner.intensity import intensity_scale

if TYPE_CHECKING:
    from medkit.synthesis.ranges import Random, Ranges


def with_artifacts(images: torch.Tensor, spacing: float, random: Random, ranges: Ranges) -> torch.Tensor:
    """Return images (B, 1, I, J, K) with bias field, ghosts, noise, single wrong voxels and changed gamma.

    spacing: mm of their voxels.
    """
    steps: Sequence[Callable[[torch.Tensor, Random, Ranges], torch.Tensor]] = (
        ghosted, scaled, noisy, speckled, with_gamma
    )  # fmt: skip
    out = []
    for image in images:
        image = image * bias_field(image.shape[1:], spacing, random, ranges)
        for step in steps:
            image = step(image, random, ranges)
        out.append(image)
    return torch.stack(out)


def bias_field(shape: Sequence[int], spacing: float, random: Random, ranges: Ranges) -> torch.Tensor:
    """Return a smooth positive factor (1, *shape); `spacing`: mm of its voxels."""
    step = float(random.evenly(ranges.bias_spacing)) / spacing
    points = [max(2, round(n / step) + 1) for n in shape]
    strength = float(random.evenly((0.0, ranges.bias)))
    control = (strength * random.normals(1, 1, *points)).to(random.device)
    return functional.interpolate(control, tuple(shape), mode="trilinear", align_corners=True)[0].exp_()


def ghosted(image: torch.Tensor, random: Random, ranges: Ranges) -> torch.Tensor:
    """Return an image (1, I, J, K) with faint copies along one axis, as periodic motion during the scan causes."""
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
    """Return an image divided by its intensity scale, as networks are given it; nothing is drawn."""
    return image / intensity_scale(image)


def noisy(image: torch.Tensor, random: Random, ranges: Ranges) -> torch.Tensor:
    """Return an image (1, I, J, K) with Gaussian or Rician noise; half of the time empty voxels become 0 again."""
    sigma = float(random.evenly((0.0, ranges.noise)))
    if random.number() < ranges.rician:
        changed = torch.hypot(image + sigma * random.noise(image.shape), sigma * random.noise(image.shape))
    else:
        changed = image + sigma * random.noise(image.shape)
    emptied = random.number() < 0.5
    return torch.where(image > 1e-3, changed, 0.0 if emptied else changed)


def speckled(image: torch.Tensor, random: Random, ranges: Ranges) -> torch.Tensor:
    """Return an image (1, I, J, K) with a few black and white voxels."""
    if random.number() >= ranges.salt_and_pepper:
        return image
    share = float(random.evenly((0.0, ranges.spoiled)))
    draw = random.voxels(image.shape)
    return torch.where(draw < share / 2, 0.0, torch.where(draw > 1 - share / 2, 1.0, image))


def with_gamma(image: torch.Tensor, random: Random, ranges: Ranges) -> torch.Tensor:
    """Return an image (1, I, J, K) raised to a power near 1."""
    power = math.exp(ranges.gamma * float(random.normals()))
    return image.clamp(min=0).pow(power)
