"""Training pairs for super-resolution of planes: pixels of X-rays and of slices, with the frames before and after.

A frame of a sequence shows what its neighbours show from a slightly different place, so together they hold more detail
than each of them. A plane without neighbours takes their place too, so that one network does both. Everything is
torch on the tensor's device; the same seed gives the same pair.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from monai.config import KeysCollection
from torch.nn import functional

from medkit.scanner.acquisition import Acquisition, Sampling
from medkit.scanner.intensity import intensity_scale
from medkit.synthesis.base_transform import Item, RandomPaird, plain_tensor
from medkit.synthesis.clean_images import KIND, Remap, remapped
from medkit.synthesis.degradation import with_noise
from medkit.synthesis.ranges import Random, Range
from medkit.synthesis.sampling import Scanner, restored, sampled_axis, with_steps

SLICES, PLANES = "slices", "planes"
"""Kinds of sources besides volumes of cubic voxels: slices along the last axis, or unrelated planes along it."""
FRAMES = 3
"""A frame, the one before and the one after."""


@dataclass(frozen=True)
class Neighbours:
    """Which images take the place of the frames before and after."""

    alone: float = 0.4
    """Chance of a plane without neighbours, which takes their place too."""
    slices: float = 0.25
    """Chance of the adjacent slices, if the source has them; else the same plane from a slightly different place."""
    shift: float = 1.5
    """Standard deviation of the shift to such a place along each axis, in pixels."""
    turn: float = 1.0
    """Standard deviation of its rotation, in degrees."""


def frames_of(
    source: torch.Tensor, kind: str | None, shape: Sequence[int], random: Random, neighbours: Neighbours
) -> torch.Tensor:
    """Return parts (1, H, W, 3) of a plane of a source (1, I, J, K), first, and of its two neighbours.

    kind: SLICES, PLANES or anything else for a volume of cubic voxels; shape: (H, W).
    """
    volume = source[0]
    if kind not in (SLICES, PLANES):
        volume = volume.permute(random.order(3))
    elif random.number() < 0.5:
        volume = volume.transpose(0, 1)
    count = volume.shape[2]
    number = int(random.number() * count)
    alone = random.number() < neighbours.alone
    adjacent = kind != PLANES and random.number() < neighbours.slices
    before, after = (max(number - 1, 0), min(number + 1, count - 1)) if adjacent and not alone else (number, number)
    planes = torch.stack([volume[..., n] for n in (number, before, after)])
    planes = planes.flip([axis for axis in (1, 2) if random.number() < 0.5])
    planes = _cut(planes, shape, random)
    if not alone and not adjacent:
        planes[1:] = torch.stack([_moved(plane, random, neighbours) for plane in planes[1:]])
    return planes.permute(1, 2, 0)[None]


def _cut(planes: torch.Tensor, shape: Sequence[int], random: Random) -> torch.Tensor:
    """Return parts (N, *shape) of planes (N, I, J) that show something, mirrored at the ends of smaller planes."""
    missing = [max(0, wanted - have) for wanted, have in zip(shape, planes.shape[1:], strict=True)]
    if any(missing):
        pads = [width for size in reversed(missing) for width in (size // 2, size - size // 2)]
        planes = functional.pad(planes[None], pads, mode="reflect")[0]
    for _ in range(4):
        first = [int(random.number() * (have - n + 1)) for have, n in zip(planes.shape[1:], shape, strict=True)]
        part = planes[:, first[0] : first[0] + shape[0], first[1] : first[1] + shape[1]]
        if float(part[0].std()) > 0.03:
            break
    return part.clone()


def _moved(plane: torch.Tensor, random: Random, neighbours: Neighbours) -> torch.Tensor:
    """Return a plane (H, W) randomly shifted and rotated."""
    angle = torch.deg2rad(neighbours.turn * random.normals()).item()
    shift = neighbours.shift * random.normals(2) * 2 / torch.tensor(plane.shape[::-1])
    cosine, sine = torch.cos(torch.tensor(angle)), torch.sin(torch.tensor(angle))
    theta = torch.tensor([[cosine, -sine, shift[0]], [sine, cosine, shift[1]]], device=plane.device)
    positions = functional.affine_grid(theta[None], [1, 1, *plane.shape], align_corners=False)
    out: torch.Tensor = functional.grid_sample(
        plane[None, None], positions, mode="bicubic", padding_mode="reflection", align_corners=False
    )
    return out[0, 0]


def scanned_frames(
    fine: torch.Tensor, steps: Range, random: Random, scanner: Scanner
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return scans (3, H, W) of frames, back on their grid, what the first lacks (1, H, W), and both axes' steps (2,).

    fine: frames (1, H, W, 3); steps: lowest and highest step in fine pixels. `medkit.synthesis.sampling.scanned` does
    the same for volumes.
    """
    step = float(random.evenly(steps))
    step = float(round(step)) if random.number() < scanner.whole else step
    width = float(random.evenly(scanner.width))
    i, j = (sampled_axis(n, step, width, random) for n in fine.shape[1:3])
    acquisition = Acquisition((i, j, Sampling(FRAMES, FRAMES)))
    coarse = with_noise(acquisition.scanned(fine[0])[None], step, random, scanner.faults)[0]
    scans = restored(coarse, acquisition, random, scanner, coarse[..., 0])
    scale = intensity_scale(scans[..., 0])
    frames = scans.permute(2, 0, 1) / scale
    return frames, fine[0, ..., 0][None] / scale - frames[:1], torch.tensor([step, step])


class ScanFramesd(RandomPaird[Range]):
    """Makes a training pair for super-resolution of planes of an item's prepared source (1, I, J, K).

    `image_key` gets (5, *shape): the frames and the steps of both axes (see `with_steps`); `target_key` gets
    (1, *shape): what the first frame lacks. Of several `steps`, lowest and highest, an item's "variant" picks one.
    """

    def __init__(
        self,
        keys: KeysCollection,
        shape: Sequence[int],
        steps: Range | Sequence[Range],
        scanner: Scanner,
        neighbours: Neighbours | None = None,
        remap: Remap | None = None,
        image_key: str = "image",
        target_key: str = "label",
    ) -> None:
        several: Sequence[Any] = steps if isinstance(steps[0], list | tuple) else (steps,)
        super().__init__(keys, several, image_key, target_key)
        self.shape, self.scanner = tuple(shape), scanner
        self.neighbours, self.remap = neighbours or Neighbours(), remap or Remap()

    def pair(self, source: torch.Tensor, item: Item, variant: Range) -> tuple[torch.Tensor, torch.Tensor]:
        """See the class."""
        source = plain_tensor(source)
        random = Random(self.seed(), source.device)
        fine = frames_of(source, item.get(KIND), self.shape, random, self.neighbours)
        fine = remapped(fine, random, self.remap)
        low, high = variant
        frames, lacking, steps = scanned_frames(fine, (low, high), random, self.scanner)
        return with_steps(frames, steps), lacking
