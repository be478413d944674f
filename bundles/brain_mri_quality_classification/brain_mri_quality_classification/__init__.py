"""What the network is given, on 4 mm voxels: how bright a scan is there, and what its own voxels say of its quality."""

import math
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.networks.blocks import Convolution, ResidualUnit
from monai.networks.blocks.squeeze_and_excitation import ChannelSELayer
from monai.transforms import MapTransform
from torch import nn
from torch.nn import functional

__all__ = [
    "CONTRASTS",
    "USABILITY",
    "ActivationsByAspectd",
    "AspectLoss",
    "Branches",
    "Describe",
    "described",
    "each_aspect",
]

CONTRASTS = ("T1", "T2", "PD", "FLAIR", "other")
USABILITY = ("usable", "motion", "noise", "cropped")
SHAPE = (48, 56, 48)
"""Voxels of what the network is given, 192 x 224 x 192 mm along RAS+."""
SPACING = 4.0
TISSUES = (
    (4, 5, 14, 15, 24, 43, 44),
    (3, 8, 10, 11, 12, 13, 17, 18, 26, 28, 42, 47, 49, 50, 51, 52, 53, 54, 58, 60),
    (2, 7, 16, 41, 46),
)
"""FreeSurfer's labels of fluid, grey and white matter."""
SEEN = 8
"""Channels that are made of the scan; those of the labels come after them."""
COUNT = SEEN + len(TISSUES) + 1


