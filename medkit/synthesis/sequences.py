"""Training pairs for super-resolution of planes: pixels of X-rays and of slices, with the frames before and after.

A frame of a sequence shows what its neighbours show from a slightly other place, so together they know more than each
of them. A plane without neighbours stands in for them, so that one network does both. Everything is torch on the
tensor's device; the same seed gives the same pair.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform, Randomizable
from torch.nn import functional

from medkit.scanner.acquisition import Acquisition, Sampling
from medkit.scanner.noise import estimate
from medkit.synthesis.degradation import KIND, Remap, Scanner, noised, remapped, sampled_axis, with_steps
from medkit.synthesis.faults import scale
from medkit.synthesis.ranges import Random, Range

SLICES, PLANES = "slices", "planes"
"""What an item's source may be, beside a volume of cubes: slices along the last axis, and planes that do not belong
together along it."""
FRAMES = 3
"""This one, the one before, the one after."""


@dataclass(frozen=True)
class Neighbours:
    """What the frames before and after show."""

    alone: float = 0.4
    """Chance of a plane without any: it stands in for them."""
    slices: float = 0.25
    """Chance of the slices beside it, where the source has them; else the same from another place."""
    shift: float = 1.5
    """Pixels: standard deviation of how far such a place is away along each axis."""
    turn: float = 1.0
    """Degrees: standard deviation of how far it is turned."""


def frames_of(
    source: torch.Tensor, kind: str | None, shape: Sequence[int], random: Random, neighbours: Neighbours
) -> torch.Tensor:
    """(1, H, W, 3) a part of a plane of a source (1, I, J, K), and of the two beside it; this one comes first."""
    volume = source[0]
    if kind not in (SLICES, PLANES):
        volume = volume.permute(random.order(3))
    elif random.number() < 0.5:
        volume = volume.transpose(0, 1)
    count = volume.shape[2]
    number = int(random.number() * count)
    alone = random.number() < neighbours.alone
    beside = kind != PLANES and random.number() < neighbours.slices
    before, after = (max(number - 1, 0), min(number + 1, count - 1)) if beside and not alone else (number, number)
    planes = torch.stack([volume[..., n] for n in (number, before, after)])
    planes = planes.flip([axis for axis in (1, 2) if random.number() < 0.5])
    planes = _cut(planes, shape, random)
    if not alone and not beside:
        planes[1:] = torch.stack([_moved(plane, random, neighbours) for plane in planes[1:]])
    return planes.permute(1, 2, 0)[None]


def _cut(planes: torch.Tensor, shape: Sequence[int], random: Random) -> torch.Tensor:
    """(N, *shape) of planes (N, I, J), mirrored at their ends where they are smaller, from where there is something."""
    room = [max(0, wanted - have) for wanted, have in zip(shape, planes.shape[1:], strict=True)]
    if any(room):
        pads = [width for more in reversed(room) for width in (more // 2, more - more // 2)]
        planes = functional.pad(planes[None], pads, mode="reflect")[0]
    for _ in range(4):
        first = [int(random.number() * (have - n + 1)) for have, n in zip(planes.shape[1:], shape, strict=True)]
        part = planes[:, first[0] : first[0] + shape[0], first[1] : first[1] + shape[1]]
        if float(part[0].std()) > 0.03:
            break
    return part.clone()


def _moved(plane: torch.Tensor, random: Random, neighbours: Neighbours) -> torch.Tensor:
    angle = torch.deg2rad(neighbours.turn * random.normals()).item()
    shift = neighbours.shift * random.normals(2) * 2 / torch.tensor(plane.shape[::-1])
    cosine, sine = torch.cos(torch.tensor(angle)), torch.sin(torch.tensor(angle))
    theta = torch.tensor([[cosine, -sine, shift[0]], [sine, cosine, shift[1]]], device=plane.device)
    where = functional.affine_grid(theta[None], [1, 1, *plane.shape], align_corners=False)
    out: torch.Tensor = functional.grid_sample(
        plane[None, None], where, mode="bicubic", padding_mode="reflection", align_corners=False
    )
    return out[0, 0]


def scanned_frames(
    fine: torch.Tensor, steps: Range, random: Random, scanner: Scanner
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Frames (1, H, W, 3) as a device gives them, back on their grid; what the first lacks; the steps of both axes.

    (3, H, W), (1, H, W) and (2,); as `medkit.synthesis.degradation.scanned` does it for volumes.
    """
    step = float(random.evenly(steps))
    step = float(round(step)) if random.number() < scanner.whole else step
    width = float(random.evenly(scanner.width))
    i, j = (sampled_axis(n, step, width, random) for n in fine.shape[1:3])
    way = Acquisition((i, j, Sampling(FRAMES, FRAMES)))
    coarse = noised(way.scanned(fine[0])[None], step, random, scanner.faults)[0]
    seen = way.interpolated(coarse)
    if random.number() >= scanner.plain:
        sigma = estimate(coarse[..., 0].cpu().numpy()).sigma * way.leftover
        seen = way.corrected(seen, coarse - way.scanned(seen), sigma)
    bright = scale(seen[..., 0])
    frames = seen.permute(2, 0, 1) / bright
    return frames, fine[0, ..., 0][None] / bright - frames[:1], torch.tensor([step, step])


class ScanFramesd(Randomizable, MapTransform):
    """Makes a training pair of an item's prepared source (1, I, J, K): `image_key`, (5, *shape), the frames and the
    steps of the axes, and `target_key`, (1, *shape), what the first frame lacks.

    Of several `steps`, lowest and highest, an item's "variant" picks one.
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
        super().__init__(keys)
        self.shape, self.scanner = tuple(shape), scanner
        self.steps: Sequence[Any] = steps if isinstance(steps[0], list | tuple) else (steps,)
        self.neighbours, self.remap = neighbours or Neighbours(), remap or Remap()
        self.image_key, self.target_key = image_key, target_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        out = dict(data)
        for key in self.key_iterator(out):
            source = out[key].as_tensor() if isinstance(out[key], MetaTensor) else out[key]
            random = Random(int(self.R.randint(2**31)), source.device)
            fine = frames_of(source, out.get(KIND), self.shape, random, self.neighbours)
            fine = remapped(fine, random, self.remap)
            low, high = self.steps[out.get("variant", 0)]
            seen, lacking, steps = scanned_frames(fine, (low, high), random, self.scanner)
            out[self.image_key], out[self.target_key] = with_steps(seen, steps), lacking
        return out
