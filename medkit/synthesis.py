"""Images drawn from label maps: training data of any contrast and resolution without private scans.

The idea of SynthSeg (Billot 2023), SynthMorph (Hoffmann 2022), SynthSR (Iglesias 2021) and SynthStrip (Hoopes 2022):
deform a label map, give every tissue an intensity, then spoil the image the way scanners do. Everything is torch on the
tensor's device and works on batches; arrays are (B, C, I, J, K) with voxel axes along RAS+; lengths are mm. The same
seed on the same device gives the same image.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform, Randomizable
from torch.nn import functional

from medkit.label_table import LabelTable

Range = tuple[float, float]
"""Lowest and highest value; values are drawn evenly between them."""


@dataclass(frozen=True)
class Ranges:
    """How far a synthetic image strays. Intensities run from 0 to 1, `voxels` are those of the output grid.

    Entries marked (grows) are scaled by the `strength` of a draw, so that a training can begin with easy images.
    """

    # space
    rotation: float = 15.0
    """Degrees about each axis, to either side (grows)."""
    scaling: float = 0.12
    """Share by which each axis is stretched or shrunk at most (grows)."""
    shearing: float = 0.02
    """Shear of each pair of axes at most (grows)."""
    shift: float = 12.0
    """mm along each axis, to either side, away from the middle of what is seen (grows)."""
    warp: float = 8.0
    """mm: largest standard deviation of the smooth displacement at its control points (grows)."""
    warp_spacing: Range = (20.0, 60.0)
    """mm between the control points of the velocity field."""
    flip: float = 0.5
    """Chance of a mirror image, with left and right labels exchanged."""

    # what is seen
    stripped: float = 0.5
    """Chance that everything outside the brain is removed."""
    rim: int = 2
    """voxels that an inexact removal leaves around the brain at most."""
    fluid: float = 0.5
    """Chance that a removal keeps the fluid around the brain."""
    dark: float = 0.6
    """Chance that the background of a whole head is 0."""

    cut: float = 0.05
    """Chance, for each face, that the field of view ends early (grows)."""
    cut_width: float = 40.0
    """mm that it lacks of the grid at most."""

    # intensity per class
    prior: float = 0.55
    """Share of images with intensities from the table's priors (at strength 0 all); the others have any contrast."""
    mean: Range = (0.05, 1.0)
    """Any contrast: mean of a class."""
    deviation: Range = (0.0, 0.08)
    """Any contrast: standard deviation within a class."""
    texture: Range = (0.3, 1.0)
    """Factor on the deviations within classes."""
    texture_grain: float = 0.5
    """Chance that the deviations within classes are smooth over two voxels rather than independent."""

    # acquisition
    thick: float = 0.35
    """Chance of thick slices: one axis coarser than the others (grows)."""
    thickness: Range = (1.0, 3.0)
    """voxels: thickness of thick slices."""
    blur: Range = (0.3, 0.8)
    """voxels: standard deviation of the scanner's blur along every axis."""
    coarse: float = 0.25
    """Chance that the in-plane resolution is coarse too (grows)."""
    coarseness: Range = (1.0, 1.6)
    """voxels: spacing in the plane of such images."""

    # faults
    bias: float = 0.35
    """Largest standard deviation of the logarithm of the bias field (grows)."""
    bias_spacing: Range = (40.0, 120.0)
    """mm between the control points of the bias field."""
    noise: float = 0.04
    """Largest standard deviation of Gaussian or Rician noise (grows)."""
    rician: float = 0.5
    """Chance that the noise is Rician."""
    salt_and_pepper: float = 0.05
    """Chance of single black and white voxels."""
    spoiled: float = 0.002
    """Largest share of such voxels."""
    gamma: float = 0.2
    """Standard deviation of the logarithm of the exponent that bends the intensities."""
    ghosting: float = 0.1
    """Chance of ghosts of a moving head."""
    ghosts: Range = (0.02, 0.12)
    """Their intensity as a share of the image's."""

    def scaled(self, strength: float) -> Ranges:
        """The ranges at a strength between 0 (easy) and 1."""
        grown = ("rotation", "scaling", "shearing", "shift", "warp", "thick", "coarse", "cut", "bias", "noise")
        easier = {name: strength * getattr(self, name) for name in grown}
        return replace(self, prior=1 - strength * (1 - self.prior), **easier)


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