def described(
    image: torch.Tensor, spacing: Sequence[float], labels: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """(COUNT, *SHAPE) for a scan (1, I, J, K) whose axes lie along RAS+, and (3,) the scan's voxel at its first one.

    spacing: (3,) mm; labels: (1, I, J, K) FreeSurfer's, of the same grid. The channels are the mean of the scan, that
    of its logarithm, the logarithms of its curvature along each axis, of its deviation and of its noise, where the scan
    is at all, then the shares of fluid, grey and white matter and whether there are labels. All are means over a scan's
    own voxels, so that noise and ripples are seen that 4 mm voxels would hide.
    """
    scan = brightness(image[0].float())
    steps = [max(1, round(SPACING / mm)) for mm in spacing]
    blocks = [pooled(values, steps) for values in details(scan)]
    mean, square = blocks[0], blocks.pop()
    blocks.insert(5, (square - mean.square()).clamp(min=0).sqrt())
    for number in range(2, 7):
        blocks[number] = (blocks[number] + 1e-3).log() / 2 + 2
    blocks.append(torch.ones_like(mean))
    if labels is not None:
        found = labels[0].round().int()
        values = [torch.isin(found, torch.tensor(tissue, device=found.device, dtype=found.dtype)) for tissue in TISSUES]
        blocks += [pooled(value.float(), steps) for value in values]
        blocks.append(torch.ones_like(mean))
    else:
        blocks += [torch.zeros_like(mean)] * (len(TISSUES) + 1)
    sizes = [step * mm for step, mm in zip(steps, spacing, strict=True)]
    start = first(mean, sizes)
    at = [(begin + SPACING * torch.arange(n)) / mm for begin, n, mm in zip(start, SHAPE, sizes, strict=True)]
    out = sampled(torch.stack(blocks), at)
    return out, torch.stack([s / mm for s, mm in zip(start, spacing, strict=True)]) + (torch.tensor(steps) - 1) / 2


def brightness(scan: torch.Tensor) -> torch.Tensor:
    """The scan (I, J, K) from 0 to about 1: over the 99th percentile of what is not 0, and nothing above 3."""
    scan = torch.nan_to_num(scan, posinf=0.0, neginf=0.0)
    scan = scan - scan.min().clamp(max=0)
    some = scan.flatten()[::7]
    some = some[some > 0]
    if not len(some):
        return scan
    return (scan / some.kthvalue(max(1, round(0.99 * len(some)))).values.clamp(min=1e-6)).clamp(max=3)


def details(scan: torch.Tensor) -> list[torch.Tensor]:
    """What is averaged, each (I, J, K): itself, its logarithm, its curvatures, what differs three ways, its square."""
    out = [scan, (scan + 0.02).log() / 2 + 1]
    out += [curved(scan, axis) for axis in range(3)]
    crossed = scan
    for axis, size in enumerate(scan.shape):
        if size > 1:
            crossed = crossed.diff(dim=axis)
    room = [
        n for size, less in zip(reversed(scan.shape), reversed(crossed.shape), strict=True) for n in (0, size - less)
    ]
    return [*out, functional.pad(crossed.abs() / math.sqrt(8), room), scan.square()]


def curved(scan: torch.Tensor, axis: int) -> torch.Tensor:
    """The size of the second difference along an axis, 0 at its ends."""
    room = [n for other in (2, 1, 0) for n in ((1, 1) if other == axis else (0, 0))]
    if scan.shape[axis] < 3:
        return torch.zeros_like(scan)
    return functional.pad(scan.diff(n=2, dim=axis).abs(), room)


def pooled(values: torch.Tensor, steps: Sequence[int]) -> torch.Tensor:
    """Means over blocks of (I, J, K); those at the end may be smaller."""
    return functional.avg_pool3d(values[None, None], tuple(steps), ceil_mode=True)[0, 0]


def first(mean: torch.Tensor, sizes: Sequence[float]) -> torch.Tensor:
    """(3,) mm from the first block to the first voxel given: the middle of what is bright, of its top part if tall."""
    bright = mean > 0.5 * mean.mean()
    start = []
    for axis, (size, count) in enumerate(zip(sizes, SHAPE, strict=True)):
        line = bright.movedim(axis, 0).flatten(1).float().mean(1)
        inside = (line > 0.02 * line.max()).nonzero()
        low, high = (float(inside[0]), float(inside[-1])) if len(inside) else (0.0, float(len(line) - 1))
        extent = (count - 1) * SPACING
        tall = axis == 2 and (high - low) * size > extent
        start.append(high * size - extent if tall else (low + high) / 2 * size - extent / 2)
    return torch.tensor(start)


def sampled(values: torch.Tensor, at: Sequence[torch.Tensor]) -> torch.Tensor:
    """(C, I, J, K) at positions along each axis, linearly; 0 half a voxel outside and beyond."""
    for axis, places in enumerate(at, start=1):
        size = values.shape[axis]
        below = places.floor()
        share = (places - below).to(values.device)
        inside = ((places > -0.5) & (places < size - 0.5)).to(values.device)
        shape = [-1 if a == axis else 1 for a in range(4)]
        low, high = ((below + n).long().clamp(0, size - 1).to(values.device) for n in (0, 1))
        share, inside = share.reshape(shape), inside.reshape(shape)
        values = values.index_select(axis, low) * (1 - share) + values.index_select(axis, high) * share
        values = values * inside
    return values


class Describe(MapTransform):
    """`described` as a transform: `image_key` becomes that of the scan there and of its labels, where there are any.

    Both (1, I, J, K) with axes along RAS+; a label map of another shape counts as none.
    """

    def __init__(self, keys: KeysCollection = ("image", "labels"), allow_missing_keys: bool = True) -> None:
        super().__init__(keys, allow_missing_keys)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        out = dict(data)
        scan, *others = (out[key] for key in self.key_iterator(out))
        spacing = scan.pixdim.tolist()
        plain = [x.as_tensor() if isinstance(x, MetaTensor) else x for x in (scan, *others)]
        given, start = described(plain[0], spacing, plain[1] if len(plain) > 1 else None)
        affine = scan.affine.double().cpu()
        moved = affine.clone()
        moved[:3, :3] = affine[:3, :3] * (SPACING / torch.tensor(spacing, dtype=torch.float64))
        moved[:3, 3] = affine[:3, :3] @ start.double() + affine[:3, 3]
        out[self.keys[0]] = MetaTensor(given, affine=moved, meta={**scan.meta, "affine": moved})
        return out


class Branches(nn.Module):
    """Two small networks with channel attention beside each other: one says the contrast, the other the usability.

    The contrast shows in how bright the tissues are, quality in all else; so each is given what it needs, and one does
    not learn by heart what is for the other. (B, 9) logits of (B, COUNT, *SHAPE): CONTRASTS, then USABILITY.
    """

    def __init__(
        self, contrast: Sequence[int] = (16, 32, 64), usability: Sequence[int] = (16, 32, 64), dropout: float = 0.2
    ) -> None:
        super().__init__()
        self.contrast = branch(COUNT - SEEN + 2, contrast, len(CONTRASTS), dropout)
        self.usability = branch(COUNT - 1, usability, len(USABILITY), dropout)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """See the class."""
        tissue = torch.cat([image[:, :1], image[:, 7:]], 1)
        return torch.cat([self.contrast(tissue), self.usability(image[:, 1:])], 1)


def branch(given: int, channels: Sequence[int], classes: int, dropout: float) -> nn.Sequential:
    """A classifier of volumes (B, given, I, J, K): residual units, each at half of the resolution, with attention."""
    layers: list[nn.Module] = [Convolution(3, given, channels[0], strides=2, norm="BATCH", act="RELU")]
    for before, count in zip((channels[0], *channels[:-1]), channels, strict=True):
        strides = 1 if count == channels[0] else 2
        layers += [ResidualUnit(3, before, count, strides, norm="BATCH", act="RELU"), ChannelSELayer(3, count, r=4)]
    return nn.Sequential(*layers, Pool(), nn.Dropout(dropout), nn.Linear(2 * channels[-1], classes))


class Pool(nn.Module):
    """(B, 2 C): the mean and the largest value of each channel of (B, C, I, J, K)."""

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """See the class."""
        flat = values.flatten(2)
        return torch.cat([flat.mean(2), flat.amax(2)], 1)


# ---- answers: logits (B, 9) are those of the contrasts, then of the usability


def by_aspect(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """What belongs to each aspect, of values whose last axis is that of the classes."""
    contrast, usability = values.split([len(CONTRASTS), len(USABILITY)], -1)
    return contrast, usability


class AspectLoss(nn.Module):
    """The sum of both aspects' cross-entropies, of logits (B, 9) and the numbers (B, 2) of the true classes."""

    def forward(self, logits: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
        """See the class."""
        contrast, usability = by_aspect(logits.float())
        return functional.cross_entropy(contrast, truth[:, 0]) + functional.cross_entropy(usability, truth[:, 1])


def each_aspect(items: Sequence[Mapping[str, torch.Tensor]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits (2 B, 5) and classes (2 B,) of validated items: both aspects as answers of their own, for a metric."""
    answers = [by_aspect(item["pred"].float()) for item in items]
    rows = [functional.pad(row, (0, len(CONTRASTS) - len(row)), value=-1e9) for pair in answers for row in pair]
    return torch.stack(rows), torch.cat([item["label"].flatten() for item in items])


class ActivationsByAspectd(MapTransform):
    """Probabilities (9,) of logits; those of each aspect add up to 1."""

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        out = dict(data)
        for key in self.key_iterator(out):
            out[key] = torch.cat([part.softmax(-1) for part in by_aspect(out[key].float())], -1)
        return out
