"""The ranges from which a synthetic image is drawn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

Range = tuple[float, float]
"""Lowest and highest value; values are drawn evenly between them."""


@dataclass(frozen=True)
class Ranges:
    """How much synthetic images vary. Intensities run from 0 to 1; voxels are those of the output grid.

    Entries marked (grows) are scaled by the `strength` of a draw, so that a training can start with easy images.
    """

    # space
    rotation: float = 15.0
    """Degrees about each axis, to either side (grows)."""
    scaling: float = 0.12
    """Largest share by which each axis is stretched or shrunk (grows)."""
    shearing: float = 0.02
    """Largest shear of each pair of axes (grows)."""
    shift: float = 12.0
    """mm along each axis, to either side, from the middle of the visible labels (grows)."""
    warp: float = 8.0
    """Largest standard deviation of the smooth displacement at its control points, in mm (grows)."""
    warp_spacing: Range = (20.0, 60.0)
    """mm between the control points of the velocity field."""
    flip: float = 0.5
    """Chance of a mirror image, with left and right labels exchanged."""

    # what the image shows
    stripped: float = 0.5
    """Chance that everything outside the brain is removed."""
    rim: int = 2
    """Most voxels that an inexact removal leaves around the brain."""
    fluid: float = 0.5
    """Chance that a removal keeps the fluid around the brain."""
    dark: float = 0.6
    """Chance that the background of a whole head is 0."""

    cut: float = 0.05
    """Chance, for each face, that the field of view ends early (grows)."""
    cut_width: float = 40.0
    """Most mm of the grid that are cut off at a face."""

    # intensity per class
    prior: float = 0.55
    """Share of images with intensities from the table's priors, 1 at strength 0; the others have any contrast."""
    mean: Range = (0.05, 1.0)
    """Any contrast: mean of a class."""
    deviation: Range = (0.0, 0.08)
    """Any contrast: standard deviation within a class."""
    texture: Range = (0.3, 1.0)
    """Factor on the deviations within classes."""
    texture_grain: float = 0.5
    """Chance that the deviations within classes are smooth over two voxels rather than independent."""

    # acquisition
    thick: float = 0.35
    """Chance of thick slices, that is one axis coarser than the others (grows)."""
    thickness: Range = (1.0, 3.0)
    """Thickness of thick slices, in voxels."""
    blur: Range = (0.3, 0.8)
    """Standard deviation of the scanner's blur along every axis, in voxels."""
    coarse: float = 0.25
    """Chance that the in-plane resolution is coarse too (grows)."""
    coarseness: Range = (1.0, 1.6)
    """In-plane spacing of images with a coarse plane, in voxels."""

    # artifacts
    bias: float = 0.35
    """Largest standard deviation of the logarithm of the bias field (grows)."""
    bias_spacing: Range = (40.0, 120.0)
    """mm between the control points of the bias field."""
    noise: float = 0.04
    """Largest standard deviation of Gaussian or Rician noise (grows)."""
    rician: float = 0.5
    """Chance that the noise is Rician."""
    salt_and_pepper: float = 0.05
    """Chance of single black and white voxels."""
    spoiled: float = 0.002
    """Largest share of black and white voxels."""
    gamma: float = 0.2
    """Standard deviation of the logarithm of the intensities' exponent."""
    ghosting: float = 0.1
    """Chance of ghosts of a moving head."""
    ghosts: Range = (0.02, 0.12)
    """Intensity of ghosts as a share of the image's."""

    def scaled(self, strength: float) -> Ranges:
        """Return the ranges at a strength between 0 (easy) and 1."""
        growing = ("rotation", "scaling", "shearing", "shift", "warp", "thick", "coarse", "cut", "bias", "noise")
        easier = {name: strength * getattr(self, name) for name in growing}
        return replace(self, prior=1 - strength * (1 - self.prior), **easier)


class Random:
    """All random numbers of a draw: few numbers are drawn on the CPU, arrays of voxels on the device."""

    def __init__(self, seed: int, device: torch.device) -> None:
        self.device = device
        self._cpu = torch.Generator().manual_seed(seed)
        self._device = torch.Generator(device).manual_seed(seed + 1)

    def number(self) -> float:
        """Return a number 0 <= x < 1."""
        return float(torch.rand((), generator=self._cpu))

    def evenly(self, bounds: Range, *shape: int) -> torch.Tensor:
        """Return uniform numbers between the bounds, on the CPU; a scalar tensor without a shape."""
        return bounds[0] + (bounds[1] - bounds[0]) * torch.rand(shape, generator=self._cpu)

    def normals(self, *shape: int) -> torch.Tensor:
        """Return standard normal numbers, on the CPU."""
        return torch.randn(shape, generator=self._cpu)

    def chance(self, count: int, probability: float) -> torch.Tensor:
        """Return (count,) bool, each true with the probability, on the device."""
        return (torch.rand(count, generator=self._cpu) < probability).to(self.device)

    def order(self, count: int) -> list[int]:
        """Return the numbers below `count` in random order."""
        return [int(n) for n in torch.randperm(count, generator=self._cpu)]

    def noise(self, shape: Sequence[int]) -> torch.Tensor:
        """Return standard normal numbers on the device."""
        return torch.randn(tuple(shape), generator=self._device, device=self.device)

    def voxels(self, shape: Sequence[int]) -> torch.Tensor:
        """Return uniform numbers 0 <= x < 1 on the device."""
        return torch.rand(tuple(shape), generator=self._device, device=self.device)
