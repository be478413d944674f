"""Training pairs for enhancement and super-resolution: clean images from label maps and from clean scans, and what
scanners do to them.

Label maps give any contrast and any anatomy but hardly a texture; scans that are averages of many have the texture of
real tissue and little noise of their own. Both are given random contrasts. Everything is torch on the tensor's device;
the same seed gives the same pair.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform, Randomizable
from torch.nn import functional

from medkit.scanner.acquisition import Acquisition, Sampling
from medkit.scanner.noise import estimate
from medkit.synthesis.deformation import random_linear
from medkit.synthesis.draw import Synthesis
from medkit.synthesis.faults import bias_field, scale
from medkit.synthesis.labels import LabelTable
from medkit.synthesis.ranges import Random, Range, Ranges

KIND = "kind"
"""What an item says of its source: `labels` for a label map, anything else is a scan."""
UNIT = "unit"
"""What an item says of its values: `HU`, Hounsfield units, which begin at -1024; else nothing is below 0."""
FOREGROUND = 0.05
"""Of an image whose bright parts are 1: what is above is tissue."""


@dataclass(frozen=True)
class Faults:
    """How far an image is spoiled; intensities run from 0 to 1."""

    noise: Range = (0.004, 0.15)
    """Standard deviation of the noise, drawn evenly on a logarithmic scale."""
    none: float = 0.1
    """Chance of no noise at all, so that a network learns to leave a clean image alone."""
    rician: float = 0.65
    """Chance that it is Rician rather than Gaussian."""
    varying: float = 0.35
    """Chance that it varies in space, as between the coils of an array."""
    variation: float = 0.5
    """Standard deviation of the logarithm of its strength then."""
    variation_spacing: Range = (40.0, 100.0)
    """mm between the control points of its strength."""
    correlated: float = 0.15
    """Chance that it is smooth over neighbours along some axes, as an interpolation leaves it."""
    emptied: float = 0.3
    """Chance that voxels without signal were set to 0 afterwards, by a tool or the scanner."""
    bias: float = 0.3
    """Largest standard deviation of the logarithm of the bias field."""
    bias_spacing: Range = (50.0, 150.0)
    """mm between its control points."""


@dataclass(frozen=True)
class Remap:
    """How the contrast of a clean scan is changed."""

    kept: float = 0.25
    """Chance that it is not."""
    bent: float = 0.5
    """Chance of a gamma among the others; else intensities go through a random piecewise linear function."""
    gamma: float = 0.35
    """Standard deviation of the logarithm of the exponent."""
    knots: int = 5
    """Pieces of the function; its slope is at most 2 either way, so that what noise a scan has hardly grows."""


def patch(
    scan: torch.Tensor, shape: Sequence[int], random: Random, interpolated: float = 0.4, stretch: float = 0.25
) -> torch.Tensor:
    """(1, *shape) part of a scan (1, I, J, K) that holds something, its axes exchanged and turned at will.

    With the chance `interpolated` it is also rotated by any angle and stretched by up to `stretch`, which makes details
    of sizes that the scan does not have; else its voxels are as they are. Beyond the scan it is 0.
    """
    turned = scan.permute(0, *(1 + axis for axis in random.order(3)))
    turned = turned.flip([axis for axis in (1, 2, 3) if random.number() < 0.5])
    seen = (turned[0, ::4, ::4, ::4] > FOREGROUND).nonzero()
    centre = seen[int(random.number() * len(seen))] * 4.0 if len(seen) else torch.tensor(turned.shape[1:]) / 2.0
    # towards the middle of the scan, so that most of the patch is tissue
    centre = 0.7 * centre.cpu() + 0.3 * torch.tensor(turned.shape[1:]) / 2
    if random.number() < interpolated:
        return _sampled(turned, shape, centre, random, stretch)
    return _cut(turned, shape, [round(float(c) - n / 2) for c, n in zip(centre, shape, strict=True)])


def _cut(scan: torch.Tensor, shape: Sequence[int], start: Sequence[int]) -> torch.Tensor:
    first = [min(max(0, s), max(0, have - n)) for s, n, have in zip(start, shape, scan.shape[1:], strict=True)]
    part = scan[:, *(slice(f, f + n) for f, n in zip(first, shape, strict=True))]
    room = [n - have for n, have in zip(shape, part.shape[1:], strict=True)]
    pads = [width for more in reversed(room) for width in (more // 2, more - more // 2)]
    return functional.pad(part, pads) if any(pads) else part.clone()


def _sampled(
    scan: torch.Tensor, shape: Sequence[int], centre: torch.Tensor, random: Random, stretch: float
) -> torch.Tensor:
    linear = random_linear(random, Ranges(rotation=45.0, scaling=stretch, shearing=0.05)).to(scan.device)
    axes = [torch.arange(n, device=scan.device) - (n - 1) / 2 for n in shape]
    points = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1) @ linear.T + centre.to(scan.device)
    size = torch.tensor(scan.shape[1:], device=scan.device)
    where = (2 * points / (size - 1) - 1).flip(-1)[None]
    return functional.grid_sample(scan[None], where, align_corners=True)[0]


def remapped(image: torch.Tensor, random: Random, ranges: Remap) -> torch.Tensor:
    """The image (1, I, J, K), 0 to about 1, in another contrast; 0 stays 0."""
    if random.number() < ranges.kept:
        return image
    if random.number() < ranges.bent:
        return image.clamp(min=0).pow(math.exp(ranges.gamma * float(random.normals())))
    steps = (4 * random.evenly((0.0, 1.0), ranges.knots) - 2) / ranges.knots
    levels = torch.cat([torch.zeros(1), steps.cumsum(0)])
    levels = (levels - levels.min()) if random.number() < 0.5 else levels.abs()
    levels = (levels / levels.max().clamp(min=0.3)).to(image.device)
    at = image.clamp(0, 1) * ranges.knots
    below = at.floor().long().clamp(max=ranges.knots - 1)
    out = levels[below] + (levels[below + 1] - levels[below]) * (at - below)
    return out * (image / FOREGROUND).clamp(0, 1)


def spoiled(
    clean: torch.Tensor, spacing: float, random: Random, faults: Faults
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A clean image (1, I, J, K) as a scanner gives it, the same without noise, and the logarithm of its bias field.

    All (1, I, J, K). The first two are over the 99th percentile of the first, the scale that the network is given.
    """
    ranges = Ranges(bias=faults.bias, bias_spacing=faults.bias_spacing)
    log_field = bias_field(clean.shape[1:], spacing, random, ranges).log()
    target = clean * log_field.exp()
    noisy = noised(target, spacing, random, faults)
    bright = scale(noisy)
    return noisy / bright, target / bright, log_field


