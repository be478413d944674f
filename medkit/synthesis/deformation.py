"""Random smooth deformations of label maps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import torch
from torch.nn import functional

if TYPE_CHECKING:
    from medkit.synthesis.ranges import Random, Ranges

COARSE = 6
"""Velocity fields are integrated on every sixth voxel: they are smooth."""


class OutputGrid(Protocol):
    """The grid that an image is drawn on; a `Synthesis` is one."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """Voxels (I, J, K)."""

    @property
    def spacing(self) -> float:
        """mm, the same along every axis."""


def deformed(
    grid: OutputGrid,
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
    grid: OutputGrid,
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
