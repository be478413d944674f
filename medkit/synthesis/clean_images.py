"""Clean images for training pairs: drawn from label maps, or cut out of clean scans and given another contrast.

Label maps provide any contrast and any anatomy, but hardly any texture. Scans that are averages of many have the
texture of real tissue and little noise. Everything is torch on the tensor's device; the same seed gives the same image.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform
from torch.nn import functional

from medkit.synthesis.base_transform import plain_tensor, spacing_of
from medkit.synthesis.deformation import random_linear
from medkit.synthesis.draw import Synthesis
from medkit.synthesis.labels import LabelTable
from medkit.synthesis.ranges import Random, Ranges

KIND = "kind"
"""Key of an item: what its source is, `labels` for a label map, anything else for a scan."""
UNIT = "unit"
"""Key of an item: `HU` for Hounsfield units, which start at -1024; other units have no values below 0."""
FOREGROUND = 0.05
"""Voxels above this are tissue, in images whose bright parts are 1."""


@dataclass(frozen=True)
class Remap:
    """How the contrast of a clean scan is changed."""

    kept: float = 0.25
    """Chance that the contrast is not changed."""
    bent: float = 0.5
    """Chance of a gamma among the others; else intensities go through a random piecewise linear function."""
    gamma: float = 0.35
    """Standard deviation of the logarithm of the exponent."""
    knots: int = 5
    """Pieces of the function; its slope is at most 2 either way, so that the noise of a scan hardly grows."""


def patch(
    scan: torch.Tensor, shape: Sequence[int], random: Random, interpolated: float = 0.4, stretch: float = 0.25
) -> torch.Tensor:
    """Return a part (1, *shape) of a scan (1, I, J, K) that contains tissue, with axes swapped and flipped at random.

    With the chance `interpolated` it is also rotated by any angle and stretched by up to `stretch`, which makes details
    of sizes that the scan does not have; else its voxels are unchanged. Beyond the scan it is 0.
    """
    turned = scan.permute(0, *(1 + axis for axis in random.order(3)))
    turned = turned.flip([axis for axis in (1, 2, 3) if random.number() < 0.5])
    tissue = (turned[0, ::4, ::4, ::4] > FOREGROUND).nonzero()
    middle = torch.tensor(turned.shape[1:]) / 2.0
    centre = tissue[int(random.number() * len(tissue))] * 4.0 if len(tissue) else middle
    # towards the middle of the scan, so that most of the patch is tissue
    centre = 0.7 * centre.cpu() + 0.3 * torch.tensor(turned.shape[1:]) / 2
    if random.number() < interpolated:
        return _resampled(turned, shape, centre, random, stretch)
    return _cut(turned, shape, [round(float(c) - n / 2) for c, n in zip(centre, shape, strict=True)])


def _cut(scan: torch.Tensor, shape: Sequence[int], start: Sequence[int]) -> torch.Tensor:
    """Return a part (1, *shape) of a scan that starts near voxel `start`, padded with 0 where the scan is smaller."""
    first = [min(max(0, s), max(0, have - n)) for s, n, have in zip(start, shape, scan.shape[1:], strict=True)]
    part = scan[:, *(slice(f, f + n) for f, n in zip(first, shape, strict=True))]
    missing = [n - have for n, have in zip(shape, part.shape[1:], strict=True)]
    pads = [width for size in reversed(missing) for width in (size // 2, size - size // 2)]
    return functional.pad(part, pads) if any(pads) else part.clone()


def _resampled(
    scan: torch.Tensor, shape: Sequence[int], centre: torch.Tensor, random: Random, stretch: float
) -> torch.Tensor:
    """Return a part (1, *shape) of a scan around voxel `centre`, randomly rotated and stretched."""
    linear = random_linear(random, Ranges(rotation=45.0, scaling=stretch, shearing=0.05)).to(scan.device)
    axes = [torch.arange(n, device=scan.device) - (n - 1) / 2 for n in shape]
    points = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1) @ linear.T + centre.to(scan.device)
    size = torch.tensor(scan.shape[1:], device=scan.device)
    positions = (2 * points / (size - 1) - 1).flip(-1)[None]
    return functional.grid_sample(scan[None], positions, align_corners=True)[0]


def remapped(image: torch.Tensor, random: Random, ranges: Remap) -> torch.Tensor:
    """Return an image (1, I, J, K), 0 to about 1, in another contrast; 0 stays 0."""
    if random.number() < ranges.kept:
        return image
    if random.number() < ranges.bent:
        return image.clamp(min=0).pow(math.exp(ranges.gamma * float(random.normals())))
    steps = (4 * random.evenly((0.0, 1.0), ranges.knots) - 2) / ranges.knots
    levels = torch.cat([torch.zeros(1), steps.cumsum(0)])
    levels = (levels - levels.min()) if random.number() < 0.5 else levels.abs()
    levels = (levels / levels.max().clamp(min=0.3)).to(image.device)
    position = image.clamp(0, 1) * ranges.knots
    below = position.floor().long().clamp(max=ranges.knots - 1)
    out = levels[below] + (levels[below + 1] - levels[below]) * (position - below)
    return out * (image / FOREGROUND).clamp(0, 1)


@dataclass(frozen=True)
class CleanImages:
    """Draws the clean image of a training pair."""

    synthesis: Synthesis
    """Draws it from a label map and fixes its shape and spacing; its ranges should have no artifacts."""
    remap: Remap
    """How the contrast of a scan is changed."""

    def __call__(self, source: torch.Tensor, labels: bool, random: Random, seed: int) -> torch.Tensor:
        """Return an image (1, *shape) from a prepared source (1, I, J, K), a label map or a scan."""
        plain = plain_tensor(source)
        if not labels:
            return remapped(patch(plain, self.synthesis.shape, random), random, self.remap)
        for attempt in range(10):
            image = self.synthesis(plain[None], spacing_of(source).tolist(), seed + attempt).image[0].clamp(min=0)
            if bool(((image > FOREGROUND) & (image < 2)).float().mean() > 0.1):  # else nearly all of it is air
                break
        return image


class PrepareSourced(MapTransform):
    """Prepares an item's source (1, I, J, K) once: encodes label maps (see LabelTable.encode) and scales scans.

    Scans are divided by their 99.9th percentile, so that they run from 0 to about 1.
    """

    def __init__(self, keys: KeysCollection, table: LabelTable) -> None:
        super().__init__(keys)
        self.table = table

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        out = dict(data)
        for key in self.key_iterator(out):
            values = np.asarray(out[key])
            meta = getattr(out[key], "meta", {})
            if out.get(KIND) == "labels":
                prepared: np.ndarray = self.table.encode(values, str(meta.get("filename_or_obj", key)))
            else:
                prepared = np.maximum(values + (1024 if out.get(UNIT) == "HU" else 0), 0).astype(np.float32)
                prepared /= max(float(np.percentile(prepared.ravel()[::7], 99.9)), 1e-6)
            out[key] = MetaTensor(torch.from_numpy(prepared), meta=meta)
        return out