@dataclass(frozen=True)
class LowField:
    """What a scanner of low field (0.064 T, say) shows of what one of high field would."""

    resolution: tuple[float, float, float] = (1.6, 1.6, 5.0)
    """mm of its voxels along each axis."""
    contrast: float = 0.6
    """Exponent of the intensities: less than 1 makes tissues more alike."""
    faults: Faults = Faults(
        noise=(0.03, 0.06), none=0.0, rician=1.0, varying=0.0, correlated=0.0, emptied=0.0, bias=0.2
    )
    """Its noise, in voxels of its own, and its bias field."""


def lowered(clean: torch.Tensor, spacing: float, random: Random, scanner: LowField) -> torch.Tensor:
    """A clean image (1, I, J, K), 0 to about 1, as a scanner of low field shows it, interpolated to the same grid."""
    shape = clean.shape[1:]
    ranges = Ranges(bias=scanner.faults.bias, bias_spacing=scanner.faults.bias_spacing)
    dull = clean.clamp(min=0).pow(scanner.contrast) * bias_field(shape, spacing, random, ranges)
    size = [max(2, round(n * spacing / mm)) for n, mm in zip(shape, scanner.resolution, strict=True)]
    coarse = functional.interpolate(dull[None], size, mode="area")[0]
    noisy = noised(coarse, spacing, random, scanner.faults)
    return functional.interpolate(noisy[None], tuple(shape), mode="trilinear")[0]


def noised(image: torch.Tensor, spacing: float, random: Random, faults: Faults) -> torch.Tensor:
    """The image (1, I, J, K) with noise."""
    low, high = (math.log(bound) for bound in faults.noise)
    sigma = 0.0 if random.number() < faults.none else math.exp(float(random.evenly((low, high))))
    strength: torch.Tensor | float = sigma
    if random.number() < faults.varying:
        ranges = Ranges(bias=faults.variation, bias_spacing=faults.variation_spacing)
        strength = sigma * bias_field(image.shape[1:], spacing, random, ranges)
    smooth = [axis for axis in (1, 2, 3) if random.number() < 0.5] if random.number() < faults.correlated else []
    noisy = image + strength * _grains(image, smooth, random)
    if random.number() < faults.rician:
        noisy = torch.hypot(noisy, strength * _grains(image, smooth, random))
    emptied = random.number() < faults.emptied
    return torch.where(image > 1e-3, noisy, torch.zeros_like(noisy)) if emptied and sigma else noisy


def _grains(image: torch.Tensor, smooth: Sequence[int], random: Random) -> torch.Tensor:
    """Standard normal numbers, correlated with the next voxel along the axes `smooth`."""
    noise = random.noise(image.shape)
    for axis in smooth:
        noise = (0.85 * noise + 0.53 * noise.roll(1, axis)) / math.hypot(0.85, 0.53)
    return noise


