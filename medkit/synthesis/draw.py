"""Images drawn from label maps: training data of any contrast and resolution without private scans.

The idea of SynthSeg (Billot 2023), SynthMorph (Hoffmann 2022), SynthSR (Iglesias 2021) and SynthStrip (Hoopes 2022):
deform a label map, give every tissue an intensity, then add the artifacts of scanners. Everything is torch on the
tensor's device and works on batches; arrays are (B, C, I, J, K) with voxel axes along RAS+; lengths are mm. The same
seed on the same device gives the same image.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform

from medkit.synthesis.appearance import acquired, cropped, grain, looked_up, outlined
from medkit.synthesis.artifacts import with_artifacts
from medkit.synthesis.base_transform import Item, RandomPaird, cubic_affine, plain_tensor, spacing_of
from medkit.synthesis.deformation import deformed
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
    """(B, 1, I, J, K) labels 0 .. N-1 of the input's type, those outside the brain included."""
    start: torch.Tensor
    """(B, 3) int64 voxel of the field of view at which the output grid starts; 0 if it is the whole field."""


@dataclass(frozen=True, eq=False)
class Synthesis:
    """Draws images of `shape` voxels of `spacing` mm from encoded label maps (see LabelTable.encode).

    If `field` has more voxels than `shape`, every image is a random window of that field of view.
    """

    table: LabelTable
    shape: tuple[int, int, int]
    spacing: float
    ranges: Ranges = field(default_factory=Ranges)
    outside: tuple[int, ...] = ()
    """Values in the label maps that lie outside the brain, the background included."""
    fluid: tuple[int, ...] = ()
    """Those of `outside` that are fluid next to the brain."""
    field: tuple[int, int, int] | None = None
    """Voxels of the whole field of view; None: it is `shape`."""

    def __call__(self, labels: torch.Tensor, spacing: Sequence[float], seed: int, strength: float = 1.0) -> Drawn:
        """Draw one image per label map.

        labels: (B, 1, I, J, K) encoded, any integer type; spacing: (3,) mm of their voxels; seed: any; strength: 0 to
        1, see Ranges.scaled.
        """
        random = Random(seed, labels.device)
        ranges = self.ranges.scaled(strength)
        visible = torch.stack([self.visible(random, ranges) for _ in labels])
        flipped = random.chance(len(labels), ranges.flip)
        start = torch.stack([self._start(random) for _ in labels])
        moved = deformed(self, labels, visible, self._offsets(start, flipped), spacing, random, ranges)
        moved = torch.where(flipped.reshape(-1, 1, 1, 1, 1), moved.flip(2), moved)
        image = self.painted(moved, random, ranges) * outlined(looked_up(visible, moved), random, ranges)
        image = cropped(acquired(image, random, ranges), self.spacing, random, ranges)
        return Drawn(with_artifacts(image, self.spacing, random, ranges), self._target(moved, flipped), moved, start)

    def _start(self, random: Random) -> torch.Tensor:
        """Return the voxel (3,) of the field at which a window starts."""
        room = [whole - size for whole, size in zip(self.field or self.shape, self.shape, strict=True)]
        return torch.tensor([int(random.number() * (n + 1)) if n else 0 for n in room])

    def _offsets(self, start: torch.Tensor, flipped: torch.Tensor) -> torch.Tensor:
        """Return the offsets (B, 3) in mm from the middle of the field to that of each window, before flipping."""
        room = torch.tensor(self.field or self.shape) - torch.tensor(self.shape)
        offsets = (start - room / 2) * self.spacing
        offsets[:, 0] *= torch.where(flipped.cpu(), -1, 1)
        return offsets

    def visible(self, random: Random, ranges: Ranges) -> torch.Tensor:
        """Return (N,) 1 for labels that the image shows, 0 for those that a skull-stripping tool has removed."""
        stripped, keeps_fluid = random.number() < ranges.stripped, random.number() < ranges.fluid
        removed = set(self.outside) - (set(self.fluid) if keeps_fluid else set()) if stripped else set()
        return torch.tensor([float(index not in removed) for index in self.table.indices]).to(random.device)

    def _target(self, labels: torch.Tensor, flipped: torch.Tensor) -> torch.Tensor:
        """Return the channels of labels (B, 1, I, J, K), with left and right exchanged in the items `flipped`, (B,)."""
        plain = torch.tensor([self.table.channels.index(t) for t in self.table.targets], device=labels.device)
        mirrored = torch.tensor(self.table.mirrored, device=labels.device)[plain]
        return looked_up(torch.where(flipped[:, None], mirrored, plain), labels)

    def painted(self, labels: torch.Tensor, random: Random, ranges: Ranges) -> torch.Tensor:
        """Return images (B, 1, I, J, K): an intensity for every voxel of the labels."""
        mean, deviation = torch.stack([self.contrast(random, ranges) for _ in labels], 1)
        image = looked_up(deviation, labels).mul_(grain(labels.shape, random, ranges)).add_(looked_up(mean, labels))
        return image.clamp_(min=0)

    def contrast(self, random: Random, ranges: Ranges) -> torch.Tensor:
        """Return the mean and the deviation (2, N) of the intensities of every label."""
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
    """Renumbers label maps (1, I, J, K) to 0 .. N-1, uint8, by a table: see LabelTable.encode."""

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


class SynthesiseImaged(RandomPaird[Synthesis]):
    """Draws an image and its labels, `image_key` and `target_key`, (1, *shape) each, from a label map (1, I, J, K).

    The label map is encoded, see `EncodeLabelsd`. The strength of the draws grows from `easiest` to 1 over the first
    `ramp` samples, where the items count them under "sample". Of several `synthesis` an item's "variant" picks one.
    With `coordinates` the image has three channels more: the place of each voxel in the field of view, -0.5 to 0.5, as
    MONAI's AddCoordinateChannels adds it.
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
        super().__init__(keys, synthesis, image_key, target_key, ramp, easiest)
        self.coordinates = coordinates

    def pair(self, source: torch.Tensor, item: Item, variant: Synthesis) -> tuple[torch.Tensor, torch.Tensor]:
        """See the class."""
        spacing = spacing_of(source).tolist()
        drawn = variant(plain_tensor(source)[None], spacing, self.seed(), self.strength(item))
        affine = cubic_affine(variant.spacing)
        affine[:3, 3] = drawn.start[0] * variant.spacing
        places = coordinate_channels(variant, drawn.start[0], source.device) if self.coordinates else []
        image = MetaTensor(torch.cat([drawn.image[0], *places]), affine=affine)
        return image, MetaTensor(drawn.target[0], affine=affine)


def coordinate_channels(grid: Synthesis, start: torch.Tensor, device: torch.device) -> list[torch.Tensor]:
    """Return three channels (1, I, J, K): the place of a window's voxels along each axis of the field, -0.5 to 0.5."""
    axes = [
        (torch.arange(size, device=device) + int(first)) / max(1, whole - 1) - 0.5
        for size, first, whole in zip(grid.shape, start, grid.field or grid.shape, strict=True)
    ]
    return [axis[None] for axis in torch.meshgrid(*axes, indexing="ij")]
