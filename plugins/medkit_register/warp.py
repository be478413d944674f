"""Displacement fields on a lattice: sampling, smoothing, composition, Jacobians.

A field is (3, I, J, K) float32 in steps of its lattice: the point with index p goes to index p + field[:, p]. Beyond
the lattice the border repeats. There is no displacement along an axis of one point (planar scans). All functions work
on the device of the tensors that they get.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn.functional import grid_sample, interpolate, pad

MAX_SHRUNK = 1e-5
"""Largest share of points that may shrink to less than MIN_VOLUME."""


@dataclass(frozen=True, eq=False)
class Lattice:
    """Points in space at equal steps along three axes."""

    shape: tuple[int, int, int]
    """Points along each axis."""
    affine: np.ndarray
    """(4, 4) index -> RAS+ mm."""

    def coarser(self, factor: int) -> Lattice:
        """Return the lattice of one point in the middle of every `factor` points along each axis.

        The shape is a multiple of `factor`, except that an axis of one point keeps it.
        """
        factors = np.where(np.asarray(self.shape) > 1, factor, 1)
        affine = self.affine @ np.diag([*factors.astype(float), 1.0])
        affine[:3, 3] = self.affine[:3] @ [*((factors - 1) / 2), 1.0]
        i, j, k = (int(n) for n in np.asarray(self.shape) // factors)
        return Lattice((i, j, k), affine)

    @property
    def spacing(self) -> float:
        """Smallest distance in mm between points, along axes with more than one."""
        steps = np.linalg.norm(self.affine[:3, :3], axis=0)
        return float(steps[np.asarray(self.shape) > 1].min())


class Sampler:
    """Linear interpolation of several channels (C, I, J, K) at once; the border repeats."""

    def __init__(self, channels: torch.Tensor) -> None:
        # the channels of a point are neighbours in memory: a quarter faster with four channels
        self._volume = channels[None].contiguous(memory_format=torch.channels_last_3d)
        # on CPUs, in 3D, grid_sample runs one thread per batch entry
        self._batch = torch.get_num_threads() if channels.device.type == "cpu" else 1
        sizes = np.asarray(channels.shape[1:])
        self.scale = [2 / (n - 1) if n > 1 else 0.0 for n in sizes.tolist()]

    def at(self, index: torch.Tensor) -> torch.Tensor:
        """Return values (C, N) at indices (3, N)."""
        return self.at_prepared(self.prepared(index))

    def prepared(self, index: torch.Tensor) -> torch.Tensor:
        """Return indices (3, N) scaled to grid_sample's -1 .. 1."""
        return torch.stack([i * s - 1 for i, s in zip(index, self.scale, strict=True)])

    def at_prepared(self, positions: torch.Tensor) -> torch.Tensor:
        """Return values (C, N) at (3, N) positions from `prepared`."""
        volume = self._volume.expand(self._batch, -1, -1, -1, -1)
        out = grid_sample(volume, self._grid(positions), mode="bilinear", padding_mode="border", align_corners=True)
        return out[..., 0, 0].transpose(0, 1).reshape(out.shape[1], -1)[:, : positions.shape[1]]

    def weighted_slopes(self, positions: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """Return the slopes (3, N) per step of the first C channels, summed with weights (C, N).

        `positions` (3, N) come from `prepared`.
        """
        count = positions.shape[1]
        grid = self._grid(positions)
        padded = pad(weights, (0, grid.shape[0] * grid.shape[1] - count))
        given = padded.reshape(len(weights), *grid.shape[:2]).transpose(0, 1)[..., None, None]
        volume = self._volume[:, : len(weights)].expand(self._batch, -1, -1, -1, -1)
        # what a backward pass would compute, without the slopes of the volume
        _, slopes = torch.ops.aten.grid_sampler_3d_backward(given, volume, grid, 0, 1, True, [False, True])
        along = slopes.reshape(-1, 3)[:count].T.flip(0)
        return torch.stack([s * scale for s, scale in zip(along, self.scale, strict=True)])

    def _grid(self, positions: torch.Tensor) -> torch.Tensor:
        """Return positions (3, N) as (T, M, 1, 1, 3): cut into T equal parts, the last one filled up."""
        count = positions.shape[1]
        chunk = -(-count // self._batch)
        padded = pad(positions, (0, chunk * self._batch - count))
        return padded.flip(0).reshape(3, self._batch, chunk).permute(1, 2, 0)[:, :, None, None]


def indices(shape: Sequence[int], device: torch.device | str = "cpu") -> torch.Tensor:
    """Return the index of each point of a lattice of this shape, (3, I, J, K) float32."""
    along = [torch.arange(n, dtype=torch.float32, device=device) for n in shape]
    return torch.stack(torch.meshgrid(*along, indexing="ij"))


def transformed(matrix: np.ndarray, points: torch.Tensor) -> torch.Tensor:
    """Return points (3, N) mapped by a (4, 4) matrix, in float32."""
    rows = torch.from_numpy(np.asarray(matrix, np.float32)).to(points.device)
    return rows[:3, :3] @ points + rows[:3, 3:]


def smooth_field(field: torch.Tensor, sigma: float) -> torch.Tensor:
    """Return `field` (C, I, J, K) after a Gaussian of `sigma` steps, with zeros beyond the lattice.

    The kernel ends at 2.5 `sigma`: one pass per tap is fast for such short ones.
    """
    if sigma <= 0:
        return field
    reach = max(1, math.ceil(2.5 * sigma))
    weights = np.exp(-0.5 * (np.arange(reach + 1) / sigma) ** 2)
    weights /= weights[0] + 2 * weights[1:].sum()
    for axis in range(1, field.ndim):
        size = field.shape[axis]
        if size == 1:
            continue
        out = field * float(weights[0])
        for tap in range(1, min(reach, size - 1) + 1):
            for to, source in ((0, tap), (tap, 0)):
                out.narrow(axis, to, size - tap).add_(field.narrow(axis, source, size - tap), alpha=float(weights[tap]))
        field = out
    return field


def compose(field: torch.Tensor, step: torch.Tensor, points: torch.Tensor, near: torch.Tensor) -> torch.Tensor:
    """Return the field of the map that moves a point by `step` and then by `field`.

    Exact at the points `near` (N,) of the flattened lattice, whose indices are `points` (3, N). Elsewhere, where steps
    must be close to zero, the two fields are added.
    """
    out = field + step
    flat = step.reshape(3, -1).index_select(1, near)
    out.reshape(3, -1)[:, near] = Sampler(field).at(points + flat).add_(flat)
    return out


def doubled(field: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
    """Return the field of the map applied twice; `points` (3, N) are the indices of all points of its lattice."""
    return field + Sampler(field).at(points + field.reshape(3, -1)).reshape(field.shape)


def resized(field: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    """Return the field of a coarser lattice on one of `shape` points over the same box."""
    if tuple(field.shape[1:]) == shape:
        return field
    factor = max(fine / coarse for fine, coarse in zip(shape, field.shape[1:], strict=True))
    return interpolate(field[None], size=shape, mode="trilinear", align_corners=False)[0].mul_(factor)


def at_phase(field: torch.Tensor, phase: tuple[int, ...]) -> torch.Tensor:
    """Return the field at one point per cell of a lattice that is twice as fine.

    That point lies a quarter of a step below (0) or above (1) the middle of its cell, as `phase` (3,) states for each
    axis; an axis of one point has no phase.
    """
    for axis, upper in enumerate(phase, start=1):
        size = field.shape[axis]
        if size == 1:
            continue
        out = field * 0.75
        to, source = (0, 1) if upper else (1, 0)
        out.narrow(axis, to, size - 1).add_(field.narrow(axis, source, size - 1), alpha=0.25)
        edge = size - 1 if upper else 0
        out.narrow(axis, edge, 1).add_(field.narrow(axis, edge, 1), alpha=0.25)
        field = out
    return field


def derivatives(field: torch.Tensor) -> torch.Tensor:
    """Return the slopes (3, 3, I, J, K) of each component (first) along each axis (second), one-sided at borders."""
    out = field.new_zeros(3, *field.shape)
    for axis in range(3):
        size = field.shape[axis + 1]
        if size == 1:
            continue
        along, values = out[:, axis].movedim(axis + 1, 0), field.movedim(axis + 1, 0)
        torch.sub(values[2:], values[:-2], out=along[1:-1]).mul_(0.5)
        torch.sub(values[1], values[0], out=along[0])
        torch.sub(values[-1], values[-2], out=along[-1])
    return out


def determinant(matrix: torch.Tensor) -> torch.Tensor:
    """Return the determinants (...) of matrices (3, 3, ...)."""
    (a, b, c), (d, e, f), (g, h, i) = matrix
    return a * (e * i - f * h) - b * (d * i - f * g) + c * (d * h - e * g)


def jacobian(field: torch.Tensor) -> torch.Tensor:
    """Return the determinants (I, J, K) of the derivative of p -> p + field(p)."""
    matrix = derivatives(field)
    for axis in range(3):
        matrix[axis, axis] += 1
    return determinant(matrix)


def unfolded(field: torch.Tensor, min_volume: float, passes: int = 10) -> torch.Tensor:
    """Return the field, smoothed about points that shrink to less than `min_volume`, until almost none is left.

    Each pass reaches farther than the previous one: folds that resist extend over several points.
    """
    for number in range(passes):
        sigma = 1 + 0.5 * number
        shrunk = (jacobian(field) < min_volume).float()[None]
        if float(shrunk.mean()) <= MAX_SHRUNK:
            break
        share = (8 * smooth_field(shrunk, sigma)).clamp_(0, 1)
        field = field + share * (smooth_field(field, sigma) - field)
    return field


def inside(index: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    """Return (N,) 1 where indices (3, N) lie inside an image of that shape, else 0; single-voxel axes are no limit."""
    kept = torch.ones(index.shape[1], dtype=torch.bool, device=index.device)
    for along, size in zip(index, shape, strict=True):
        if size > 1:
            kept &= (along >= -0.5) & (along <= size - 0.5)
    return kept.float()
