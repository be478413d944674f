"""Diseases of the lungs painted into a healthy chest CT, so that a network learns lungs that no threshold finds.

Images are (1, I, J, K) float32 in Hounsfield units (HU), voxel axes along RAS+; lungs are (1, I, J, K) bool; lengths
are mm. What a disease does to the intensities follows the terms of the Fleischner Society's glossary (Bankier 2024).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional

from medkit.synthesis.ranges import Random, Range


@dataclass(frozen=True)
class Diseases:
    """How often diseases are drawn, and how strong they are."""

    healthy: float = 0.3
    """Chance that the lungs stay as they are."""
    most: int = 3
    """Most diseases of one image."""
    extent: Range = (0.05, 0.6)
    """Share of a lung that consolidation, ground glass or an effusion takes."""
    whole: float = 0.15
    """Chance that consolidation or an effusion takes nearly all of one lung."""
    nodules: int = 8
    """Most nodules and masses."""
    radius: Range = (2.0, 35.0)
    """Radius of nodules and masses; small ones are more frequent."""


def diseased(
    image: torch.Tensor, lungs: torch.Tensor, spacing: float, random: Random, ranges: Diseases
) -> torch.Tensor:
    """Return the image with diseases drawn into its lungs.

    image: (1, I, J, K) HU; lungs: (2, I, J, K) bool, left and right; spacing: mm of cubic voxels.
    """
    if random.number() < ranges.healthy or not lungs.any():
        return image
    drawn = random.order(len(PAINTERS))[: 1 + int(random.number() * ranges.most)]
    for number in drawn:
        present = [side for side in lungs if side.any()]
        chosen = present if random.number() < 0.4 else [present[int(random.number() * len(present))]]
        for side in chosen:
            image = PAINTERS[number](image, side[None], spacing, random, ranges)
    return image


def consolidation(
    image: torch.Tensor, lungs: torch.Tensor, spacing: float, random: Random, ranges: Diseases
) -> torch.Tensor:
    """Return the image with airspaces that are filled, airways inside them often still open."""
    weight = _patch(lungs, spacing, random, _extent(random, ranges), edge=0.15)
    value = 10 + 60 * random.number() + 12 * random.noise(image.shape)
    if random.number() < 0.5:
        branches = smooth_noise(image.shape[1:], 6 + 8 * random.number(), spacing, random).abs() < 0.12
        value = torch.where(branches, -700.0, value)
    return _mixed(image, value, weight)


def ground_glass(
    image: torch.Tensor, lungs: torch.Tensor, spacing: float, random: Random, ranges: Diseases
) -> torch.Tensor:
    """Return the image with hazy lungs, in which vessels stay visible."""
    weight = _patch(lungs, spacing, random, _extent(random, ranges), edge=0.6)
    haze = float(random.evenly((-650.0, -250.0)))
    return torch.maximum(image, _mixed(image, haze + 40 * random.noise(image.shape), weight))


def effusion(
    image: torch.Tensor, lungs: torch.Tensor, spacing: float, random: Random, ranges: Diseases
) -> torch.Tensor:
    """Return the image with fluid in the lowest part of the chest, and a rim of compressed lung above it.

    Patients lie on their back in most scans, so the lowest part is the posterior one; it may be the anterior or the
    inferior part.
    """
    draw = random.number()
    axis, sign = (2, 1.0) if draw < 0.8 else (2, -1.0) if draw < 0.9 else (3, 1.0)
    height = sign * torch.arange(image.shape[axis], device=image.device, dtype=torch.float32)
    height = height.reshape([-1 if a == axis else 1 for a in range(4)]).expand(image.shape)
    curved = height + (4 + 6 * random.number()) / spacing * smooth_noise(image.shape[1:], 60.0, spacing, random)
    level = _quantile(curved[lungs], _extent(random, ranges))
    fluid, rim = 30 * random.number(), 30 + 60 * random.number()
    above = level + float(random.evenly((0.0, 15.0))) / spacing
    out = _mixed(image, rim + 15 * random.noise(image.shape), (lungs & (curved < above)).float())
    return _mixed(out, fluid + 8 * random.noise(image.shape), (lungs & (curved < level)).float())


def masses(image: torch.Tensor, lungs: torch.Tensor, spacing: float, random: Random, ranges: Diseases) -> torch.Tensor:
    """Return the image with solid or part-solid nodules and masses, half of them on the wall of the chest."""
    inner = lungs & (_depth(lungs, 5.0, spacing) > 0.999)
    places = {True: (lungs & ~inner).nonzero(), False: lungs.nonzero()}
    rough = smooth_noise(image.shape[1:], 8.0, spacing, random)
    image = image.clone()
    for _ in range(1 + int(random.number() * ranges.nodules)):
        choices = places[random.number() < 0.5]
        if not len(choices):
            continue
        place = choices[int(random.number() * len(choices))][1:]
        radius = ranges.radius[0] + (ranges.radius[1] - ranges.radius[0]) * random.number() ** 3
        _add_mass(image, lungs, rough, place, radius, spacing, random)
    return image


def _add_mass(
    image: torch.Tensor,
    lungs: torch.Tensor,
    rough: torch.Tensor,
    place: torch.Tensor,
    radius: float,
    spacing: float,
    random: Random,
) -> None:
    """Change the image around a voxel (3,) to an ellipsoid; `rough`: noise (1, I, J, K) that shapes its surface."""
    reach = int(2 * radius / spacing) + 3
    box = (slice(None), *(slice(max(0, int(n) - reach), int(n) + reach + 1) for n in place))
    axes = [torch.arange(n, device=image.device)[part] for n, part in zip(image.shape[1:], box[1:], strict=True)]
    form = random.evenly((0.7, 1.4), 3)
    squares = [((along - at) * spacing / f) ** 2 for along, at, f in zip(axes, place, form, strict=True)]
    distance = (squares[0][:, None, None] + squares[1][:, None] + squares[2]).sqrt()[None]
    inside = torch.sigmoid((radius * (1 + 0.25 * rough[box].clamp(-2, 2)) - distance) / (0.6 * spacing))
    value = 60 - 600 * (random.number() < 0.2) + 25 * random.noise(distance.shape)
    image[box] = _mixed(image[box], value, inside * lungs[box])


def fibrosis(
    image: torch.Tensor, lungs: torch.Tensor, spacing: float, random: Random, ranges: Diseases
) -> torch.Tensor:
    """Return the image with a net of scars near the wall, strongest at the base, often with cysts between them."""
    shallow = (1.15 - _depth(lungs, 45.0, spacing)).clamp(0, 1)
    base = torch.linspace(1.3, 0.3, image.shape[3], device=image.device)
    weight = (float(random.evenly((0.5, 1.3))) * shallow * base).clamp(0, 1) * lungs
    grain = smooth_noise(image.shape[1:], float(random.evenly((3.0, 8.0))), spacing, random)
    walls = torch.exp(-((grain / 0.35) ** 2))
    cysts = -930.0 if random.number() < 0.5 else -650.0
    value = cysts + walls * (float(random.evenly((0.0, 150.0))) - cysts)
    return _mixed(image, value + 20 * random.noise(image.shape), weight)


def emphysema(
    image: torch.Tensor, lungs: torch.Tensor, spacing: float, random: Random, ranges: Diseases
) -> torch.Tensor:
    """Return the image with destroyed airspaces, or with air around a lung that has come off the wall."""
    if random.number() < 0.3:
        return _pneumothorax(image, lungs, spacing, random)
    weight = _patch(lungs, spacing, random, _extent(random, ranges), edge=0.3)
    return torch.minimum(image, _mixed(image, -970 + 15 * random.noise(image.shape), weight))


def _pneumothorax(image: torch.Tensor, lungs: torch.Tensor, spacing: float, random: Random) -> torch.Tensor:
    shallow = 1 - _depth(lungs, float(random.evenly((15.0, 60.0))), spacing)
    front = torch.linspace(0.0, 1.0, image.shape[2], device=image.device)[:, None]
    outside = lungs & (shallow * (0.3 + front) > float(random.evenly((0.15, 0.4))))
    return _mixed(image, -1000 + 10 * random.noise(image.shape), outside.float())


Painter = Callable[[torch.Tensor, torch.Tensor, float, Random, Diseases], torch.Tensor]
PAINTERS: Sequence[Painter] = (consolidation, ground_glass, effusion, masses, fibrosis, emphysema)


def smooth_noise(shape: Sequence[int], scale: float, spacing: float, random: Random) -> torch.Tensor:
    """Return normal noise (1, *shape) that is smooth over about `scale` mm; mean 0 and standard deviation about 1."""
    points = [max(2, round(n * spacing / scale) + 1) for n in shape]
    field = functional.interpolate(random.noise((1, 1, *points)), tuple(shape), mode="trilinear", align_corners=True)
    return field[0] / field.std().clamp(min=1e-3)


def _extent(random: Random, ranges: Diseases) -> float:
    """Return the share of a lung that a disease takes."""
    whole = random.number() < ranges.whole
    return float(random.evenly((0.85, 1.0) if whole else ranges.extent))


def _patch(lungs: torch.Tensor, spacing: float, random: Random, share: float, edge: float) -> torch.Tensor:
    """Return the weights 0 to 1 of irregular patches that take a share of the lungs; `edge`: how soft they end."""
    scale = float(random.evenly((12.0, 70.0)))
    score = smooth_noise(lungs.shape[1:], scale, spacing, random)
    score = score + 0.4 * smooth_noise(lungs.shape[1:], scale / 3, spacing, random)
    limit = _quantile(-score[lungs], share)
    return torch.sigmoid((score + limit) / edge * 2) * lungs


def _depth(lungs: torch.Tensor, width: float, spacing: float) -> torch.Tensor:
    """Return the share of lung within a cube of `width` mm around each voxel: small near the wall."""
    size = 2 * round(width / spacing / 2) + 1
    out = lungs.float()[None]
    for axis in range(3):
        box = [size if a == axis else 1 for a in range(3)]
        out = functional.avg_pool3d(out, box, 1, [n // 2 for n in box], count_include_pad=False)
    return out[0]


def _quantile(values: torch.Tensor, share: float) -> float:
    """Return a quantile of values, from every n-th of them, as torch takes at most 16 million."""
    return float(torch.quantile(values[:: max(1, len(values) // 100_000)].float(), min(1.0, share)))


def _mixed(image: torch.Tensor, value: torch.Tensor | float, weight: torch.Tensor) -> torch.Tensor:
    return image + weight * (value - image)
