"""Training pairs for the segmentation of chest CT, drawn from scans with label maps.

Diseases are painted into the lungs while their labels stay (see `medkit.synthesis.lung_disease`), and gas into the
abdomen, which stays body. Then contrast agent, table, arms, slice thickness, kernel, dose and field of view are varied.
Images are (1, I, J, K) float32 in HU, voxel axes along RAS+; labels are (1, I, J, K) channel numbers; lengths are mm.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from torch.nn import functional

from medkit.synthesis.base_transform import Item, RandomPaird, cubic_affine, plain_tensor
from medkit.synthesis.lung_disease import Diseases, diseased, smooth_noise
from medkit.synthesis.ranges import Random, Range

AIR = -1000.0
"""Hounsfield units of air, and of everything outside the field of view."""


@dataclass(frozen=True)
class ChestScans:
    """How chest CTs vary: the channels of their labels, the patients, and the scanners."""

    body: int
    """Channel of tissue that has no channel of its own; 0 is the air around the patient."""
    lungs: tuple[int, int]
    """Channels of the left and the right lung."""
    bones: int
    """Channel of bones."""
    spacing: float
    """mm of the voxels."""
    diseases: Diseases = field(default_factory=Diseases)
    """What is painted into the lungs."""
    gas: float = 0.4
    """Chance of gas in the bowel and the stomach, below the lungs."""
    flip: float = 0.2
    """Chance of a mirror image, with the lungs' channels exchanged: some files have the axis wrong."""
    contrast: float = 0.4
    """Chance of contrast agent in soft tissue."""
    enhancement: Range = (60.0, 350.0)
    """Hounsfield units that contrast agent adds."""
    table: float = 0.5
    """Chance of another table under the patient."""
    arms: float = 0.2
    """Chance of arms next to the chest."""
    thickness: Range = (1.0, 8.0)
    """mm of the slices, along the axis from bottom to top."""
    blur: Range = (0.0, 2.0)
    """Standard deviation in mm of a soft kernel."""
    sharpening: Range = (0.0, 1.5)
    """Share of the image's edges that a sharp kernel adds."""
    noise: Range = (5.0, 150.0)
    """Standard deviation of the noise in HU, drawn evenly on a logarithmic scale."""
    cut: float = 0.15
    """Chance, for each face, that the field of view ends early."""
    cut_width: float = 100.0
    """Most mm that are cut off at a face."""


class DrawChestd(RandomPaird[ChestScans]):
    """Makes a training pair of a CT, `keys`, and its label map of channels, `label_key`, both (1, I, J, K).

    The image and the label keep their shape. The same random state and item give the same pair.
    """

    def __init__(
        self,
        keys: KeysCollection,
        variants: ChestScans | Sequence[ChestScans],
        label_key: str = "label",
        image_key: str = "image",
        target_key: str = "label",
    ) -> None:
        super().__init__(keys, variants, image_key, target_key)
        self.label_key = label_key

    def pair(self, source: torch.Tensor, item: Item, variant: ChestScans) -> tuple[torch.Tensor, torch.Tensor]:
        """See the class."""
        random = Random(self.seed(), source.device)
        labels = plain_tensor(item[self.label_key])
        image, labels = drawn(plain_tensor(source).float(), labels, random, variant)
        affine = cubic_affine(variant.spacing)
        return MetaTensor(image, affine=affine), MetaTensor(labels, affine=affine)


