"""Warps as displacement fields on the grids of the scans, affine part included, and what is said about them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from medkit.space import DisplacementField, Grid
from medkit_register.deformable import spacings
from medkit_register.warp import Newton, Sampler, jacobian

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import torch

    from medkit_register.deformable import Warp

SLAB = 1 << 20
"""Voxels worked on at a time."""
EXACT = 0.01
"""Lattice steps by which the inverse may be off near the objects."""
REFINED = 3
"""Newton steps for it at most."""
COARSE = 3.0
"""Where the warp's steps are so many voxels or more, interpolation between these is as good as exact."""
PART = 0.6
"""Of a voxel's mean miss that it is moved by: all of it would make inverse then forward miss by as much."""
LIGHT = 0.2
"""Added to the weights of a voxel's misses: few and far ones move it little."""
ROUND = 2.0**8
"""Displacements are kept to 1/256 mm: the bits after that are noise, and half of a compressed file."""


def forward_field(warp: Warp, fixed: Grid, moving: Grid, threads: int) -> DisplacementField:
    """Fixed points to moving points, on the fixed grid."""
    lattice = warp.lattice.affine
    sampler = Sampler(warp.forward, threads)
    values = _displacements(
        lambda at: sampler.at(sampler.prepared(at)), fixed, np.linalg.inv(lattice) @ fixed.affine, warp.matrix @ lattice
    )
    return DisplacementField(values, fixed, fixed.digest(), moving.digest())


def backward_field(warp: Warp, forward: DisplacementField, moving: Grid, threads: int) -> DisplacementField:
    """Moving points to fixed points, on the moving grid: the inverse of `forward`, from `forward_field`.

    The exact inverse at the voxels, then moved a little so that between them, too, the two fields lead back.
    """
    lattice = warp.lattice.affine
    to_lattice = np.linalg.inv(warp.matrix @ lattice) @ moving.affine
    values = _displacements(_Inverse(warp, threads), moving, to_lattice, lattice)
    if spacings(warp.lattice).min() < COARSE * moving.spacing[np.asarray(moving.shape) > 1].max():
        _fit(values, moving, forward, warp, threads)
    return DisplacementField(values, moving, forward.to_grid, forward.from_grid)


def _fit(values: np.ndarray, grid: Grid, forward: DisplacementField, warp: Warp, threads: int) -> None:
    """Changes `values`, (I, J, K, 3) RAS+ mm at the voxels of `grid`, by what `forward` and they miss fixed voxels by.

    Linear interpolation between exact values cuts every bend short, always to one side. Each voxel is moved by the mean
    of the misses around it, in the weights of the interpolation; near the objects only.
    """
    import torch

    stored = torch.from_numpy(values.transpose(3, 2, 1, 0))  # (3, K, J, I), the memory as it is
    sampler = Sampler(stored, threads)
    near = _Near(warp)
    sums = torch.zeros(stored[0].numel(), 4)
    to_lattice = np.linalg.inv(warp.lattice.affine) @ forward.grid.affine
    to_index = np.linalg.inv(grid.affine)
    with torch.inference_mode():
        for first, shape, points in _slabs(forward.grid.shape):
            kept = near.chosen(_mapped(to_lattice, points).reshape(3, -1))[::2]  # half of them tell as much
            start = _mapped(forward.grid.affine, points).reshape(3, -1)[:, kept]
            shift = torch.from_numpy(forward.field.transpose(3, 2, 1, 0)[:, first : first + shape[0]])
            end = start + shift.reshape(3, -1)[:, kept]
            index = _mapped(to_index, tuple(end)).flip(0)
            miss = start - end - sampler.at(sampler.prepared(index))
            _spread(sums, tuple(stored.shape[1:]), index, miss)
        sums[:, :3] *= PART / (sums[:, 3:] + LIGHT)
        for number, component in enumerate(stored):
            component += sums[:, number].reshape(component.shape)
        stored.mul_(ROUND).round_().div_(ROUND)


def _spread(sums: torch.Tensor, shape: tuple[int, ...], index: torch.Tensor, miss: torch.Tensor) -> None:
    """Adds weight times `miss` (3, N) and the weight to `sums` (V, 4) of the eight voxels about `index` (3, N)."""
    import torch

    limits = torch.tensor(shape)[:, None] - 1
    inside = ((index >= 0) & (index <= limits)).all(0)
    index, rows = index[:, inside], torch.cat([miss[:, inside], torch.ones(1, int(inside.sum()))]).T
    low = torch.minimum(index.floor().long(), (limits - 1).clamp_min(0))
    part = index - low
    for corner in np.ndindex(2, 2, 2):
        weight = torch.ones(index.shape[1])
        for axis, upper in enumerate(corner):
            weight = weight * (part[axis] if upper else 1 - part[axis])
        x, y, z = (torch.minimum(at + c, n) for at, c, n in zip(low, corner, limits, strict=True))
        sums.index_add_(0, (x * shape[1] + y) * shape[2] + z, rows * weight[:, None])


