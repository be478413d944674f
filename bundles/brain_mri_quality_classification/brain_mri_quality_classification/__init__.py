"""The network and its input on 4 mm voxels: how bright a scan is there, and the quality that its own voxels show."""

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
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
"""Voxels of the network's input, 192 x 224 x 192 mm along RAS+."""
SPACING = 4.0
"""mm of those voxels along each axis."""
TISSUES = (
    (4, 5, 14, 15, 24, 43, 44),
    (3, 8, 10, 11, 12, 13, 17, 18, 26, 28, 42, 47, 49, 50, 51, 52, 53, 54, 58, 60),
    (2, 7, 16, 41, 46),
)
"""FreeSurfer's labels of fluid, grey and white matter."""
SEEN = 8
"""Channels that are computed from the scan; those of the labels come after them."""
COUNT = SEEN + len(TISSUES) + 1
"""Channels of the network's input."""


def described(
    image: torch.Tensor, spacing: Sequence[float], labels: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the network's input (COUNT, *SHAPE) for a scan, and the place (3,) of its first voxel in scan voxels.

    Args:
        image: (1, I, J, K), axes along RAS+.
        spacing: (3,) mm.
        labels: (1, I, J, K) FreeSurfer's labels on the same grid.

    The channels are the mean of the scan, the mean of its logarithm, the logarithms of its curvature along each axis,
    of its deviation and of its noise, and 1 inside the scan's field of view; then the shares of fluid, grey and white
    matter, and 1 if there are labels. All are means over the scan's own voxels, so that they show noise and ripples
    that 4 mm voxels would hide.
    """
    blocks = Blocks(tuple(spacing))
    mean, logarithm, *curvature, crossed, square = map(blocks.mean, details(brightness(image[0].float())))
    deviation = (square - mean.square()).clamp(min=0).sqrt()
    measures = [(values + 1e-3).log() / 2 + 2 for values in (*curvature, deviation, crossed)]
    there = torch.ones_like(mean)
    shares = [torch.zeros_like(mean)] * (len(TISSUES) + 1)
    if labels is not None:
        found = labels[0].round().int()
        tissues = [torch.tensor(tissue, device=found.device, dtype=found.dtype) for tissue in TISSUES]
        shares = [*(blocks.mean(torch.isin(found, tissue).float()) for tissue in tissues), there]
    start = blocks.start(mean)
    given = blocks.sampled(torch.stack([mean, logarithm, *measures, there, *shares]), start)
    return given, start / torch.tensor(blocks.spacing) + (torch.tensor(blocks.steps) - 1) / 2


@dataclass(frozen=True)
class Blocks:
    """Blocks of a scan's voxels, each about as large as a voxel of the network's input."""

    spacing: tuple[float, ...]
    """(3,) mm of the scan's voxels."""

    @property
    def steps(self) -> list[int]:
        """Number of the scan's voxels along each axis of a block."""
        return [max(1, round(SPACING / mm)) for mm in self.spacing]

    @property
    def sizes(self) -> list[float]:
        """mm along each axis of a block."""
        return [step * mm for step, mm in zip(self.steps, self.spacing, strict=True)]

    def mean(self, values: torch.Tensor) -> torch.Tensor:
        """Return means over blocks of values (I, J, K); blocks at the end may be smaller."""
        steps = [min(step, size) for step, size in zip(self.steps, values.shape, strict=True)]
        return functional.avg_pool3d(values[None, None], steps, ceil_mode=True)[0, 0]

    def start(self, mean: torch.Tensor) -> torch.Tensor:
        """Return the mm (3,) from the first block to the input's first voxel, so that bright blocks are in its middle.

        If these are taller than the field of view, their top is used, since below a head is a neck.
        """
        bright = mean > 0.5 * mean.mean()
        start = []
        for axis, (size, count) in enumerate(zip(self.sizes, SHAPE, strict=True)):
            line = bright.movedim(axis, 0).flatten(1).float().mean(1)
            inside = (line > 0.02 * line.max()).nonzero()
            low, high = (float(inside[0]), float(inside[-1])) if len(inside) else (0.0, float(len(line) - 1))
            extent = (count - 1) * SPACING
            tall = axis == 2 and (high - low) * size > extent
            start.append(high * size - extent if tall else (low + high) / 2 * size - extent / 2)
        return torch.tensor(start)

    def sampled(self, values: torch.Tensor, start: torch.Tensor) -> torch.Tensor:
        """Return blocks (C, i, j, k) interpolated linearly to (C, *SHAPE); 0 more than half a block outside."""
        for axis, (begin, size, count) in enumerate(zip(start.tolist(), self.sizes, SHAPE, strict=True), start=1):
            places = (begin + SPACING * torch.arange(count)) / size
            most, below = values.shape[axis], places.floor()
            shape = [-1 if a == axis else 1 for a in range(4)]
            share = (places - below).to(values.device).reshape(shape)
            inside = ((places > -0.5) & (places < most - 0.5)).to(values.device).reshape(shape)
            low, high = ((below + n).long().clamp(0, most - 1).to(values.device) for n in (0, 1))
            values = (values.index_select(axis, low) * (1 - share) + values.index_select(axis, high) * share) * inside
        return values


def brightness(scan: torch.Tensor) -> torch.Tensor:
    """Return a scan (I, J, K) divided by the 99th percentile of its voxels above 0, limited to 0 to 3."""
    scan = torch.nan_to_num(scan, posinf=0.0, neginf=0.0)
    scan = scan - scan.min().clamp(max=0)
    some = scan.flatten()[::7]
    some = some[some > 0]
    if not len(some):
        return scan
    return (scan / some.kthvalue(max(1, round(0.99 * len(some)))).values.clamp(min=1e-6)).clamp(max=3)


def details(scan: torch.Tensor) -> list[torch.Tensor]:
    """Return the values that are averaged, each (I, J, K), for a scan from 0 to about 1.

    They are the scan, its logarithm, its curvature along each axis, its mixed difference along all axes, and its
    square. Noise differs along all three axes at once, edges seldom do.
    """
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
    """Return the absolute second difference along an axis, 0 at its ends."""
    room = [n for other in (2, 1, 0) for n in ((1, 1) if other == axis else (0, 0))]
    if scan.shape[axis] < 3:
        return torch.zeros_like(scan)
    return functional.pad(scan.diff(n=2, dim=axis).abs(), room)


class Describe(MapTransform):
    """`described` as a transform: replaces the scan at the first key by the network's input, made of scan and labels.

    Scan and labels, at the second key if there are any, are (1, I, J, K) with axes along RAS+ on the same grid.
    """

    def __init__(self, keys: KeysCollection = ("image", "labels"), allow_missing_keys: bool = True) -> None:
        super().__init__(keys, allow_missing_keys)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        out = dict(data)
        scan, *labels = (out[key] for key in self.key_iterator(out))
        spacing = scan.pixdim.tolist()
        plain = [x.as_tensor() if isinstance(x, MetaTensor) else x for x in (scan, *labels)]
        given, start = described(plain[0], spacing, plain[1] if len(plain) > 1 else None)
        affine = scan.affine.double().cpu()
        moved = affine.clone()
        moved[:3, :3] = affine[:3, :3] * (SPACING / torch.tensor(spacing, dtype=torch.float64))
        moved[:3, 3] = affine[:3, :3] @ start.double() + affine[:3, 3]
        others = {name: value for name, value in scan.meta.items() if name != "affine"}
        out[self.keys[0]] = MetaTensor(given, affine=moved, meta=others)
        return out


class Branches(nn.Module):
    """Two small networks with channel attention side by side, one for the contrast, one for the usability.

    Contrast shows in the brightness of tissues, quality in everything else. So each network is given only the channels
    that it needs, and cannot memorise those of the other. Input (B, COUNT, *SHAPE), output (B, 9) logits of CONTRASTS,
    then of USABILITY.
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
    """Return a classifier of volumes (B, given, I, J, K): residual units with attention, each halving the grid."""
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
    """Return the parts of contrast and usability of values whose last axis is that of the classes."""
    contrast, usability = values.split([len(CONTRASTS), len(USABILITY)], -1)
    return contrast, usability


class AspectLoss(nn.Module):
    """Sum of both aspects' cross-entropies, for logits (B, 9) and the numbers (B, 2) of the true classes."""

    def forward(self, logits: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
        """See the class."""
        contrast, usability = by_aspect(logits.float())
        return functional.cross_entropy(contrast, truth[:, 0]) + functional.cross_entropy(usability, truth[:, 1])


def each_aspect(items: Sequence[Mapping[str, torch.Tensor]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return logits (2 B, 5) and classes (2 B,) of validated items, each aspect as a separate answer, for a metric."""
    answers = [by_aspect(item["pred"].float()) for item in items]
    rows = [functional.pad(row, (0, len(CONTRASTS) - len(row)), value=-1e9) for pair in answers for row in pair]
    return torch.stack(rows), torch.cat([item["label"].flatten() for item in items])


class ActivationsByAspectd(MapTransform):
    """Turns logits (9,) into probabilities; those of each aspect add up to 1."""

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        out = dict(data)
        for key in self.key_iterator(out):
            out[key] = torch.cat([part.softmax(-1) for part in by_aspect(out[key].float())], -1)
        return out