def drawn(
    image: torch.Tensor, labels: torch.Tensor, random: Random, scans: ChestScans
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return another scan of a chest, and its labels, both (1, I, J, K)."""
    lungs = torch.cat([labels == number for number in scans.lungs])
    image = diseased(image, lungs, scans.spacing, random, scans.diseases)
    if random.number() < scans.gas:
        image = _with_gas(image, labels, random, scans)
    if random.number() < scans.contrast:
        image = _enhanced(image, labels, random, scans)
    if random.number() < scans.table:
        image = _on_a_table(image, labels, random, scans.spacing)
    if random.number() < scans.arms:
        image, labels = _with_arms(image, labels, random, scans)
    image = _scanned(image, random, scans)
    image, labels = _cut(image, labels, random, scans)
    return _mirrored(image, labels, random, scans)


def _with_gas(image: torch.Tensor, labels: torch.Tensor, random: Random, scans: ChestScans) -> torch.Tensor:
    """Return the image with gas, or gas in faeces, in rounded parts of the abdomen.

    The abdomen is soft tissue below the lowest third of the lungs, 20 mm below the skin, and 6 mm away from the lungs:
    the wall of the stomach and the diaphragm. Gas may end at a level, as it floats on what else is in the bowel.
    """
    lungs = (labels == scans.lungs[0]) | (labels == scans.lungs[1])
    heights = lungs[0].any(0).any(0).nonzero()
    top = image.shape[3] if not len(heights) else int(heights[0] + (heights[-1] - heights[0]) / 3)
    soft = (labels == scans.body) & (image > -200) & (image < 250)
    free = soft & ~_near(lungs, 6.0, scans.spacing) & ~_near(labels == 0, 20.0, scans.spacing)
    free[..., top:] = False
    size = float(random.evenly((15.0, 60.0)))
    shape = smooth_noise(image.shape[1:], size, scans.spacing, random)
    shape = shape + 0.3 * smooth_noise(image.shape[1:], size / 4, scans.spacing, random)
    pieces = free & (shape > float(random.evenly((0.8, 1.8))))
    if random.number() < 0.5:
        level = smooth_noise(image.shape[1:], 4 * size, scans.spacing, random) * 20 / scans.spacing
        depth = torch.arange(image.shape[2], device=image.device)[None, :, None]
        pieces = pieces & (depth > level + image.shape[2] * (0.4 + 0.3 * random.number()))
    value = -1000 + 100 * random.number() + 10 * random.noise(image.shape)
    if random.number() < 0.3:  # faeces: gas in small bubbles
        bubbles = smooth_noise(image.shape[1:], 5.0, scans.spacing, random)
        value = -500 + 300 * bubbles.clamp(-1.5, 1.5) + 10 * random.noise(image.shape)
    return torch.where(pieces, value, image)


def _near(mask: torch.Tensor, width: float, spacing: float) -> torch.Tensor:
    """Return where a mask (1, I, J, K) is within about `width` mm, along the axes."""
    reach = max(1, round(width / spacing))
    out = mask.float()[None]
    for axis in range(3):
        box = [2 * reach + 1 if a == axis else 1 for a in range(3)]
        out = functional.max_pool3d(out, box, 1, [n // 2 for n in box])
    return out[0] > 0


def _enhanced(image: torch.Tensor, labels: torch.Tensor, random: Random, scans: ChestScans) -> torch.Tensor:
    """Return the image with contrast agent in rounded parts of soft tissue, and in the vessels of the lungs."""
    soft = (labels == scans.body) & (image > 0) & (image < 120)
    vessels = ((labels == scans.lungs[0]) | (labels == scans.lungs[1])) & (image > -400)
    filled = torch.sigmoid((smooth_noise(image.shape[1:], 40.0, scans.spacing, random) - 0.3) * 8)
    return image + float(random.evenly(scans.enhancement)) * filled * (soft | vessels)


def _on_a_table(image: torch.Tensor, labels: torch.Tensor, random: Random, spacing: float) -> torch.Tensor:
    """Return the image with a curved plate in the air behind the patient."""
    occupied = (labels[0] > 0).any(2).any(0)
    if not occupied.any():
        return image
    back = int(occupied.nonzero().min())
    across = torch.linspace(-1, 1, image.shape[1], device=image.device)[:, None, None]
    depth = torch.arange(image.shape[2], device=image.device)[None, :, None]
    surface = back - (random.number() * 12 - 2) / spacing + across**2 * random.number() * 40 / spacing
    below = surface - depth
    width = (10 + 40 * random.number()) / spacing
    shell = (below >= 0) & (below < width)
    skin = shell & ((below < 2.5) | (below > width - 2.5))
    value = torch.where(skin, 300 * random.number() - 100, -700 - 250 * random.number())
    return torch.where(shell[None] & (labels == 0), value[None], image)


def _with_arms(
    image: torch.Tensor, labels: torch.Tensor, random: Random, scans: ChestScans
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return image and labels with arms, cylinders with a bone inside, in the air next to the body."""
    places = [torch.arange(n, device=image.device) * scans.spacing for n in image.shape[1:3]]
    for side in (0.0, 1.0):
        radius = float(random.evenly((25.0, 55.0)))
        centre = (
            side * float(places[0][-1]) + (0.5 - side) * 60 * random.number(),
            random.number() * float(places[1][-1]),
        )
        across = ((places[0] - centre[0])[:, None] ** 2 + (places[1] - centre[1])[None, :] ** 2).sqrt()
        distance = across[None, :, :, None].expand(image.shape)
        free = labels == 0
        arm, bone = free & (distance < radius), free & (distance < 0.3 * radius)
        tissue = torch.where(distance > 0.7 * radius, -90.0, 50.0) + 15 * random.noise(image.shape)
        image = torch.where(bone, 500 + 300 * random.number(), torch.where(arm, tissue, image))
        labels = torch.where(bone, scans.bones, torch.where(arm, scans.body, labels))
    return image, labels


def _scanned(image: torch.Tensor, random: Random, scans: ChestScans) -> torch.Tensor:
    """Return the image after another kernel, dose and slice thickness."""
    low, high = (math.log(bound) for bound in scans.noise)
    sigma = math.exp(float(random.evenly((low, high))))
    noise = sigma * random.noise(image.shape)
    if random.number() < 0.3:  # streaks across the shoulders
        size = 2 * int(1 + 6 * random.number()) + 1
        noise = noise + 0.7 * sigma * _mean(random.noise(image.shape), (size, 1, 1)) * math.sqrt(size)
    image = image + noise
    if random.number() < 0.5:
        size = 1 + 2 * int(float(random.evenly(scans.blur)) / scans.spacing + 0.5)
        image = _mean(image, (size, size, 1)) if size > 1 else image
    else:
        image = image + float(random.evenly(scans.sharpening)) * (image - _mean(image, (3, 3, 1)))
    thick = float(random.evenly(scans.thickness)) / scans.spacing
    if thick > 1.25:
        slices = max(2, round(image.shape[3] / thick))
        coarse = functional.interpolate(image[None], (*image.shape[1:3], slices), mode="area")
        image = functional.interpolate(coarse, image.shape[1:], mode="trilinear")[0]
    return image.clamp(-1024, 3071)


def _mean(image: torch.Tensor, size: tuple[int, int, int]) -> torch.Tensor:
    """Return the mean over a box of each voxel, of odd `size`."""
    return functional.avg_pool3d(image[None], size, 1, [n // 2 for n in size], count_include_pad=False)[0]


def _cut(
    image: torch.Tensor, labels: torch.Tensor, random: Random, scans: ChestScans
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return image and labels with air instead of what lies outside a smaller field of view."""
    kept = torch.zeros_like(labels, dtype=torch.bool)
    box: list[slice] = [slice(None)]
    for size in labels.shape[1:]:
        ends = [int(scans.cut_width * random.number() / scans.spacing) * (random.number() < scans.cut) for _ in "ab"]
        first = min(ends[0], size // 3)
        box.append(slice(first, size - min(ends[1], size // 3)))
    kept[tuple(box)] = True
    return torch.where(kept, image, AIR), torch.where(kept, labels, 0)


def _mirrored(
    image: torch.Tensor, labels: torch.Tensor, random: Random, scans: ChestScans
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return image and labels, sometimes mirrored from left to right; the lungs keep the names of their sides."""
    if random.number() >= scans.flip:
        return image, labels
    left, right = scans.lungs
    labels = labels.flip(1)
    return image.flip(1), torch.where(labels == left, right, torch.where(labels == right, left, labels))