class Random:
    """All chance of a draw: small numbers are drawn on the CPU, voxels on the device."""

    def __init__(self, seed: int, device: torch.device) -> None:
        self.device = device
        self._cpu = torch.Generator().manual_seed(seed)
        self._device = torch.Generator(device).manual_seed(seed + 1)

    def number(self) -> float:
        """0 <= x < 1."""
        return float(torch.rand((), generator=self._cpu))

    def evenly(self, bounds: Range, *shape: int) -> torch.Tensor:
        """Numbers (on the CPU) between the bounds."""
        return bounds[0] + (bounds[1] - bounds[0]) * torch.rand(shape, generator=self._cpu)

    def normals(self, *shape: int) -> torch.Tensor:
        """Standard normal numbers, on the CPU."""
        return torch.randn(shape, generator=self._cpu)

    def chance(self, count: int, probability: float) -> torch.Tensor:
        """(count,) bool on the device."""
        return (torch.rand(count, generator=self._cpu) < probability).to(self.device)

    def order(self, count: int) -> list[int]:
        """The numbers below `count` in any order."""
        return [int(n) for n in torch.randperm(count, generator=self._cpu)]

    def noise(self, shape: Sequence[int]) -> torch.Tensor:
        """Standard normal numbers on the device."""
        return torch.randn(tuple(shape), generator=self._device, device=self.device)

    def voxels(self, shape: Sequence[int]) -> torch.Tensor:
        """0 <= x < 1 on the device."""
        return torch.rand(tuple(shape), generator=self._device, device=self.device)