class _Near:
    """Which points lie near the objects."""

    def __init__(self, warp: Warp) -> None:
        import torch

        self._shape = warp.lattice.shape
        self._flags = torch.zeros(warp.forward[0].numel(), dtype=torch.bool)
        self._flags[warp.near] = True

    def chosen(self, at: torch.Tensor) -> torch.Tensor:
        """(M,) which of the points (3, N), in lattice indices."""
        x, y, z = (axis.round().clamp_(0, n - 1).long() for axis, n in zip(at, self._shape, strict=True))
        return self._flags[(x * self._shape[1] + y) * self._shape[2] + z].nonzero().squeeze(1)


class _Inverse:
    """The inverse warp between its lattice's points: interpolated, and near the objects made exact."""

    def __init__(self, warp: Warp, threads: int) -> None:
        self._backward = Sampler(warp.backward, threads)
        self._forward = Sampler(warp.forward, threads)
        self._newton = Newton(warp.forward, threads)
        self._near = _Near(warp)

    def __call__(self, at: torch.Tensor) -> torch.Tensor:
        """(3, N) displacements at (3, N) lattice indices, in lattice steps."""
        found = self._backward.at(self._backward.prepared(at))
        chosen = self._near.chosen(at)
        for _ in range(REFINED):
            points, here = at[:, chosen], found[:, chosen]
            residual = here + self._forward.at(self._forward.prepared(points + here))
            off = (residual * residual).sum(0) > EXACT**2
            chosen, points, here = chosen[off], points[:, off], here[:, off]
            if not len(chosen):
                break
            found[:, chosen] = here - self._newton.step(points, here)
        return found


def _displacements(
    shift_at: Callable[[torch.Tensor], torch.Tensor], grid: Grid, to_lattice: np.ndarray, to_world: np.ndarray
) -> np.ndarray:
    """(I, J, K, 3) float32 RAS+ mm at the voxels of `grid`, axis I fastest in memory.

    `to_lattice` (4, 4) takes voxel indices to the warp's lattice, where `shift_at` gives displacements (3, N) at points
    (3, N), and `to_world` (4, 4) the lattice to RAS+ mm.
    """
    import torch

    out = np.empty((3, *grid.shape[::-1]), np.float32)
    affine = to_world @ to_lattice - grid.affine
    turn = torch.from_numpy(to_world[:3, :3].astype(np.float32))
    with torch.inference_mode():
        for first, shape, points in _slabs(grid.shape):
            shift = turn @ shift_at(_mapped(to_lattice, points).reshape(3, -1))
            moved = shift.reshape(3, *shape).add_(_mapped(affine, points))
            out[:, first : first + shape[0]] = moved.mul_(ROUND).round_().div_(ROUND).numpy()
    if grid.dims == 2:
        out[2] = 0
    return out.transpose(3, 2, 1, 0)


Axes = tuple["torch.Tensor", ...]
"""x, y and z of points, of shapes that broadcast."""


def _slabs(shape: tuple[int, int, int]) -> Iterator[tuple[int, tuple[int, int, int], Axes]]:
    """Blocks of about SLAB voxels: the first slice, the shape (K, J, I) and the voxels' indices i, j, k."""
    import torch

    i, j, k = shape
    slices = max(1, SLAB // (i * j))
    x, y = (torch.arange(n, dtype=torch.float32) for n in (i, j))
    for first in range(0, k, slices):
        z = torch.arange(first, min(first + slices, k), dtype=torch.float32)
        yield first, (len(z), j, i), (x[None, None, :], y[None, :, None], z[:, None, None])


def _mapped(matrix: np.ndarray, points: Axes) -> torch.Tensor:
    """(3, ...) points through a (4, 4) matrix."""
    import torch

    x, y, z = points
    rows = [[float(value) for value in row] for row in matrix[:3]]
    return torch.stack([(z * row[2] + row[3]) + y * row[1] + x * row[0] for row in rows])


def folding(warp: Warp) -> dict[str, float]:
    """Range of the Jacobian determinant near the objects, and the share that is folded (0 or less).

    Determinants are of the whole map, affine part included.
    """
    values = jacobian(warp.forward).reshape(-1)[warp.near]
    linear = float(np.linalg.det(warp.matrix[:3, :3]))
    if linear < 0:  # a mirror image turns the sign everywhere
        values, linear = values, -linear
    return {
        "jacobian_min": round(float(values.min()) * linear, 4),
        "jacobian_max": round(float(values.max()) * linear, 4),
        "folded": round(float((values <= 0).float().mean()), 7),
    }


def inverse_error(forward: DisplacementField, backward: DisplacementField, voxels: np.ndarray) -> dict[str, float]:
    """Mean and largest distance in mm between voxels (N, 3) of the fixed grid and where both fields bring them."""
    points = voxels @ forward.grid.affine[:3, :3].T + forward.grid.affine[:3, 3]
    apart = np.linalg.norm(backward.map_points(forward.map_points(points)) - points, axis=1)
    return {"mean": round(float(apart.mean()), 4), "max": round(float(apart.max()), 4)}
