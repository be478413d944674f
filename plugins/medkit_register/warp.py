"""Displacement fields on a lattice: sampling, smoothing, composition, inversion, Jacobians.

A field is (3, I, J, K) float32 in steps of its own lattice: the point with index p goes to index p + field[:, p].
Beyond the lattice its border repeats. An axis of one point (planar scans) has no displacement along it. All runs on
the device of the tensors that are given.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

STEEPEST = 0.05
"""Newton's steps towards the inverse take no Jacobian under this: near a fold it points anywhere."""
COARSE = 32
"""Points along the longest axis of a lattice that is not halved."""


@dataclass(frozen=True, eq=False)
class Lattice:
    """Points at equal steps."""

    shape: tuple[int, int, int]
    """Points along each axis."""
    affine: np.ndarray
    """(4, 4) index -> RAS+ mm."""

    def coarser(self, factor: int) -> Lattice:
        """`factor` points along each axis as one in their middle; shapes are multiples of it, a single point stays."""
        factors = np.where(np.asarray(self.shape) > 1, factor, 1)
        affine = self.affine @ np.diag([*factors.astype(float), 1.0])
        affine[:3, 3] = self.affine[:3] @ [*((factors - 1) / 2), 1.0]
        i, j, k = (int(n) for n in np.asarray(self.shape) // factors)
        return Lattice((i, j, k), affine)


class Sampler:
    """Linear interpolation in several channels at once; the border repeats."""

    def __init__(self, channels: torch.Tensor) -> None:
        """`channels` (C, I, J, K)."""
        import torch

        # what belongs to a point lies together: a quarter faster with four channels
        self._volume = channels[None].contiguous(memory_format=torch.channels_last_3d)
        # on CPUs, in 3D, grid_sample runs one thread per batch entry
        self._batch = torch.get_num_threads() if channels.device.type == "cpu" else 1
        sizes = np.asarray(channels.shape[1:])
        self.scale = [2 / (n - 1) if n > 1 else 0.0 for n in sizes.tolist()]

    def prepared(self, index: torch.Tensor) -> torch.Tensor:
        """Indices (3, N) as `at` takes them."""
        import torch

        return torch.stack([i * s - 1 for i, s in zip(index, self.scale, strict=True)])

    def at(self, positions: torch.Tensor) -> torch.Tensor:
        """(C, N) at (3, N) prepared positions."""
        from torch.nn.functional import grid_sample

        volume = self._volume.expand(self._batch, -1, -1, -1, -1)
        out = grid_sample(volume, self._grid(positions), mode="bilinear", padding_mode="border", align_corners=True)
        return out[..., 0, 0].transpose(0, 1).reshape(out.shape[1], -1)[:, : positions.shape[1]]

    def pulled(self, positions: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """(3, N) slopes per step, at (3, N) prepared positions, of the first channels summed in weights (C, N)."""
        import torch

        count = positions.shape[1]
        grid = self._grid(positions)
        padded = torch.nn.functional.pad(weights, (0, grid.shape[0] * grid.shape[1] - count))
        given = padded.reshape(len(weights), *grid.shape[:2]).transpose(0, 1)[..., None, None]
        volume = self._volume[:, : len(weights)].expand(self._batch, -1, -1, -1, -1)
        # what a backward pass would compute, without the slopes of the volume
        _, slopes = torch.ops.aten.grid_sampler_3d_backward(given, volume, grid, 0, 1, True, [False, True])
        along = slopes.reshape(-1, 3)[:count].T.flip(0)
        return torch.stack([s * scale for s, scale in zip(along, self.scale, strict=True)])

    def _grid(self, positions: torch.Tensor) -> torch.Tensor:
        """(T, M, 1, 1, 3) of (3, N), cut into equal parts."""
        import torch

        count = positions.shape[1]
        chunk = -(-count // self._batch)
        padded = torch.nn.functional.pad(positions, (0, chunk * self._batch - count))
        return padded.flip(0).reshape(3, self._batch, chunk).permute(1, 2, 0)[:, :, None, None]


def indices(shape: Sequence[int], device: torch.device | str = "cpu") -> torch.Tensor:
    """(3, I, J, K) float32, the index of each point."""
    import torch

    along = [torch.arange(n, dtype=torch.float32, device=device) for n in shape]
    return torch.stack(torch.meshgrid(*along, indexing="ij"))


def smooth_field(field: torch.Tensor, sigma: float) -> torch.Tensor:
    """`field` (C, I, J, K) after a Gaussian of `sigma` steps, zero beyond the lattice; short kernels, few passes."""
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
    """The field of p -> (p + step(p)) moved by `field`, at the flattened lattice's points `near` (N,).

    `points` (3, N) are their indices. Elsewhere steps are as good as zero, and the two are added.
    """
    out = field + step
    flat = step.reshape(3, -1).index_select(1, near)
    sampler = Sampler(field)
    out.reshape(3, -1)[:, near] = sampler.at(sampler.prepared(points + flat)).add_(flat)
    return out


def resized(field: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    """The field of a coarser lattice on one of `shape` points over the same box."""
    from torch.nn.functional import interpolate

    if tuple(field.shape[1:]) == shape:
        return field
    factor = max(fine / coarse for fine, coarse in zip(shape, field.shape[1:], strict=True))
    return interpolate(field[None], size=shape, mode="trilinear", align_corners=False)[0].mul_(factor)


def halved(field: torch.Tensor) -> torch.Tensor | None:
    """The field on a lattice of half as many points; None where their number is odd, or the lattice coarse already."""
    from torch.nn.functional import avg_pool3d

    shape = field.shape[1:]
    if max(shape) <= COARSE or any(n > 1 and n % 2 for n in shape):
        return None
    return avg_pool3d(field[None], tuple(min(n, 2) for n in shape))[0].div_(2)


def at_phase(field: torch.Tensor, phase: tuple[int, ...]) -> torch.Tensor:
    """The field where one of the finer lattice's points of each cell lies: 0 for the lower one, 1 for the upper.

    A quarter of a step to that side along each axis with more than one point.
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


def gradient(image: torch.Tensor) -> torch.Tensor:
    """(3, I, J, K) central differences per step of an image (I, J, K), zero at its borders."""
    import torch

    from medkit_register.problem import slope

    return torch.stack([slope(image, axis) for axis in range(3)])


def derivatives(field: torch.Tensor) -> torch.Tensor:
    """(3, 3, I, J, K): of each component (first) along each axis (second), one-sided at the borders."""
    import torch

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
    """(...) of (3, 3, ...)."""
    (a, b, c), (d, e, f), (g, h, i) = matrix
    return a * (e * i - f * h) - b * (d * i - f * g) + c * (d * h - e * g)


def jacobian(field: torch.Tensor) -> torch.Tensor:
    """(I, J, K) determinant of the derivative of p -> p + field(p)."""
    matrix = derivatives(field)
    for axis in range(3):
        matrix[axis, axis] += 1
    return determinant(matrix)


def invert(field: torch.Tensor, *, tolerance: float = 1e-3, limit: int = 20) -> torch.Tensor:
    """The field of the inverse map, on the same lattice.

    Newton's method at every point, until the mean step is under `tolerance` lattice steps. It begins with the inverse
    on a lattice of half as many points along each axis, and on the coarsest with a few steps of the fixed-point
    iteration (Chen et al. 2008). Points that have arrived are left out. Near a fold there is no inverse, and the result
    is the closest found.
    """
    import torch

    shape = tuple(field.shape[1:])
    points = indices(shape, field.device).reshape(3, -1)
    half = halved(field)
    if half is not None:
        found = resized(invert(half, tolerance=tolerance, limit=limit), shape).reshape(3, -1)
    else:
        found = -field.reshape(3, -1)
        shift = Sampler(field)
        for _ in range(4):
            found = 0.5 * (found - shift.at(shift.prepared(points + found)))
    newton, left = Newton(field), torch.arange(points.shape[1], device=field.device)
    for _ in range(limit):
        here = found[:, left]
        residual, slopes = newton.linearised(points, here)
        step = newton_step(slopes, residual)
        found[:, left] = here - step
        moved = step.abs()
        if float(moved.sum()) < tolerance * found.numel():
            break
        still = (moved.amax(0) > tolerance).nonzero().squeeze(1)
        left, points = left[still], points[:, still]
    return found.reshape(field.shape)


class Newton:
    """Newton's method for the inverse of a warp, at any points."""

    def __init__(self, field: torch.Tensor) -> None:
        """`field` (3, I, J, K)."""
        import torch

        slopes = derivatives(field).reshape(9, *field.shape[1:])
        self._field, self._both = Sampler(field), Sampler(torch.cat([field, slopes]))

    def residual(self, points: torch.Tensor, found: torch.Tensor) -> torch.Tensor:
        """(3, N) by how much the warp misses `points` (3, N) with the inverse's displacements `found` (3, N) there."""
        return found + self._field.at(self._field.prepared(points + found))

    def linearised(self, points: torch.Tensor, found: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The same, and the field's slopes there, (3, 3, N)."""
        values = self._both.at(self._both.prepared(points + found))
        return found + values[:3], values[3:].reshape(3, 3, -1)


def newton_step(slopes: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
    """(3, N) what is to be taken from the inverse: x of (1 + slopes) x = residual, by cofactors.

    `slopes` (3, 3, N); at most one lattice step along each axis.
    """
    import torch

    (a, b, c), (d, e, f), (g, h, i) = slopes
    a, e, i = a + 1, e + 1, i + 1
    cofactors = (
        (e * i - f * h, c * h - b * i, b * f - c * e),
        (f * g - d * i, a * i - c * g, c * d - a * f),
        (d * h - e * g, b * g - a * h, a * e - b * d),
    )
    first, second, third = cofactors[0]
    total = (a * first).addcmul_(d, second).addcmul_(g, third).clamp_min_(STEEPEST)
    p, q, r = residual
    return torch.stack([(x * p).addcmul_(y, q).addcmul_(z, r).div_(total) for x, y, z in cofactors]).clamp_(-1, 1)


def spacings(lattice: Lattice) -> np.ndarray:
    """mm between points along each axis that has more than one."""
    steps = np.linalg.norm(lattice.affine[:3, :3], axis=0)
    return steps[np.asarray(lattice.shape) > 1]


def inside(index: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    """(N,) 1 where indices (3, N) lie within an image of that shape, else 0; an axis of one voxel is no limit."""
    import torch

    kept = torch.ones(index.shape[1], dtype=torch.bool, device=index.device)
    for along, size in zip(index, shape, strict=True):
        if size > 1:
            kept &= (along >= -0.5) & (along <= size - 0.5)
    return kept.float()
