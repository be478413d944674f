"""Pairs of images drawn from label maps, with which a network learns to align scans of any two contrasts.

The idea of SynthMorph (Hoffmann 2022): two label maps of different people, each deformed and painted in its own
contrast, and the overlap of their labels as the only loss. The images are assumed to be affinely registered: the second
of a pair is brought to the first by the affine map that fits the centres of their structures, up to a random remainder
as such a registration leaves it. Arrays are (B, C, I, J, K) with voxel axes along RAS+; the same seed on the same
device gives the same pair.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform
from torch.nn import functional

from medkit.scanner.separable import apply_along_axes
from medkit.synthesis.appearance import acquired, cropped, grain, looked_up, outlined
from medkit.synthesis.artifacts import with_artifacts
from medkit.synthesis.base_transform import Item, RandomPaird, cubic_affine, plain_tensor, spacing_of
from medkit.synthesis.deformation import displacement, lattice, nearest, random_linear, velocity, visible_middle
from medkit.synthesis.draw import Synthesis
from medkit.synthesis.labels import LabelTable
from medkit.synthesis.ranges import Random, Ranges

LEFT = Ranges(rotation=4.0, scaling=0.05, shearing=0.03, shift=4.0)
"""Rough size of the misalignment that an affine registration of two people leaves."""
CENTRES = "centres"
"""Key of an item: the centres of its structures, see `StructureCentresd`."""


@dataclass(frozen=True, eq=False)
class LabelledHead:
    """An encoded label map (see LabelTable.encode), or its mirror image."""

    labels: torch.Tensor
    """(I, J, K) uint8."""
    spacing: torch.Tensor
    """(3,) mm."""
    centres: torch.Tensor
    """(C, 3) mm from the first voxel: the centre of each channel's structure, NaN without such a structure."""
    flipped: bool = False
    """Whether the mirror image is meant; `labels` are never flipped themselves."""

    def mirror(self, table: LabelTable) -> LabelledHead:
        """Return the mirror image of the head, with left and right exchanged."""
        centres = self.centres[list(table.mirrored)].clone()
        centres[:, 0] = self._width - centres[:, 0]
        return replace(self, centres=centres, flipped=not self.flipped)

    @property
    def _width(self) -> float:
        """mm from the first voxel to the last one along the first axis."""
        return float((self.labels.shape[0] - 1) * self.spacing[0])

    def map_to_labels(self, linear: torch.Tensor, centre: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return a map x -> linear @ x + centre to mm of this head as a map to mm of `labels`."""
        if not self.flipped:
            return linear, centre
        mirror = torch.diag(torch.tensor([-1.0, 1.0, 1.0]))
        return mirror @ linear, mirror @ centre + torch.tensor([self._width, 0.0, 0.0])


def fitted(source: torch.Tensor, target: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the affine map, (3, 3) and (3,), that brings points (N, 3) nearest to others in the least-squares sense.

    Points with NaN in either are ignored. If several maps fit, the one nearest to a translation is returned.
    """
    known = ~(source + target).isnan().any(1)
    source, target = source[known].double(), target[known].double()
    centred = source - source.mean(0)
    linear = torch.eye(3, dtype=torch.float64) + (torch.linalg.pinv(centred) @ (target - target.mean(0) - centred)).T
    return linear.float(), (target.mean(0) - linear @ source.mean(0)).float()


@dataclass(frozen=True, eq=False)
class PairSynthesis:
    """Draws two images, fixed and moving, on the grid of a `Synthesis`, each in its own contrast."""

    synthesis: Synthesis
    left: Ranges = LEFT
    """Misalignment that an affine registration leaves: rotation, scaling, shearing and shift (all of them grow)."""
    fine: int = 2
    """Labels are looked up this many times as finely as the grid, so that thin structures share voxels as in scans."""
    same: float = 0.1
    """Chance that both images show one person."""

    @cached_property
    def _fine(self) -> Synthesis:
        """The fine grid on which labels are looked up."""
        grid = self.synthesis
        i, j, k = (n * self.fine for n in grid.shape)
        return replace(grid, shape=(i, j, k), spacing=grid.spacing / self.fine)

    def __call__(
        self, fixed: LabelledHead, moving: LabelledHead, seed: int, strength: float = 1.0
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return images (2, I, J, K) float32 and channels of the table (2, I, J, K) uint8, fixed first.

        seed: any; strength: 0 to 1, see Ranges.scaled.
        """
        random = Random(seed, fixed.labels.device)
        ranges, left = self.synthesis.ranges.scaled(strength), self.left.scaled(strength)
        if random.number() < self.same:
            moving = fixed
        heads = [h.mirror(self.synthesis.table) if random.number() < ranges.flip else h for h in (fixed, moving)]
        visible = [self.synthesis.visible(random, ranges) for _ in heads]
        linear, centre = random_linear(random, ranges), self._centre(heads[0], visible[0], random, ranges)
        affine, offset = fitted(heads[0].centres, heads[1].centres)
        rest, shift = random_linear(random, left), random.evenly((-left.shift, left.shift), 3)
        maps = [(linear, centre), (affine @ rest @ linear, affine @ centre + offset + shift)]
        drawn = [
            self._drawn(head, shown, *head.map_to_labels(*mapping), random, ranges)
            for head, shown, mapping in zip(heads, visible, maps, strict=True)
        ]
        images, targets = zip(*drawn, strict=True)
        return torch.cat(images), torch.cat(targets)

    def _centre(self, head: LabelledHead, visible: torch.Tensor, random: Random, ranges: Ranges) -> torch.Tensor:
        """Return the point (3,) of a head, mm, in the middle of the grid: near the middle of its visible labels."""
        centre = visible_middle(head.labels, visible) * head.spacing
        return head.map_to_labels(torch.eye(3), centre)[1] + random.evenly((-ranges.shift, ranges.shift), 3)

    def _drawn(
        self,
        head: LabelledHead,
        visible: torch.Tensor,
        linear: torch.Tensor,
        centre: torch.Tensor,
        random: Random,
        ranges: Ranges,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return an image (1, I, J, K) and its channels; the map takes mm from the grid's middle to mm of labels."""
        grid = self._fine
        flow = displacement(velocity(grid.shape, grid.spacing, 1, random, ranges), grid.spacing)
        warp = stretched(flow[0], grid.shape)
        size = head.spacing
        labels = nearest(head.labels, lattice(grid, linear, warp, size, centre / size, torch.zeros(3)))[None, None]
        mean, deviation = self.synthesis.contrast(random, ranges)
        image = functional.avg_pool3d(looked_up(mean, labels), self.fine)
        coarse = labels[..., :: self.fine, :: self.fine, :: self.fine]
        image.add_(looked_up(deviation, coarse).mul_(grain(coarse.shape, random, ranges))).clamp_(min=0)
        image = image * outlined(looked_up(visible, coarse), random, ranges)
        image = cropped(acquired(image, random, ranges), self.synthesis.spacing, random, ranges)
        image = with_artifacts(image, self.synthesis.spacing, random, ranges)
        return image[0], looked_up(self._channels(head.flipped).to(labels.device), coarse)[0]

    def _channels(self, flipped: bool) -> torch.Tensor:
        """Return the channel of every label, (N,) uint8."""
        table = self.synthesis.table
        plain = [table.channels.index(target) for target in table.targets]
        return torch.tensor([table.mirrored[c] if flipped else c for c in plain], dtype=torch.uint8)


def stretched(field: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    """Return a field (C, i, j, k) as (C, *shape): trilinear, corners aligned, axis by axis, which is faster."""
    matrices = [
        functional.interpolate(torch.eye(m, device=field.device)[None], n, mode="linear", align_corners=True)[0].T
        for m, n in zip(field.shape[1:], shape, strict=True)
    ]
    return apply_along_axes(field, matrices)


# ---- MONAI transforms


class StructureCentresd(MapTransform):
    """Adds the centres of the structures of an encoded label map (1, I, J, K), see LabelledHead.centres."""

    def __init__(self, keys: KeysCollection, table: LabelTable) -> None:
        super().__init__(keys)
        self.table = table

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        out = dict(data)
        for key in self.key_iterator(out):
            labels = out[key]
            channels = torch.tensor([self.table.channels.index(t) for t in self.table.targets])
            out[CENTRES] = centres(channels[labels[0].cpu().long()], len(self.table.channels)) * spacing_of(labels)
        return out


def centres(channels: torch.Tensor, count: int) -> torch.Tensor:
    """Return the mean index (count, 3) of each channel of (I, J, K); NaN for 0, the background, and absent ones."""
    flat = channels.reshape(-1)
    voxels = torch.bincount(flat, minlength=count).double()
    out = []
    for axis, size in enumerate(channels.shape):
        along_axis = [size if a == axis else 1 for a in range(3)]
        index = torch.arange(size, dtype=torch.float64).reshape(along_axis).expand(channels.shape)
        out.append(torch.bincount(flat, index.reshape(-1), minlength=count) / voxels)
    found = torch.stack(out, 1).float()
    found[0] = torch.nan
    return found


class DrawPaird(RandomPaird[PairSynthesis]):
    """Draws a fixed image from an item's label map and a moving one from that of a random item of the `others`.

    `image_key` gets both images and `target_key` their labels, (2, I, J, K) each, fixed first. The strength of the
    draws grows from `easiest` to 1 over the first `ramp` samples. Of several `pairs` an item's "variant" picks one.
    Label maps are encoded and have centres, see `EncodeLabelsd` and `StructureCentresd`.
    """

    def __init__(
        self,
        keys: KeysCollection,
        pairs: PairSynthesis | Sequence[PairSynthesis],
        others: Sequence[Mapping[str, Any]],
        image_key: str = "image",
        target_key: str = "label",
        ramp: int = 0,
        easiest: float = 0.0,
    ) -> None:
        super().__init__(keys, pairs, image_key, target_key, ramp, easiest)
        self.others = others

    def pair(self, source: torch.Tensor, item: Item, variant: PairSynthesis) -> tuple[torch.Tensor, torch.Tensor]:
        """See the class."""
        others = [other for other in self.others if not _equal(other[CENTRES], item[CENTRES])] or self.others
        other = others[int(self.R.randint(len(others)))]
        heads = _head(source, item[CENTRES]), _head(other[self.keys[0]], other[CENTRES])
        images, targets = variant(*heads, self.seed(), self.strength(item))
        affine = cubic_affine(variant.synthesis.spacing)
        return MetaTensor(images, affine=affine), MetaTensor(targets, affine=affine)


def _equal(one: torch.Tensor, other: torch.Tensor) -> bool:
    return torch.equal(one.nan_to_num(), other.nan_to_num())


def _head(labels: torch.Tensor, centres: torch.Tensor) -> LabelledHead:
    return LabelledHead(plain_tensor(labels)[0], spacing_of(labels), centres)
