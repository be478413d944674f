"""Noise and bias field of scans: training pairs for enhancement, and scanners of low field."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform
from torch.nn import functional

from medkit.scanner.intensity import intensity_scale
from medkit.synthesis.artifacts import bias_field
from medkit.synthesis.base_transform import Item, RandomPaird, cubic_affine
from medkit.synthesis.clean_images import FOREGROUND, KIND, CleanImages, Remap
from medkit.synthesis.draw import Synthesis
from medkit.synthesis.ranges import Random, Range, Ranges


@dataclass(frozen=True)
class Faults:
    """How strong the noise and the bias field of a scan are; intensities run from 0 to 1."""

    noise: Range = (0.004, 0.15)
    """Standard deviation of the noise, drawn evenly on a logarithmic scale."""
    none: float = 0.1
    """Chance of no noise at all, so that a network learns to leave a clean image unchanged."""
    rician: float = 0.65
    """Chance that the noise is Rician rather than Gaussian."""
    varying: float = 0.35
    """Chance that the noise varies in space, as between the coils of an array."""
    variation: float = 0.5
    """Standard deviation of the logarithm of the strength of noise that varies."""
    variation_spacing: Range = (40.0, 100.0)
    """mm between the control points of that strength."""
    correlated: float = 0.15
    """Chance that the noise is smooth over neighbours along some axes, as after an interpolation."""
    emptied: float = 0.3
    """Chance that voxels without signal were set to 0 afterwards, by a tool or the scanner."""
    bias: float = 0.3
    """Largest standard deviation of the logarithm of the bias field."""
    bias_spacing: Range = (50.0, 150.0)
    """mm between the control points of the bias field."""

    @property
    def field_ranges(self) -> Ranges:
        """Ranges of the bias field."""
        return Ranges(bias=self.bias, bias_spacing=self.bias_spacing)

    @property
    def variation_ranges(self) -> Ranges:
        """Ranges of the strength of noise that varies, which is drawn as a bias field is."""
        return Ranges(bias=self.variation, bias_spacing=self.variation_spacing)


LOW_FIELD_FAULTS = Faults(
    noise=(0.03, 0.06), none=0.0, rician=1.0, varying=0.0, correlated=0.0, emptied=0.0, bias=0.2
)  # fmt: skip


@dataclass(frozen=True)
class LowField:
    """What a scanner of low field (such as 0.064 T) shows of an image of high field."""

    resolution: tuple[float, float, float] = (1.6, 1.6, 5.0)
    """mm of its voxels along each axis."""
    contrast: float = 0.6
    """Exponent of the intensities: less than 1 makes tissues more similar."""
    faults: Faults = LOW_FIELD_FAULTS
    """Its noise, independent between its own voxels, and its bias field."""


def degraded(
    clean: torch.Tensor, spacing: float, random: Random, faults: Faults
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return a clean image as a scan shows it, the same without noise, and the logarithm of its bias field.

    All (1, I, J, K), with voxels of `spacing` mm. The first two are divided by the intensity scale of the first, as the
    network is given it.
    """
    log_field = bias_field(clean.shape[1:], spacing, random, faults.field_ranges).log()
    target = clean * log_field.exp()
    noisy = with_noise(target, spacing, random, faults)
    scale = intensity_scale(noisy)
    return noisy / scale, target / scale, log_field


def lowered(clean: torch.Tensor, spacing: float, random: Random, scanner: LowField) -> torch.Tensor:
    """Return a clean image (1, I, J, K), 0 to about 1, as a scanner of low field shows it, on the same grid."""
    shape = clean.shape[1:]
    field = bias_field(shape, spacing, random, scanner.faults.field_ranges)
    dull = clean.clamp(min=0).pow(scanner.contrast) * field
    size = [max(2, round(n * spacing / mm)) for n, mm in zip(shape, scanner.resolution, strict=True)]
    coarse = functional.interpolate(dull[None], size, mode="area")[0]
    noisy = with_noise(coarse, spacing, random, scanner.faults)
    return functional.interpolate(noisy[None], tuple(shape), mode="trilinear")[0]


def with_noise(image: torch.Tensor, spacing: float, random: Random, faults: Faults) -> torch.Tensor:
    """Return an image (1, I, J, K), with voxels of `spacing` mm, with noise."""
    low, high = (math.log(bound) for bound in faults.noise)
    sigma = 0.0 if random.number() < faults.none else math.exp(float(random.evenly((low, high))))
    strength: torch.Tensor | float = sigma
    if random.number() < faults.varying:
        strength = sigma * bias_field(image.shape[1:], spacing, random, faults.variation_ranges)
    smooth = [axis for axis in (1, 2, 3) if random.number() < 0.5] if random.number() < faults.correlated else []
    noisy = image + strength * _normals(image, smooth, random)
    if random.number() < faults.rician:
        noisy = torch.hypot(noisy, strength * _normals(image, smooth, random))
    emptied = random.number() < faults.emptied
    return torch.where(image > 1e-3, noisy, torch.zeros_like(noisy)) if emptied and sigma else noisy


def _normals(image: torch.Tensor, smooth: Sequence[int], random: Random) -> torch.Tensor:
    """Return standard normal numbers of an image's shape, correlated with the next voxel along the axes `smooth`."""
    noise = random.noise(image.shape)
    for axis in smooth:
        noise = (0.85 * noise + 0.53 * noise.roll(1, axis)) / math.hypot(0.85, 0.53)
    return noise


class DegradeImaged(RandomPaird[Faults]):
    """Makes a training pair of an item's prepared source: `image_key`, (1, *shape), and `target_key`, (2, *shape).

    The target is the image without noise, and the logarithm of its bias field. `synthesis` draws the clean image from a
    label map and fixes its shape and spacing; its ranges should have no artifacts. Of several `faults` an item's
    "variant" picks one. Scans are assumed to have voxels of that spacing.
    """

    def __init__(
        self,
        keys: KeysCollection,
        synthesis: Synthesis,
        faults: Faults | Sequence[Faults],
        remap: Remap | None = None,
        image_key: str = "image",
        target_key: str = "label",
    ) -> None:
        super().__init__(keys, faults, image_key, target_key)
        self.clean = CleanImages(synthesis, remap or Remap())

    def pair(self, source: torch.Tensor, item: Item, variant: Faults) -> tuple[torch.Tensor, torch.Tensor]:
        """See the class."""
        seed, spacing = self.seed(), self.clean.synthesis.spacing
        random = Random(seed, source.device)
        clean = self.clean(source, item.get(KIND) == "labels", random, seed)
        image, target, log_field = degraded(clean, spacing, random, variant)
        affine = cubic_affine(spacing)
        return MetaTensor(image, affine=affine), MetaTensor(torch.cat([target, log_field]), affine=affine)


class CompareFieldd(MapTransform):
    """Reduces `pred` and `label`, (2, I, J, K), to their log bias fields (1, I, J, K), made comparable.

    Only tissue counts, and the mean over it is subtracted, since nobody knows the constant factor of a field
    (see EnhancementLoss).
    """

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        out = dict(data)
        tissue = out["label"][:1] > FOREGROUND
        for key in self.key_iterator(out):
            log_field = out[key][1:]
            out[key] = (log_field - log_field[tissue].mean()) * tissue
        return out
