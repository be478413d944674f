"""What makes a drawn scan good or bad: voxel size, motion, field of view and noise."""

import math
from collections.abc import Sequence

import torch
from torch.nn import functional

from medkit.synthesis import Random, Range, Ranges, ghosted, random_linear

GOOD: Range = (0.003, 0.03)
"""Noise of usable scans, as a share of their bright parts, drawn evenly on a logarithmic scale."""
NOISY: Range = (0.065, 0.25)
"""Noise of noisy scans, in the same way."""
LOST: Range = (0.04, 0.35)
"""Share of the brain that a cropped scan lacks."""
AROUND: Range = (2.0, 60.0)
"""Range of the largest mm around the brain that other scans show at each face."""
FLUID_AROUND = 24
"""FreeSurfer's label of the fluid around the brain."""


def voxels(random: Random) -> tuple[float, float, float]:
    """Return a random size of a scan's voxels, (3,) mm: often 1 mm cubes, some in thick slices."""
    spacing = [1.0, 1.0, 1.0]
    if random.number() < 0.35:
        spacing[int(random.number() * 3)] = float(random.evenly((1.5, 5.0)))
    if random.number() < 0.25:
        spacing = [max(mm, 1.5) for mm in spacing]
    return spacing[0], spacing[1], spacing[2]


def scanned(image: torch.Tensor, labels: torch.Tensor, spacing: Sequence[float]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return an image (I, J, K) of 1 mm and its labels in voxels of `spacing` mm: Gaussian profiles, nearest labels."""
    for axis, mm in enumerate(spacing):
        if mm == 1:
            continue
        size = image.shape[axis]
        centres = torch.arange(mm / 2 - 0.5, size - 0.5, mm)
        weights = torch.exp(-0.5 * ((centres[:, None] - torch.arange(size)) / (mm / 2.355)) ** 2)
        image = torch.tensordot(weights / weights.sum(1, keepdim=True), image, ([1], [axis])).movedim(0, axis)
        labels = labels.index_select(axis, centres.round().long().clamp(0, size - 1))
    return image, labels


def moved(image: torch.Tensor, spacing: Sequence[float], random: Random) -> torch.Tensor:
    """Return the image (I, J, K) of a head that moved during the scan.

    The lines of k-space along one axis are measured in order, or interleaved; some of them while the head was shifted
    or rotated.
    """
    if random.number() < 0.3:
        share = float(random.evenly((0.12, 0.5)))
        return ghosted(image[None], random, Ranges(ghosting=1.0, ghosts=(share, share)))[0]
    axis = int(random.number() * 3)
    count = image.shape[axis]
    space = torch.fft.fft(image, dim=axis)
    order = torch.argsort(torch.fft.fftfreq(count))  # in which lines are measured
    interleaves = 1 if random.number() < 0.5 else 2 + int(random.number() * 3)
    order = torch.cat([order[n::interleaves] for n in range(interleaves)])
    for _ in range(1 + int(random.number() * 3)):
        length = max(2, int(count * float(random.evenly((0.1, 0.35)))))
        start = int(random.number() * (count - length))
        lines = order[start : start + length]
        lines = lines[lines != 0]  # the mean of the image stays
        other = torch.fft.fft(elsewhere(image, spacing, random), dim=axis)
        space.index_copy_(axis, lines, other.index_select(axis, lines))
    return torch.fft.ifft(space, dim=axis).abs()


def elsewhere(image: torch.Tensor, spacing: Sequence[float], random: Random) -> torch.Tensor:
    """Return the image (I, J, K) of a head shifted by 2 to 10 mm, half of the time also rotated by 2 to 8 degrees."""
    shift = random.normals(3)
    shift = shift / shift.norm() * random.evenly((2.0, 10.0))
    angle = float(random.evenly((2.0, 8.0))) if random.number() < 0.5 else 0.0
    if not angle:
        steps = [round(float(mm) / size) for mm, size in zip(shift, spacing, strict=True)]
        return torch.roll(image, steps if any(steps) else [3, 0, 0], (0, 1, 2))
    linear = random_linear(random, Ranges(rotation=angle, scaling=0.0, shearing=0.0))
    sizes = torch.tensor(image.shape) * torch.tensor(spacing)
    matrix = torch.cat([linear * (sizes[None] / sizes[:, None]), (2 * shift / sizes)[:, None]], 1)
    matrix = torch.cat([matrix[[2, 1, 0]][:, [2, 1, 0]], matrix[[2, 1, 0], 3:]], 1)  # grid_sample has x first
    where = functional.affine_grid(matrix[None], [1, 1, *image.shape], align_corners=False)
    return functional.grid_sample(image[None, None], where, align_corners=False)[0, 0]


def cut(image: torch.Tensor, labels: torch.Tensor, random: Random) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a scan whose field of view ends inside the brain, at one face or two."""
    lost = float(random.evenly(LOST))
    empty = random.number() < 0.3
    for _ in range(1 + int(random.number() < 0.25)):
        axis, side = int(random.number() * 3), int(random.number() * 2)
        inside = of_brain(labels).movedim(axis, 0).flatten(1).sum(1).float()
        along = inside if side == 0 else inside.flip(0)
        gone = int((along.cumsum(0) < lost * along.sum()).sum())
        size = image.shape[axis]
        if empty:
            image = image.clone()
            image.narrow(axis, 0 if side == 0 else size - gone, gone).zero_()
        else:
            image, labels = (x.narrow(axis, gone if side == 0 else 0, size - gone) for x in (image, labels))
    return image, labels


def trimmed(
    image: torch.Tensor, labels: torch.Tensor, spacing: Sequence[float], random: Random
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a scan whose field of view contains the whole brain and some mm around it, see `AROUND`."""
    for axis, mm in enumerate(spacing):
        line = of_brain(labels).movedim(axis, 0).flatten(1).any(1).nonzero()
        if not len(line):
            continue
        rooms = [1 + int(float(random.evenly(AROUND)) / mm) for _ in range(2)]
        low = max(0, int(line[0]) - rooms[0])
        high = min(image.shape[axis], int(line[-1]) + 1 + rooms[1])
        image, labels = (x.narrow(axis, low, high - low) for x in (image, labels))
    return image, labels


def of_brain(labels: torch.Tensor) -> torch.Tensor:
    """Return where labels belong to the brain."""
    return (labels > 0) & (labels < 500) & (labels != FLUID_AROUND)


def noisy(image: torch.Tensor, bounds: Range, random: Random) -> torch.Tensor:
    """Return an image (I, J, K) with Rician noise; most images that are 0 around the brain stay 0 there."""
    sigma = math.exp(float(random.evenly((math.log(bounds[0]), math.log(bounds[1])))))
    empty = image <= 1e-3
    out = torch.hypot(image + sigma * random.noise(image.shape), sigma * random.noise(image.shape))
    return torch.where(empty, 0.0, out) if float(empty.float().mean()) > 0.2 and random.number() < 0.6 else out