@dataclass(frozen=True)
class Scanner:
    """How an image is scanned for super-resolution; steps are in voxels of the clean image."""

    slices: float = 0.6
    """Chance of thick slices; else voxels are about as large along all axes."""
    thickness: Range = (1.6, 6.4)
    """From one slice to the next, where slices are thick."""
    plane: Range = (1.05, 1.8)
    """Steps in the plane of thick slices, in `coarse` of them; in the others 1."""
    coarse: float = 0.25
    voxels: Range = (1.4, 2.6)
    """Steps along all axes, where voxels are about cubes."""
    whole: float = 0.5
    """Chance that steps are whole numbers."""
    width: Range = (0.9, 1.1)
    """Full width at half maximum of the profile over the step."""
    noise: Range = (0.002, 0.05)
    """Standard deviation of the noise of the scan, whose bright parts are 1, even on a logarithmic scale."""
    none: float = 0.1
    """Chance of no noise."""
    emptied: float = 0.3
    """Chance that voxels without signal were set to 0."""
    plain: float = 0.2
    """Chance that a scan is interpolated alone and not corrected, as where a network runs without medkit."""

    @property
    def faults(self) -> Faults:
        """Its noise."""
        return Faults(self.noise, self.none, rician=0.7, varying=0.1, correlated=0.0, emptied=self.emptied, bias=0.0)


def scanning(shape: Sequence[int], random: Random, scanner: Scanner) -> Acquisition:
    """A way to scan a clean image of `shape`; thick slices lie along its last axis."""
    if random.number() < scanner.slices:
        plane = float(random.evenly(scanner.plane)) if random.number() < scanner.coarse else 1.0
        thickness = float(random.evenly(scanner.thickness))
        steps = [plane, plane, max(plane, _rounded(thickness, random, scanner))]
    else:
        steps = [_rounded(float(random.evenly(scanner.voxels)), random, scanner)] * 3
    width = float(random.evenly(scanner.width))
    i, j, k = (sampled_axis(n, step, width, random) for n, step in zip(shape, steps, strict=True))
    return Acquisition((i, j, k))


def _rounded(step: float, random: Random, scanner: Scanner) -> float:
    return float(max(2, round(step))) if random.number() < scanner.whole else step


def sampled_axis(size: int, step: float, width: float, random: Random) -> Sampling:
    """An axis scanned with voxels of `step` that begin anywhere."""
    if step == 1:
        return Sampling(size, size)
    start = -random.number() * step
    return Sampling(size, max(2, math.ceil((size - start) / step)), step, start, width)


