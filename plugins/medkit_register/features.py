"""What a metric compares of a scan at one resolution, and how far to trust it at each point."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from medkit_register.axis_sampling import smooth
from medkit_register.pyramid import Pyramid
from medkit_register.similarity import normalised


@dataclass(frozen=True)
class MetricSettings:
    """The metric at one resolution."""

    metric: str
    """lncc, mi, mse or mind."""
    window: float
    """lncc: the window's standard deviation in points; mind: about the same of all that a descriptor depends on."""
    floor: float = 0.05
    """lncc: added to local deviations (intensities run 0..1), so that noise in flat regions stays small."""


def feature(pyramid: Pyramid, spacing: float, settings: MetricSettings) -> torch.Tensor:
    """Return the image (I, J, K) that the metric compares at `spacing` mm, kept with the pyramid."""
    level = pyramid.level(spacing)
    if settings.metric != "lncc":
        return level.image
    key = ("feature", spacing, settings)
    if key not in pyramid.features:
        pyramid.features[key] = normalised(level.image, settings.window, settings.floor)
    return pyramid.features[key]  # type: ignore[return-value]


def reliable(pyramid: Pyramid, spacing: float, settings: MetricSettings) -> torch.Tensor | None:
    """Return how far each point's feature depends on voxels inside the scan and its mask, (I, J, K) 0..1; None: all 1.

    A window of lncc that reaches beyond the scan covers other tissue than its counterpart in the other scan.
    """
    level = pyramid.level(spacing)
    if settings.metric not in ("lncc", "mind"):
        return level.mask
    inside = None
    if level.mask is not None:
        inside = level.mask * ramp(smooth(level.mask, settings.window))
    for axis, closed in enumerate(pyramid.closed):
        if axis != pyramid.planar_axis and not closed.all():
            along = from_borders(level.image.shape[axis], settings.window, closed)
            shape = [-1 if a == axis else 1 for a in range(3)]
            inside = (level.image * 0 + 1 if inside is None else inside) * along.reshape(shape)
    return inside


def ramp(share: torch.Tensor) -> torch.Tensor:
    """Return the weight of a window of which `share` lies inside: 0 up to one half, 1 from 95 % on."""
    return ((share - 0.5) / 0.45).clamp(0, 1)


def from_borders(size: int, window: float, closed: np.ndarray) -> torch.Tensor:
    """Return weights (size,) along an axis that fall towards the ends (low, high) that are not `closed`."""
    steps = torch.arange(size) + 0.5
    ends = [
        torch.ones(size) if shut else ramp(torch.special.ndtr(distance / window))
        for shut, distance in zip(closed, (steps, steps.flip(0)), strict=True)
    ]
    return ends[0] * ends[1]


def slope(image: torch.Tensor, axis: int) -> torch.Tensor:
    """Return central differences of an image (I, J, K) along an axis, zero at its two ends."""
    out = torch.zeros_like(image)
    size = image.shape[axis]
    if size > 2:
        difference = image.narrow(axis, 2, size - 2) - image.narrow(axis, 0, size - 2)
        out.narrow(axis, 1, size - 2).copy_(difference).mul_(0.5)
    return out


def slopes(image: torch.Tensor) -> torch.Tensor:
    """Return the slopes (3, I, J, K) of an image (I, J, K) along its axes."""
    return torch.stack([slope(image, axis) for axis in range(3)])
