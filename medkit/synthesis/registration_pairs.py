"""Pairs of images drawn from label maps, with which a network learns to align scans of any two contrasts.

The idea of SynthMorph (Hoffmann 2022): two label maps of different people, each deformed, each painted in a contrast of
its own, and the overlap of their labels as the only loss. An affine registration is taken to have gone before: the
second of a pair is brought to the first by the affine map that fits the centres of their structures, but for what such
a registration leaves. Arrays are (B, C, I, J, K) with voxel axes along RAS+; the same seed on the same device gives the
same pair.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform, Randomizable
from torch.nn import functional

from medkit.synthesis.appearance import acquired, cropped, grain, looked_up, outlined
from medkit.synthesis.deformation import displacement, lattice, middle, nearest, random_linear, velocity
from medkit.synthesis.draw import Synthesis
from medkit.synthesis.faults import spoiled
from medkit.synthesis.labels import LabelTable
from medkit.synthesis.ranges import Random, Ranges

LEFT = Ranges(rotation=4.0, scaling=0.05, shearing=0.03, shift=4.0)
"""What an affine registration of two people leaves, about."""
CENTRES = "centres"
"""Key of an item under which `StructureCentresd` puts the centres of its structures."""


@dataclass(frozen=True, eq=False)
class LabelledHead:
    """An encoded label map (see LabelTable.encode), or its mirror image."""

    labels: torch.Tensor
    """(I, J, K) uint8."""
    spacing: torch.Tensor
    """(3,) mm."""
    centres: torch.Tensor
    """(C, 3) mm from the first voxel: the middle of each channel's structure, NaN where there is none."""
    flipped: bool = False
    """Whether the mirror image is meant: `labels` are never turned themselves."""

    def mirror(self, table: LabelTable) -> LabelledHead:
        """The same head in a mirror, with left and right exchanged."""
        centres = self.centres[list(table.mirrored)].clone()
        centres[:, 0] = self._width - centres[:, 0]
        return replace(self, centres=centres, flipped=not self.flipped)

    @property
    def _width(self) -> float:
        return float((self.labels.shape[0] - 1) * self.spacing[0])

    def turned(self, linear: torch.Tensor, centre: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """A map x -> linear @ x + centre to mm of this head as one to mm of `labels`."""
        if not self.flipped:
            return linear, centre
        turn = torch.diag(torch.tensor([-1.0, 1.0, 1.0]))
        return turn @ linear, turn @ centre + torch.tensor([self._width, 0.0, 0.0])


def fitted(source: torch.Tensor, target: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(3, 3) and (3,): the affine map that takes points (N, 3) nearest to others; NaNs in either count for nothing.

    Of several the one nearest to a shift.
    """
    known = ~(source + target).isnan().any(1)
    one, other = source[known].double(), target[known].double()
    centred = one - one.mean(0)
    linear = torch.eye(3, dtype=torch.float64) + (torch.linalg.pinv(centred) @ (other - other.mean(0) - centred)).T
    return linear.float(), (other.mean(0) - linear @ one.mean(0)).float()


@dataclass(frozen=True, eq=False)
class PairSynthesis:
    """Draws two images, fixed and moving, on the grid of a `Synthesis`, in contrasts of their own.

    Labels are looked up `fine` times as finely as the grid, so that thin structures share its voxels as they do in
    scans. With the chance `same` both images show one person.
    """

    synthesis: Synthesis
    left: Ranges = LEFT
    """What an affine registration leaves between the two: rotation, scaling, shearing and shift (they grow)."""
    fine: int = 2
    same: float = 0.1

    @cached_property
    def _fine(self) -> Synthesis:
        grid = self.synthesis
        i, j, k = (n * self.fine for n in grid.shape)
        return replace(grid, shape=(i, j, k), spacing=grid.spacing / self.fine)

    def __call__(
        self, fixed: LabelledHead, moving: LabelledHead, seed: int, strength: float = 1.0
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Images (2, I, J, K) float32, and channels of the table (2, I, J, K) uint8."""
        random = Random(seed, fixed.labels.device)
        ranges, left = self.synthesis.ranges.scaled(strength), self.left.scaled(strength)
        if random.number() < self.same:
            moving = fixed
        subjects = [s.mirror(self.synthesis.table) if random.number() < ranges.flip else s for s in (fixed, moving)]
        seen = [self.synthesis.seen(random, ranges) for _ in subjects]
        linear, centre = random_linear(random, ranges), self._centre(subjects[0], seen[0], random, ranges)
        there, offset = fitted(subjects[0].centres, subjects[1].centres)
        rest, shift = random_linear(random, left), random.evenly((-left.shift, left.shift), 3)
        maps = [(linear, centre), (there @ rest @ linear, there @ centre + offset + shift)]
        drawn = [
            self._drawn(subject, shown, *subject.turned(*mapping), random, ranges)
            for subject, shown, mapping in zip(subjects, seen, maps, strict=True)
        ]
        images, targets = zip(*drawn, strict=True)
        return torch.cat(images), torch.cat(targets)

    def _centre(self, subject: LabelledHead, seen: torch.Tensor, random: Random, ranges: Ranges) -> torch.Tensor:
        """(3,) mm of the head that the middle of the grid shows: about that of the box around what is seen."""
        thing = seen.bool() & (torch.arange(len(seen), device=seen.device) > 0)
        centre = (middle(thing[subject.labels[::2, ::2, ::2].long()]) * 2 + 0.5) * subject.spacing
        eye = torch.eye(3)
        return subject.turned(eye, centre)[1] + random.evenly((-ranges.shift, ranges.shift), 3)

    def _drawn(
        self,
        subject: LabelledHead,
        seen: torch.Tensor,
        linear: torch.Tensor,
        centre: torch.Tensor,
        random: Random,
        ranges: Ranges,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(1, I, J, K) an image and its channels; the map takes mm from the grid's middle to mm of the labels."""
        grid = self._fine
        flow = displacement(velocity(grid.shape, grid.spacing, 1, random, ranges), grid.spacing)
        warp = stretched(flow[0], grid.shape)
        size = subject.spacing
        labels = nearest(subject.labels, lattice(grid, linear, warp, size, centre / size, torch.zeros(3)))[None, None]
        mean, deviation = self.synthesis.contrast(random, ranges)
        image = functional.avg_pool3d(looked_up(mean, labels), self.fine)
        few = labels[..., :: self.fine, :: self.fine, :: self.fine]
        image.add_(looked_up(deviation, few).mul_(grain(few.shape, random, ranges))).clamp_(min=0)
        image = image * outlined(looked_up(seen, few), random, ranges)
        image = cropped(acquired(image, random, ranges), self.synthesis.spacing, random, ranges)
        image = spoiled(image, self.synthesis.spacing, random, ranges)
        return image[0], looked_up(self._channels(subject.flipped).to(labels.device), few)[0]

    def _channels(self, flipped: bool) -> torch.Tensor:
        """(N,) uint8 the channel of every label."""
        table = self.synthesis.table
        plain = [table.channels.index(target) for target in table.targets]
        return torch.tensor([table.mirrored[c] if flipped else c for c in plain], dtype=torch.uint8)


def stretched(field: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    """(C, *shape) of (C, i, j, k): trilinear interpolation with aligned corners, axis by axis, which is faster."""
    operators = [
        functional.interpolate(torch.eye(m, device=field.device)[None], n, mode="linear", align_corners=True)[0].T
        for m, n in zip(field.shape[1:], shape, strict=True)
    ]
    out = torch.matmul(operators[1], field @ operators[2].T)
    return torch.matmul(operators[0], out.flatten(2)).reshape(-1, *shape)


# ---- MONAI transforms


class StructureCentresd(MapTransform):
    """Adds the centres of the structures of an encoded label map (1, I, J, K), see Subject.centres."""

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
    """(count, 3) mean index of every channel of (I, J, K), NaN for 0, the background, and for what there is not."""
    flat = channels.reshape(-1)
    voxels = torch.bincount(flat, minlength=count).double()
    out = []
    for axis, size in enumerate(channels.shape):
        along = [size if a == axis else 1 for a in range(3)]
        index = torch.arange(size, dtype=torch.float64).reshape(along).expand(channels.shape)
        out.append(torch.bincount(flat, index.reshape(-1), minlength=count) / voxels)
    found = torch.stack(out, 1).float()
    found[0] = torch.nan
    return found


def spacing_of(labels: torch.Tensor) -> torch.Tensor:
    """(3,) mm."""
    pixdim = labels.pixdim if isinstance(labels, MetaTensor) else torch.ones(3)
    return pixdim.float().cpu()


class DrawPaird(Randomizable, MapTransform):
    """Draws a fixed image from an item's label map and a moving one from that of any other of the `others`.

    `image_key` has both images and `target_key` their labels, (2, I, J, K) each, fixed first. The strength of the draws
    grows from `easiest` to 1 over the first `ramp` samples. Of several ways of drawing an item's "variant" picks one.
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
        super().__init__(keys)
        self.ways = (pairs,) if isinstance(pairs, PairSynthesis) else tuple(pairs)
        self.others = others
        self.image_key, self.target_key = image_key, target_key
        self.ramp, self.easiest = ramp, easiest

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        out = dict(data)
        grown = min(1.0, out.get("sample", self.ramp) / self.ramp) if self.ramp else 1.0
        strength = self.easiest + (1 - self.easiest) * grown
        way = self.ways[out.get("variant", 0)]
        for key in self.key_iterator(out):
            others = [item for item in self.others if not _same(item[CENTRES], out[CENTRES])] or self.others
            other = others[int(self.R.randint(len(others)))]
            subjects = [_subject(item[key], item[CENTRES]) for item in (out, other)]
            images, targets = way(*subjects, int(self.R.randint(2**31)), strength)
            affine = torch.diag(torch.tensor([*[way.synthesis.spacing] * 3, 1.0], dtype=torch.float64))
            out[self.image_key], out[self.target_key] = (MetaTensor(x, affine=affine) for x in (images, targets))
        return out


def _same(one: torch.Tensor, other: torch.Tensor) -> bool:
    return torch.equal(one.nan_to_num(), other.nan_to_num())


def _subject(labels: torch.Tensor, centres: torch.Tensor) -> LabelledHead:
    return LabelledHead(plain(labels)[0], spacing_of(labels), centres)


def plain(value: torch.Tensor) -> torch.Tensor:
    return value.as_tensor() if isinstance(value, MetaTensor) else value


# ---- loss
