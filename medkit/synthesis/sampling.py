"""Training pairs for super-resolution: how scanners sample a clean image with thicker slices or larger voxels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from monai.config import KeysCollection

from medkit.scanner.acquisition import Acquisition, Sampling
from medkit.scanner.intensity import intensity_scale
from medkit.scanner.noise import estimate
from medkit.synthesis.base_transform import Item, RandomPaird
from medkit.synthesis.clean_images import KIND, CleanImages, Remap
from medkit.synthesis.degradation import Faults, with_noise
from medkit.synthesis.draw import Synthesis
from medkit.synthesis.ranges import Random, Range


@dataclass(frozen=True)
class Scanner:
    """How an image is scanned for super-resolution; steps are in voxels of the clean image."""

    slices: float = 0.6
    """Chance of thick slices; else voxels are about as large along all axes."""
    thickness: Range = (1.6, 6.4)
    """From one slice to the next, where slices are thick."""
    plane: Range = (1.05, 1.8)
    """Steps in the plane of those thick slices that are coarse in their plane; 1 in the others."""
    coarse: float = 0.25
    """Chance that thick slices are coarse in their plane too."""
    voxels: Range = (1.4, 2.6)
    """Steps along all axes, where voxels are about cubes."""
    whole: float = 0.5
    """Chance that steps are whole numbers."""
    width: Range = (0.9, 1.1)
    """Full width at half maximum of the profile, as a share of the step."""
    noise: Range = (0.002, 0.05)
    """Standard deviation of the scan's noise, drawn evenly on a logarithmic scale; the scan's bright parts are 1."""
    none: float = 0.1
    """Chance of no noise."""
    emptied: float = 0.3
    """Chance that voxels without signal were set to 0."""
    plain: float = 0.2
    """Chance that a scan is only interpolated and not corrected, as where a network runs without medkit."""

    @property
    def faults(self) -> Faults:
        """Noise of the scanner."""
        return Faults(self.noise, self.none, rician=0.7, varying=0.1, correlated=0.0, emptied=self.emptied, bias=0.0)


def random_acquisition(shape: Sequence[int], random: Random, scanner: Scanner) -> Acquisition:
    """Return a random scan of a clean image of `shape`; thick slices lie along its last axis."""
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
    """Return the step as a whole number of at least 2, with the chance `whole`; else as it is."""
    return float(max(2, round(step))) if random.number() < scanner.whole else step


def sampled_axis(size: int, step: float, width: float, random: Random) -> Sampling:
    """Return the sampling of an axis of `size` fine voxels by voxels of `step`, whose start is random."""
    if step == 1:
        return Sampling(size, size)
    start = -random.number() * step
    return Sampling(size, max(2, math.ceil((size - start) / step)), step, start, width)


def restored(
    coarse: torch.Tensor, acquisition: Acquisition, random: Random, scanner: Scanner, sample: torch.Tensor
) -> torch.Tensor:
    """Return a scan interpolated to the fine grid and, except for a share `plain` of the scans, corrected.

    The correction is a back-projection (see `Acquisition.corrected`) as far as the noise allows, which is estimated
    from `sample`, the scan or a part of it.
    """
    fine = acquisition.interpolated(coarse)
    if random.number() < scanner.plain:
        return fine
    sigma = estimate(sample.cpu().numpy()).sigma * acquisition.leftover
    return acquisition.corrected(fine, coarse - acquisition.scanned(fine), sigma)


def scanned(
    clean: torch.Tensor, spacing: float, random: Random, scanner: Scanner
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return a scan of a clean image, back on its grid, what the scan lacks of it, and the steps of the scan's axes.

    clean: (1, I, J, K) with voxels of `spacing` mm. Of that shape are the first two, which are divided by the intensity
    scale of the first, as the network is given it; the steps are (3,). See `restored` for the way back to the grid.
    """
    acquisition = random_acquisition(clean.shape[1:], random, scanner)
    step = max(acquisition.steps)
    coarse = with_noise(acquisition.scanned(clean[0])[None], spacing * step, random, scanner.faults)[0]
    fine = restored(coarse, acquisition, random, scanner, coarse)
    scale = intensity_scale(fine)
    return fine[None] / scale, (clean - fine) / scale, torch.tensor(acquisition.steps)


def with_steps(image: torch.Tensor, steps: torch.Tensor) -> torch.Tensor:
    """Return an image (C, *space) with N more channels: the base 2 logarithm of the step of each of N axes.

    Networks for super-resolution are given these, so that they need not guess how much is missing along which axis.
    """
    channels = steps.to(image).log2().reshape(-1, *[1] * (image.dim() - 1))
    return torch.cat([image, channels.expand(-1, *image.shape[1:])])


class ScanImaged(RandomPaird[Scanner]):
    """Makes a training pair for super-resolution of an item's prepared source.

    `image_key` gets (4, *shape): the scan, back on the clean image's grid, and the steps of the axes (see
    `with_steps`); `target_key` gets (1, *shape): what the scan lacks. `synthesis` draws the clean image from a label
    map and fixes its shape and spacing; its ranges should have no artifacts. Of several scanners an item's "variant"
    picks one. Scans are assumed to have voxels of that spacing.
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
        super().__init__(keys, scanner, image_key, target_key)
        self.clean = CleanImages(synthesis, remap or Remap())

    def pair(self, source: torch.Tensor, item: Item, variant: Scanner) -> tuple[torch.Tensor, torch.Tensor]:
        """See the class."""
        seed = self.seed()
        random = Random(seed, source.device)
        clean = self.clean(source, item.get(KIND) == "labels", random, seed)
        scan, lacking, steps = scanned(clean, self.clean.synthesis.spacing, random, variant)
        return with_steps(scan, steps), lacking
