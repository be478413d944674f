"""Images drawn from label maps: training data of any contrast and resolution without private scans.

The idea of SynthSeg (Billot 2023), SynthMorph (Hoffmann 2022), SynthSR (Iglesias 2021) and SynthStrip (Hoopes 2022):
deform a label map, give every tissue an intensity, then spoil the image the way scanners do. Everything is torch on the
tensor's device and works on batches; arrays are (B, C, I, J, K) with voxel axes along RAS+; lengths are mm. The same
seed on the same device gives the same image.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform, Randomizable

from medkit.synthesis.appearance import acquired, cropped, grain, looked_up, outlined
from medkit.synthesis.deformation import deformed
from medkit.synthesis.faults import spoiled
from medkit.synthesis.labels import LabelTable
from medkit.synthesis.ranges import Random, Ranges


@dataclass(frozen=True, eq=False)
class Drawn:
    """A batch of synthetic images on the output grid."""

    image: torch.Tensor
    """(B, 1, I, J, K) float32; most of the image between 0 and 1."""
    target: torch.Tensor
    """(B, 1, I, J, K) int64 channels of the table (see LabelTable.channels)."""
    labels: torch.Tensor
    """(B, 1, I, J, K) labels 0 .. N-1 of the type given, before anything outside the brain was removed."""
    start: torch.Tensor
    """(B, 3) int64 voxel of the field of view at which the output grid begins: 0 where it is the whole field."""


@dataclass(frozen=True, eq=False)
class Synthesis:
    """Draws images of `shape` voxels of `spacing` mm from encoded label maps (see LabelTable.encode).

    With a `field` of view of more voxels than `shape` every image is a window of it, anywhere.
    """

    table: LabelTable
    shape: tuple[int, int, int]
    spacing: float
    ranges: Ranges = Ranges()
    outside: tuple[int, ...] = ()
    """Indices of the table outside the brain, the background included."""
    fluid: tuple[int, ...] = ()
    """Those of them that are fluid next to the brain."""
    field: tuple[int, int, int] | None = None
    """voxels of the whole field of view, where `shape` is less."""

    def __call__(self, labels: torch.Tensor, spacing: Sequence[float], seed: int, strength: float = 1.0) -> Drawn:
        """Draw one image per label map.

        labels: (B, 1, I, J, K) encoded, any integer type; spacing: (3,) mm of its voxels; seed: any; strength: 0..1.
        """
        random = Random(seed, labels.device)
        ranges = self.ranges.scaled(strength)
        seen = torch.stack([self.seen(random, ranges) for _ in labels])
        flipped = random.chance(len(labels), ranges.flip)
        start = torch.stack([self._start(random) for _ in labels])
        moved = deformed(self, labels, seen, self._away(start, flipped), spacing, random, ranges)
        moved = torch.where(flipped.reshape(-1, 1, 1, 1, 1), moved.flip(2), moved)
        image = self.painted(moved, random, ranges) * outlined(looked_up(seen, moved), random, ranges)
        image = cropped(acquired(image, random, ranges), self.spacing, random, ranges)
        return Drawn(spoiled(image, self.spacing, random, ranges), self._target(moved, flipped), moved, start)

    def _start(self, random: Random) -> torch.Tensor:
        """(3,) where a window begins."""
        room = [whole - size for whole, size in zip(self.field or self.shape, self.shape, strict=True)]
        return torch.tensor([int(random.number() * (n + 1)) if n else 0 for n in room])

    def _away(self, start: torch.Tensor, flipped: torch.Tensor) -> torch.Tensor:
        """(B, 3) mm from the middle of the field to that of each window, before the mirror."""
        room = torch.tensor(self.field or self.shape) - torch.tensor(self.shape)
        away = (start - room / 2) * self.spacing
        away[:, 0] *= torch.where(flipped.cpu(), -1, 1)
        return away

    def seen(self, random: Random, ranges: Ranges) -> torch.Tensor:
        """(N,) 1 for labels that the image shows, 0 for those that a skull-stripping tool has removed."""
        stripped, keeps_fluid = random.number() < ranges.stripped, random.number() < ranges.fluid
        gone = set(self.outside) - (set(self.fluid) if keeps_fluid else set()) if stripped else set()
        return torch.tensor([float(index not in gone) for index in self.table.indices]).to(random.device)

    def _target(self, labels: torch.Tensor, flipped: torch.Tensor) -> torch.Tensor:
        plain = torch.tensor([self.table.channels.index(t) for t in self.table.targets], device=labels.device)
        mirrored = torch.tensor(self.table.mirrored, device=labels.device)[plain]
        return looked_up(torch.where(flipped[:, None], mirrored, plain), labels)

    def painted(self, labels: torch.Tensor, random: Random, ranges: Ranges) -> torch.Tensor:
        """(B, 1, I, J, K) an intensity for every voxel of the labels."""
        mean, deviation = torch.stack([self.contrast(random, ranges) for _ in labels], 1)
        image = looked_up(deviation, labels).mul_(grain(labels.shape, random, ranges)).add_(looked_up(mean, labels))
        return image.clamp_(min=0)

    def contrast(self, random: Random, ranges: Ranges) -> torch.Tensor:
        """(2, N) mean and deviation of every label."""
        table = self.table
        if table.priors and random.number() < ranges.prior:
            groups = [prior.group for prior in table.priors]
            count = max(groups) + 1
            draws = random.normals(2, count)[:, groups]
            centre = torch.tensor([(p.mean, p.deviation) for p in table.priors]).T
            spread = torch.tensor([(p.mean_deviation, p.deviation_deviation) for p in table.priors]).T
            values = (centre + spread * draws).clamp(min=0)
        else:
            count = max(table.classes) + 1
            draws = torch.stack([random.evenly(ranges.mean, count), random.evenly(ranges.deviation, count)])
            values = draws[:, list(table.classes)]
        values[1] *= random.evenly(ranges.texture)
        if random.number() < ranges.dark:
            values[:, 0] = 0
        return values.to(random.device)


# ---- MONAI transforms


class EncodeLabelsd(MapTransform):
    """Renumbers label maps (1, I, J, K) to the labels of a table, uint8: see LabelTable.encode."""

    def __init__(self, keys: KeysCollection, table: LabelTable) -> None:
        super().__init__(keys)
        self.table = table

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        out = dict(data)
        for key in self.key_iterator(out):
            values = out[key]
            meta = getattr(values, "meta", {})
            encoded = self.table.encode(np.asarray(values), str(meta.get("filename_or_obj", key)))
            out[key] = MetaTensor(torch.from_numpy(encoded), meta=meta)
        return out


class SynthesiseImaged(Randomizable, MapTransform):
    """Draws an image from an encoded label map (1, I, J, K): `image_key` and `target_key`, (1, *shape) each.

    The strength of the draws grows from `easiest` to 1 over the first `ramp` samples, where the items count them under
    "sample". Of several ways of drawing an item's "variant" picks one. With `coordinates` the image has three channels
    more: the place of each voxel in the field of view, -0.5 to 0.5, as MONAI's AddCoordinateChannels gives it.
    """

    def __init__(
        self,
        keys: KeysCollection,
        synthesis: Synthesis | Sequence[Synthesis],
        image_key: str = "image",
        target_key: str = "label",
        ramp: int = 0,
        easiest: float = 0.0,
        coordinates: bool = False,
    ) -> None:
        super().__init__(keys)
        self.coordinates = coordinates
        self.ramp, self.easiest = ramp, easiest
        self.ways = (synthesis,) if isinstance(synthesis, Synthesis) else tuple(synthesis)
        self.image_key, self.target_key = image_key, target_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        out = dict(data)
        grown = min(1.0, out.get("sample", self.ramp) / self.ramp) if self.ramp else 1.0
        strength = self.easiest + (1 - self.easiest) * grown
        way = self.ways[out.get("variant", 0)]
        for key in self.key_iterator(out):
            labels = out[key]
            spacing = labels.pixdim.tolist() if isinstance(labels, MetaTensor) else (1.0, 1.0, 1.0)
            plain = labels.as_tensor() if isinstance(labels, MetaTensor) else labels
            drawn = way(plain[None], spacing, int(self.R.randint(2**31)), strength)
            affine = torch.diag(torch.tensor([*[way.spacing] * 3, 1.0], dtype=torch.float64))
            affine[:3, 3] = drawn.start[0] * way.spacing
            place = places(way, drawn.start[0], labels.device) if self.coordinates else []
            out[self.image_key] = MetaTensor(torch.cat([drawn.image[0], *place]), affine=affine)
            out[self.target_key] = MetaTensor(drawn.target[0], affine=affine)
        return out


def places(grid: Synthesis, start: torch.Tensor, device: torch.device) -> list[torch.Tensor]:
    """Three (1, I, J, K) with the place along each axis in the field of view, -0.5 to 0.5."""
    axes = [
        (torch.arange(size, device=device) + int(first)) / max(1, whole - 1) - 0.5
        for size, first, whole in zip(grid.shape, start, grid.field or grid.shape, strict=True)
    ]
    return [axis[None] for axis in torch.meshgrid(*axes, indexing="ij")]