def looked_up(table: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Entries of a table (N,) or of one per item (B, N) for labels (B, 1, I, J, K) of any integer type."""
    if table.dim() == 1:
        return table[labels.long()]
    if len(labels) == 1:
        return table[0].index_select(0, labels.reshape(-1).int()).reshape(labels.shape)
    return torch.stack([row[item.long()] for row, item in zip(table, labels, strict=True)])


# ---- space


def deformed(
    grid: Synthesis,
    labels: torch.Tensor,
    seen: torch.Tensor,
    away: torch.Tensor,
    spacing: Sequence[float],
    random: Random,
    ranges: Ranges,
) -> torch.Tensor:
    """(B, 1, I, J, K) labels on the output grid, as another head would have them, nearest neighbour.

    The middle of the labels that are `seen`, (B, N), is the middle of the field of view but for a random shift; the
    middle of the grid lies `away`, (B, 3) mm, from it.
    """
    flow = displacement(velocity(grid.shape, grid.spacing, len(labels), random, ranges), grid.spacing)
    warp = functional.interpolate(flow, grid.shape, mode="trilinear", align_corners=True)
    size = torch.as_tensor(spacing, dtype=torch.float32)
    out = []
    for item, shown, offset, way in zip(labels, seen, away, warp, strict=True):
        linear = random_linear(random, ranges)
        shift = random.evenly((-ranges.shift, ranges.shift), 3)
        thing = shown.bool() & (torch.arange(len(shown), device=shown.device) > 0)
        # found on every second voxel, which stands for itself and the next one
        centre = middle(thing[item[0, ::2, ::2, ::2].long()]) * 2 + 0.5 + shift / size
        out.append(nearest(item[0], lattice(grid, linear, way, size, centre, offset))[None])
    return torch.stack(out)


def random_linear(random: Random, ranges: Ranges) -> torch.Tensor:
    """(3, 3) rotation, shear and scaling."""
    out = torch.eye(3)
    angles = torch.deg2rad(random.evenly((-ranges.rotation, ranges.rotation), 3)).tolist()
    for axis, angle in enumerate(angles):
        i, j = [a for a in range(3) if a != axis]
        turn = torch.eye(3)
        turn[i, i] = turn[j, j] = math.cos(angle)
        turn[i, j], turn[j, i] = -math.sin(angle), math.sin(angle)
        out = out @ turn
    shear = torch.eye(3)
    shear[[0, 0, 1], [1, 2, 2]] = random.evenly((-ranges.shearing, ranges.shearing), 3)
    return out @ shear @ torch.diag(1 + random.evenly((-ranges.scaling, ranges.scaling), 3))


COARSE = 6
"""Velocity fields are integrated on every sixth voxel: they are smooth."""


def velocity(shape: Sequence[int], spacing: float, batch: int, random: Random, ranges: Ranges) -> torch.Tensor:
    """(B, 3, i, j, k) smooth stationary velocity in mm on a coarse grid over the field of view."""
    size = [math.ceil(n / COARSE) + 1 for n in shape]
    fields = []
    for _ in range(batch):
        step = float(random.evenly(ranges.warp_spacing)) / spacing
        points = [max(2, round(n / step) + 1) for n in shape]
        peak = float(random.evenly((0.0, ranges.warp)))
        control = peak * random.normals(1, 3, *points).to(random.device)
        fields.append(functional.interpolate(control, size, mode="trilinear", align_corners=True))
    return torch.cat(fields)


def displacement(velocity: torch.Tensor, spacing: float, squarings: int = 5) -> torch.Tensor:
    """(B, 3, i, j, k) mm: where a velocity field (mm) takes points in time 1, by scaling and squaring."""
    shape = velocity.shape[2:]
    axes = [torch.linspace(-1, 1, n, device=velocity.device) for n in shape]
    still = torch.stack(torch.meshgrid(*axes, indexing="ij")).flip(0).permute(1, 2, 3, 0)
    # mm to grid_sample's -1 .. 1 over the field of view
    scale = torch.tensor([2 / ((n - 1) * COARSE * spacing) for n in shape], device=velocity.device)
    out = velocity / 2**squarings
    for _ in range(squarings):
        where = still + (out * scale.reshape(3, 1, 1, 1)).flip(1).permute(0, 2, 3, 4, 1)
        out = out + functional.grid_sample(out, where, padding_mode="border", align_corners=True)
    return out


def middle(mask: torch.Tensor) -> torch.Tensor:
    """(3,) index of the middle of the box around a mask (I, J, K); of the volume where the mask is empty."""
    out = []
    for axis, size in enumerate(mask.shape):
        where = mask.movedim(axis, 0).flatten(1).any(1).nonzero()
        out.append(float(where.min() + where.max()) / 2 if len(where) else (size - 1) / 2)
    return torch.tensor(out)


def lattice(
    grid: Synthesis,
    linear: torch.Tensor,
    warp: torch.Tensor,
    spacing: torch.Tensor,
    centre: torch.Tensor,
    away: torch.Tensor,
) -> list[torch.Tensor]:
    """Indices into a label map, one (I, J, K) per axis: `centre` + (linear @ (mm + away) + warp) / spacing."""
    device = warp.device
    axes = [
        (torch.arange(n, device=device) - (n - 1) / 2) * grid.spacing + float(mm)
        for n, mm in zip(grid.shape, away, strict=True)
    ]
    out = []
    for row in range(3):
        i, j, k = (float(linear[row, a]) / float(spacing[row]) * axes[a] for a in range(3))
        at = (i[:, None, None] + j[:, None] + float(centre[row])) + k
        out.append(at.add_(warp[row], alpha=1 / float(spacing[row])))
    return out


def nearest(labels: torch.Tensor, at: list[torch.Tensor]) -> torch.Tensor:
    """The labels (I, J, K) nearest to positions given as three arrays of indices, 0 outside."""
    flat = torch.zeros_like(at[0], dtype=torch.int32)
    outside = torch.zeros_like(at[0], dtype=torch.bool)
    for position, size in zip(at, labels.shape, strict=True):
        index = position.round_().int()
        outside |= (index < 0) | (index >= size)
        flat.mul_(size).add_(index.clamp_(0, size - 1))
    return labels.reshape(-1)[flat.reshape(-1)].reshape(flat.shape).masked_fill_(outside, 0)


# ---- intensity and acquisition


def grain(shape: Sequence[int], random: Random, ranges: Ranges) -> torch.Tensor:
    """(B, 1, I, J, K) texture within tissues, standard deviation about 1."""
    noise = random.noise(shape)
    for item in noise:
        if random.number() < ranges.texture_grain:
            smooth = functional.avg_pool3d(item, 2, 1, 1)[..., 1:, 1:, 1:]
            item.copy_(smooth.mul_(math.sqrt(8)))
    return noise


def acquired(image: torch.Tensor, random: Random, ranges: Ranges) -> torch.Tensor:
    """The image as a scanner sees it: blurred, in slices, interpolated back to the grid."""
    out = []
    for item in image:
        steps = [1.0, 1.0, 1.0]
        if random.number() < ranges.coarse:
            steps = [float(random.evenly(ranges.coarseness))] * 3
        if random.number() < ranges.thick:
            steps[int(random.number() * 3)] = float(random.evenly(ranges.thickness))
        sigma = float(random.evenly(ranges.blur))
        operators = [
            slices(size, step, sigma, random.number()).to(image.device)
            for size, step in zip(item.shape[1:], steps, strict=True)
        ]
        out.append(along_axes(item[0], operators)[None])
    return torch.stack(out)


def slices(size: int, step: float, sigma: float, phase: float) -> torch.Tensor:
    """(size, size) matrix: blur by `sigma`, average over slices `step` voxels thick, interpolate back linearly."""
    voxels = torch.arange(size, dtype=torch.float32)
    spread = math.hypot(sigma, step / math.sqrt(12) if step > 1 else 0.0)
    if step <= 1:
        return _gaussian(voxels, size, spread)
    first = -phase * step
    count = math.ceil((size - 1 - first) / step) + 1
    down = _gaussian(first + step * torch.arange(count), size, spread)
    at = ((voxels - first) / step).clamp(0, count - 1)
    below = at.floor().clamp(max=count - 2)
    share = (at - below)[:, None]
    below = below.long()
    return down[below] * (1 - share) + down[below + 1] * share


def _gaussian(positions: torch.Tensor, size: int, sigma: float) -> torch.Tensor:
    """(positions, size) weights of a Gaussian of `sigma` voxels about each position; rows sum to 1."""
    weights = torch.exp(-0.5 * ((positions.clamp(0, size - 1)[:, None] - torch.arange(size)) / sigma) ** 2)
    return weights / weights.sum(1, keepdim=True)


def along_axes(image: torch.Tensor, operators: Sequence[torch.Tensor]) -> torch.Tensor:
    """The image (I, J, K) multiplied by a square matrix along each axis."""
    i, j, k = operators
    out = torch.matmul(j, image @ k.T)
    return (i @ out.reshape(out.shape[0], -1)).reshape(image.shape)


def outlined(mask: torch.Tensor, random: Random, ranges: Ranges) -> torch.Tensor:
    """The masks (B, 1, I, J, K) as tools draw them: up to `rim` voxels too wide."""
    out = []
    for item in mask:
        for _ in range(int(random.number() * (ranges.rim + 1))):
            for axis in (1, 2, 3):  # one axis after the other: far cheaper than a cube
                kernel = [3 if a == axis else 1 for a in (1, 2, 3)]
                item = functional.max_pool3d(item, kernel, 1, [k // 2 for k in kernel])
        out.append(item)
    return torch.stack(out)


def cropped(image: torch.Tensor, spacing: float, random: Random, ranges: Ranges) -> torch.Tensor:
    """The images (B, 1, I, J, K) with 0 where a field of view that is too small ends."""
    for item in image:
        for axis in (1, 2, 3):
            for side in (0, 1):
                if random.number() < ranges.cut:
                    width = min(int(random.number() * ranges.cut_width / spacing), item.shape[axis])
                    item.narrow(axis, side * (item.shape[axis] - width), width).zero_()
    return image


# ---- faults


def spoiled(image: torch.Tensor, spacing: float, random: Random, ranges: Ranges) -> torch.Tensor:
    """The image with ghosts, bias field, noise, single wrong voxels and bent intensities."""
    faults: Sequence[Callable[[torch.Tensor, Random, Ranges], torch.Tensor]] = (ghosted, scaled, noisy, speckled, bent)
    out = []
    for item in image:
        item = item * bias_field(item.shape[1:], spacing, random, ranges)
        for fault in faults:
            item = fault(item, random, ranges)
        out.append(item)
    return torch.stack(out)


def bias_field(shape: Sequence[int], spacing: float, random: Random, ranges: Ranges) -> torch.Tensor:
    """(1, I, J, K) smooth positive factor."""
    step = float(random.evenly(ranges.bias_spacing)) / spacing
    points = [max(2, round(n / step) + 1) for n in shape]
    strength = float(random.evenly((0.0, ranges.bias)))
    control = (strength * random.normals(1, 1, *points)).to(random.device)
    return functional.interpolate(control, tuple(shape), mode="trilinear", align_corners=True)[0].exp_()


def ghosted(image: torch.Tensor, random: Random, ranges: Ranges) -> torch.Tensor:
    """(1, I, J, K) with faint copies along one axis, as periodic motion during the scan leaves them."""
    if random.number() >= ranges.ghosting:
        return image
    axes = [axis for axis in (1, 2, 3) if image.shape[axis] > 1]
    axis = axes[int(random.number() * len(axes))]
    number = 2 + int(random.number() * 4)
    strength = float(random.evenly(ranges.ghosts))
    step = image.shape[axis] // number
    copies = sum(torch.roll(image, k * step, axis) for k in range(1, number))
    return image * (1 - strength) + copies * (strength / (number - 1))


def scaled(image: torch.Tensor, random: Random | None = None, ranges: Ranges | None = None) -> torch.Tensor:
    """The image over its `scale`: what networks here are given."""
    return image / scale(image)


def scale(image: torch.Tensor) -> torch.Tensor:
    """The 99th percentile of what is not 0, a number; 1 where all is."""
    values = image.reshape(-1)[::7]
    values = values[values > 0]
    if not len(values):
        return image.new_ones(())
    return values.kthvalue(max(1, round(0.99 * len(values)))).values.clamp_min(1e-6)


def noisy(image: torch.Tensor, random: Random, ranges: Ranges) -> torch.Tensor:
    """(1, I, J, K) with Gaussian or Rician noise; voxels that a tool has set to 0 stay 0."""
    sigma = float(random.evenly((0.0, ranges.noise)))
    if random.number() < ranges.rician:
        wrong = torch.hypot(image + sigma * random.noise(image.shape), sigma * random.noise(image.shape))
    else:
        wrong = image + sigma * random.noise(image.shape)
    empty = random.number() < 0.5
    return torch.where(image > 1e-3, wrong, 0.0 if empty else wrong)


def speckled(image: torch.Tensor, random: Random, ranges: Ranges) -> torch.Tensor:
    """(1, I, J, K) with a few black and white voxels."""
    if random.number() >= ranges.salt_and_pepper:
        return image
    share = float(random.evenly((0.0, ranges.spoiled)))
    draw = random.voxels(image.shape)
    return torch.where(draw < share / 2, 0.0, torch.where(draw > 1 - share / 2, 1.0, image))


def bent(image: torch.Tensor, random: Random, ranges: Ranges) -> torch.Tensor:
    """(1, I, J, K) raised to a power about 1."""
    power = math.exp(ranges.gamma * float(random.normals()))
    return image.clamp(min=0).pow(power)


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