def scanned(
    clean: torch.Tensor, spacing: float, random: Random, scanner: Scanner
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A clean image (1, I, J, K) as a scanner gives it, back on its grid, and what that lacks of the clean one.

    All (1, I, J, K) but for the third: (3,), the steps along the axes. The way back is a B-spline, corrected by
    back-projection (see `Acquisition.corrected`) as far as the noise, which is estimated, allows. The images are over
    the 99th percentile of the first, the scale that the network is given.
    """
    way = scanning(clean.shape[1:], random, scanner)
    coarse = noised(way.scanned(clean[0])[None], spacing * max(way.steps), random, scanner.faults)[0]
    seen = way.interpolated(coarse)
    if random.number() >= scanner.plain:
        sigma = estimate(coarse.cpu().numpy()).sigma * way.leftover
        seen = way.corrected(seen, coarse - way.scanned(seen), sigma)
    bright = scale(seen)
    return seen[None] / bright, (clean - seen) / bright, torch.tensor(way.steps)


def with_steps(image: torch.Tensor, steps: torch.Tensor) -> torch.Tensor:
    """(C + N, *space): an image (C, *space), and for each of N axes the logarithm (base 2) of its step everywhere.

    What networks for super-resolution are given: they do not have to guess how much is missing along which axis.
    """
    told = steps.to(image).log2().reshape(-1, *[1] * (image.dim() - 1))
    return torch.cat([image, told.expand(-1, *image.shape[1:])])


# ---- MONAI transforms


class PrepareSourced(MapTransform):
    """What is to be done once to an item's source (1, I, J, K): see LabelTable.encode for label maps.

    Scans come to a scale of 0 to about 1: they are divided by their 99.9th percentile.
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
                done: np.ndarray = self.table.encode(values, str(meta.get("filename_or_obj", key)))
            else:
                done = np.maximum(values + (1024 if out.get(UNIT) == "HU" else 0), 0).astype(np.float32)
                done /= max(float(np.percentile(done.ravel()[::7], 99.9)), 1e-6)
            out[key] = MetaTensor(torch.from_numpy(done), meta=meta)
        return out


@dataclass(frozen=True)
class Clean:
    """Draws the clean image of a training pair."""

    synthesis: Synthesis
    """Draws it from a label map, and says its shape and spacing; of faultless ranges."""
    remap: Remap
    """How the contrast of a scan is changed."""

    def __call__(self, source: torch.Tensor, labels: bool, random: Random, seed: int) -> torch.Tensor:
        """(1, *shape) of a prepared source (1, I, J, K)."""
        plain = source.as_tensor() if isinstance(source, MetaTensor) else source
        if labels:
            spacing = source.pixdim.tolist() if isinstance(source, MetaTensor) else (1.0, 1.0, 1.0)
            for attempt in range(10):
                image = self.synthesis(plain[None], spacing, seed + attempt).image[0].clamp(min=0)
                if bool(((image > FOREGROUND) & (image < 2)).float().mean() > 0.1):  # else nearly all of it is air
                    break
            return image
        return remapped(patch(plain, self.synthesis.shape, random), random, self.remap)


class _Paird(Randomizable, MapTransform):
    """Makes a training pair, `image_key` and `target_key`, of an item's prepared source, by way of a clean image."""

    def __init__(
        self,
        keys: KeysCollection,
        synthesis: Synthesis,
        variants: Sequence[Any],
        remap: Remap | None,
        image_key: str,
        target_key: str,
    ) -> None:
        super().__init__(keys)
        self.clean = Clean(synthesis, remap or Remap())
        self.variants = tuple(variants)
        self.image_key, self.target_key = image_key, target_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        out = dict(data)
        for key in self.key_iterator(out):
            seed = int(self.R.randint(2**31))
            random = Random(seed, out[key].device)
            clean = self.clean(out[key], out.get(KIND) == "labels", random, seed)
            out[self.image_key], out[self.target_key] = self.pair(clean, random, self.variants[out.get("variant", 0)])
        return out

    @abstractmethod
    def pair(self, clean: torch.Tensor, random: Random, variant: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """What is given, and what is to be found; `clean` (1, *shape)."""


class DegradeImaged(_Paird):
    """Makes a training pair of an item's prepared source: `image_key`, (1, *shape), and `target_key`, (2, *shape).

    The target is the image without noise, and the logarithm of its bias field. `synthesis` draws the clean image from a
    label map and says which shape and spacing it has; it should be of faultless ranges. Of several `faults` an item's
    "variant" picks one. Scans are taken to have voxels of that spacing.
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
        several = (faults,) if isinstance(faults, Faults) else faults
        super().__init__(keys, synthesis, several, remap, image_key, target_key)

    def pair(self, clean: torch.Tensor, random: Random, variant: Faults) -> tuple[torch.Tensor, torch.Tensor]:
        """See the class."""
        spacing = self.clean.synthesis.spacing
        image, target, log_field = spoiled(clean, spacing, random, variant)
        affine = torch.diag(torch.tensor([*[spacing] * 3, 1.0], dtype=torch.float64))
        return MetaTensor(image, affine=affine), MetaTensor(torch.cat([target, log_field]), affine=affine)


class ScanImaged(_Paird):
    """Makes a training pair for super-resolution of an item's prepared source.

    `image_key`, (4, *shape): what was scanned, back on the clean image's grid, and the steps of the axes (see
    `with_steps`); `target_key`, (1, *shape): what it lacks. `synthesis` is used as in `DegradeImaged`. Of several
    scanners an item's "variant" picks one.
    """

    def __init__(
        self,
        keys: KeysCollection,
        synthesis: Synthesis,
        scanner: Scanner | Sequence[Scanner],
        remap: Remap | None = None,
        image_key: str = "image",
        target_key: str = "label",
    ) -> None:
        several = (scanner,) if isinstance(scanner, Scanner) else scanner
        super().__init__(keys, synthesis, several, remap, image_key, target_key)

    def pair(self, clean: torch.Tensor, random: Random, variant: Scanner) -> tuple[torch.Tensor, torch.Tensor]:
        """See the class."""
        seen, lacking, steps = scanned(clean, self.clean.synthesis.spacing, random, variant)
        return with_steps(seen, steps), lacking


class CompareFieldd(MapTransform):
    """Leaves of `pred` and `label`, (2, I, J, K), their fields alone, made comparable: see EnhancementLoss."""

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        out = dict(data)
        tissue = out["label"][:1] > FOREGROUND
        for key in self.key_iterator(out):
            log_field = out[key][1:]
            out[key] = (log_field - log_field[tissue].mean()) * tissue
        return out
