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
"""Velocity fields are integrated on a grid of every sixth voxel, since they are smooth."""


class OutputGrid(Protocol):
    """The grid that an image is drawn on, such as a `Synthesis`."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """Voxels (I, J, K)."""

    @property
    def spacing(self) -> float:
        """mm, the same along every axis."""


def deformed(
    grid: OutputGrid,
    labels: torch.Tensor,
    visible: torch.Tensor,
    offsets: torch.Tensor,
    spacing: Sequence[float],
    random: Random,
    ranges: Ranges,
) -> torch.Tensor:
    """Return label maps on the output grid, deformed as another head would have them, by nearest neighbour.

    Args:
        grid: the output grid.
        labels: (B, 1, I, J, K) encoded label maps.
        visible: (B, N) 1 for labels that the image shows. Their middle becomes the middle of the field of view, except
            for a random shift.
        offsets: (B, 3) mm from the middle of the field of view to the middle of the grid.
        spacing: (3,) mm of the label maps' voxels.
        random: source of all random numbers.
        ranges: of the deformation.
    """
    flow = displacement(velocity(grid.shape, grid.spacing, len(labels), random, ranges), grid.spacing)
    warp = functional.interpolate(flow, grid.shape, mode="trilinear", align_corners=True)
    size = torch.as_tensor(spacing, dtype=torch.float32)
    out = []
    for item, shown, offset, item_warp in zip(labels, visible, offsets, warp, strict=True):
        linear = random_linear(random, ranges)
        shift = random.evenly((-ranges.shift, ranges.shift), 3)
        centre = visible_middle(item[0], shown) + shift / size
        out.append(nearest(item[0], lattice(grid, linear, item_warp, size, centre, offset))[None])
    return torch.stack(out)


def random_linear(random: Random, ranges: Ranges) -> torch.Tensor:
    """Return a random matrix (3, 3) of rotation, shear and scaling."""
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
    """Return smooth stationary velocity fields (B, 3, i, j, k) in mm, on a coarse grid over the field of view.

    shape, spacing: voxels and mm of the fine grid; batch: B.
    """
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
    """Return the displacement (B, 3, i, j, k) in mm that velocity fields (mm) cause in time 1, by scaling and squaring.

    spacing: mm of the fine grid's voxels, as in `velocity`.
    """
    shape = velocity.shape[2:]
    axes = [torch.linspace(-1, 1, n, device=velocity.device) for n in shape]
    identity = torch.stack(torch.meshgrid(*axes, indexing="ij")).flip(0).permute(1, 2, 3, 0)
    # mm to grid_sample's -1 .. 1 over the field of view
    scale = torch.tensor([2 / ((n - 1) * COARSE * spacing) for n in shape], device=velocity.device)
    out = velocity / 2**squarings
    for _ in range(squarings):
        where = identity + (out * scale.reshape(3, 1, 1, 1)).flip(1).permute(0, 2, 3, 4, 1)
        out = out + functional.grid_sample(out, where, padding_mode="border", align_corners=True)
    return out


def middle(mask: torch.Tensor) -> torch.Tensor:
    """Return the index (3,) of the middle of the box around a mask (I, J, K); that of the volume if it is empty."""
    out = []
    for axis, size in enumerate(mask.shape):
        where = mask.movedim(axis, 0).flatten(1).any(1).nonzero()
        out.append(float(where.min() + where.max()) / 2 if len(where) else (size - 1) / 2)
    return torch.tensor(out)


def visible_middle(labels: torch.Tensor, visible: torch.Tensor) -> torch.Tensor:
    """Return the index (3,) of the middle of the box around the labels (I, J, K) that are `visible`, (N,)."""
    shown = visible.bool() & (torch.arange(len(visible), device=visible.device) > 0)
    # found on every second voxel, which stands for itself and the next one
    return middle(shown[labels[::2, ::2, ::2].long()]) * 2 + 0.5


def lattice(
    grid: OutputGrid,
    linear: torch.Tensor,
    warp: torch.Tensor,
    spacing: torch.Tensor,
    centre: torch.Tensor,
    offset: torch.Tensor,
) -> list[torch.Tensor]:
    """Return indices into a label map for each voxel of the grid, one array (I, J, K) per axis.

    They are `centre` + (linear @ (mm + offset) + warp) / spacing, where mm counts from the middle of the grid.
    """
    device = warp.device
    axes = [
        (torch.arange(n, device=device) - (n - 1) / 2) * grid.spacing + float(mm)
        for n, mm in zip(grid.shape, offset, strict=True)
    ]
    out = []
    for row in range(3):
        i, j, k = (float(linear[row, a]) / float(spacing[row]) * axes[a] for a in range(3))
        index = (i[:, None, None] + j[:, None] + float(centre[row])) + k
        out.append(index.add_(warp[row], alpha=1 / float(spacing[row])))
    return out


def nearest(labels: torch.Tensor, positions: list[torch.Tensor]) -> torch.Tensor:
    """Return the labels of a map (I, J, K) nearest to positions, three arrays of indices; 0 outside the map.

    The arrays are overwritten.
    """
    flat = torch.zeros_like(positions[0], dtype=torch.int32)
    outside = torch.zeros_like(positions[0], dtype=torch.bool)
    for position, size in zip(positions, labels.shape, strict=True):
        index = position.round_().int()
        outside |= (index < 0) | (index >= size)
        flat.mul_(size).add_(index.clamp_(0, size - 1))
    return labels.reshape(-1)[flat.reshape(-1)].reshape(flat.shape).masked_fill_(outside, 0)
