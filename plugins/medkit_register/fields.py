"""Warps as displacement fields on the grids of the scans, affine part included, and what is said about them.

The work is done where the warp's tensors are; the fields lie in main memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Protocol

import numpy as np

from medkit.space import Grid
from medkit.transforms import DisplacementField
from medkit_register.warp import Newton, Sampler, jacobian, newton_step

if TYPE_CHECKING:
    import torch

    from medkit_register.deformable import Warp

SLAB = 1 << 20
"""Voxels worked on at a time."""
EXACT = 0.01
"""Lattice steps by which the inverse may be off near the objects."""
REFINED = 2
"""Steps of Newton's method for it at most, after the first one and with its slopes."""
ROUND = 2.0**8
"""Displacements are kept to 1/256 mm: the bits after that are noise, and half of a compressed file."""
ASTRAY = 1e-3
"""Lattice steps by which axes of grid and lattice may part from end to end and still count as parallel."""

Axes = tuple["torch.Tensor", "torch.Tensor", "torch.Tensor"]
"""i, j and k of voxels, of shapes that broadcast to (K, J, I)."""


class Shifts(Protocol):
    """Displacements of a warp at the voxels of a grid."""

    def __call__(self, part: slice, voxels: Axes) -> torch.Tensor:
        """(3, K, J, I) in lattice steps, for a `part` of the axis K, where the `voxels` are."""


def forward_field(warp: Warp, fixed: Grid, moving: Grid) -> DisplacementField:
    """Fixed points to moving points, on the fixed grid."""
    import torch

    lattice = warp.lattice.affine
    to_lattice = np.linalg.inv(lattice) @ fixed.affine
    with torch.inference_mode():
        shifts: Shifts
        if parallel(to_lattice, fixed.shape):
            shifts = _AxisByAxis(warp.forward, to_lattice, fixed.shape)
        else:
            shifts = _Between(warp.forward, to_lattice)
        values = _displacements(warp, shifts, fixed, to_lattice, warp.matrix @ lattice)
        return DisplacementField(_stored(values), fixed, fixed.digest(), moving.digest())


def backward_field(warp: Warp, forward: DisplacementField, moving: Grid) -> DisplacementField:
    """Moving points to fixed points, on the moving grid: the inverse of `forward`, exact at voxels near the objects."""
    import torch

    lattice = warp.lattice.affine
    to_lattice = np.linalg.inv(warp.matrix @ lattice) @ moving.affine
    with torch.inference_mode():
        values = _displacements(warp, _Inverse(warp, to_lattice), moving, to_lattice, lattice)
        return DisplacementField(_stored(values), moving, forward.to_grid, forward.from_grid)


def _displacements(
    warp: Warp, shifts: Shifts, grid: Grid, to_lattice: np.ndarray, to_world: np.ndarray
) -> torch.Tensor:
    """(3, K, J, I) RAS+ mm at the voxels of `grid`.

    `to_lattice` (4, 4) takes voxel indices to the warp's lattice, `to_world` (4, 4) that to RAS+ mm.
    """
    out = warp.forward.new_empty(3, *grid.shape[::-1])
    affine = to_world @ to_lattice - grid.affine
    for part, voxels in _slabs(grid.shape, warp.forward):
        shift = shifts(part, voxels)
        out[:, part] = _turned(to_world, shift).add_(_mapped(affine, voxels))
    if grid.dims == 2:
        out[2] = 0
    return out


def _stored(values: torch.Tensor) -> np.ndarray:
    """(I, J, K, 3) of (3, K, J, I), rounded, axis I fastest in memory."""
    return values.mul_(ROUND).round_().div_(ROUND).cpu().numpy().transpose(3, 2, 1, 0)


def parallel(to_lattice: np.ndarray, shape: tuple[int, int, int]) -> bool:
    """Whether each axis of a grid of that shape runs along one of the lattice; `to_lattice` (4, 4) takes it there."""
    spans = np.abs(to_lattice[:3, :3]) * np.asarray(shape)
    along = spans.argmax(0)
    return len(set(along)) == 3 and bool((spans.sum(0) - spans.max(0)).max() < ASTRAY)


class _Between:
    """The shifts of a field on a lattice, linear between its points."""

    def __init__(self, field: torch.Tensor, to_lattice: np.ndarray) -> None:
        self._sampler, self._to_lattice = Sampler(field), to_lattice

    def __call__(self, part: slice, voxels: Axes) -> torch.Tensor:
        at = _mapped(self._to_lattice, voxels)
        return self._sampler.at(self._sampler.prepared(at.reshape(3, -1))).reshape(at.shape)


class _AxisByAxis:
    """The same for a grid that is parallel to the lattice: three times as fast."""

    def __init__(self, field: torch.Tensor, to_lattice: np.ndarray, shape: tuple[int, int, int]) -> None:
        import torch

        along = np.abs(to_lattice[:3, :3] * np.asarray(shape)).argmax(0).tolist()  # per axis of the grid
        operators = [
            _hats(to_lattice[a, axis] * np.arange(n) + to_lattice[a, 3], field.shape[1 + a])
            for axis, (a, n) in enumerate(zip(along, shape, strict=True))
        ]
        i, j, k = (torch.from_numpy(operator).to(field.device) for operator in operators)
        lines = field.permute(0, *(1 + a for a in along[::-1])) @ i.T
        self._planes, self._last = torch.matmul(j, lines), k

    def __call__(self, part: slice, voxels: Axes) -> torch.Tensor:
        operator, planes = self._last[part], self._planes
        return (operator @ planes.flatten(2)).reshape(3, len(operator), *planes.shape[2:])


def _hats(positions: np.ndarray, size: int) -> np.ndarray:
    """(N, size) float32 weights of linear interpolation at positions (N,), the border repeated."""
    apart = np.abs(np.clip(positions, 0, size - 1)[:, None] - np.arange(size))
    return np.maximum(1 - apart, 0).astype(np.float32)


class _Inverse:
    """The shifts of the inverse warp: interpolated, and near the objects made exact."""

    def __init__(self, warp: Warp, to_lattice: np.ndarray) -> None:
        self._backward = Sampler(warp.backward)
        self._newton = Newton(warp.forward)
        self._near = _Near(warp)
        self._to_lattice = to_lattice

    def __call__(self, part: slice, voxels: Axes) -> torch.Tensor:
        at = _mapped(self._to_lattice, voxels)
        shape, at = at.shape, at.reshape(3, -1)
        found = self._backward.at(self._backward.prepared(at))
        chosen = self._near.chosen(at)
        points, here = at[:, chosen], found[:, chosen]
        residual, slopes = self._newton.linearised(points, here)
        for rest in reversed(range(REFINED + 1)):
            here = here - newton_step(slopes, residual)
            found[:, chosen] = here
            if not rest:
                break
            residual = self._newton.residual(points, here)
            off = ((residual * residual).sum(0) > EXACT**2).nonzero().squeeze(1)
            chosen, slopes = chosen[off], slopes[..., off]
            points, here, residual = points[:, off], here[:, off], residual[:, off]
        return found.reshape(shape)


class _Near:
    """Which points lie near the objects."""

    def __init__(self, warp: Warp) -> None:
        import torch

        self._shape = warp.lattice.shape
        self._flags = warp.forward.new_zeros(warp.forward[0].numel(), dtype=torch.bool)
        self._flags[warp.near] = True

    def chosen(self, at: torch.Tensor) -> torch.Tensor:
        """(M,) which of the points (3, N), in lattice indices."""
        x, y, z = (axis.round().clamp_(0, n - 1).long() for axis, n in zip(at, self._shape, strict=True))
        return self._flags[(x * self._shape[1] + y) * self._shape[2] + z].nonzero().squeeze(1)


def _slabs(shape: tuple[int, int, int], like: torch.Tensor) -> Iterator[tuple[slice, Axes]]:
    """Blocks of about SLAB voxels: which part of the axis K, and the indices i, j, k, on the device of `like`."""
    import torch

    i, j, k = shape
    slices = max(1, SLAB // (i * j))
    x, y, z = (torch.arange(n, dtype=torch.float32, device=like.device) for n in shape)
    for first in range(0, k, slices):
        part = slice(first, min(first + slices, k))
        yield part, (x[None, None, :], y[None, :, None], z[part, None, None])


def _mapped(matrix: np.ndarray, voxels: Axes) -> torch.Tensor:
    """(3, K, J, I) voxels through a (4, 4) matrix."""
    import torch

    x, y, z = voxels
    rows = [[float(value) for value in row] for row in matrix[:3]]
    return torch.stack([(z * row[2] + row[3]) + y * row[1] + x * row[0] for row in rows])


def _turned(matrix: np.ndarray, vectors: torch.Tensor) -> torch.Tensor:
    """(3, ...) vectors through the linear part of a (4, 4) matrix."""
    import torch

    turn = torch.from_numpy(matrix[:3, :3].astype(np.float32)).to(vectors.device)
    return (turn @ vectors.reshape(3, -1)).reshape(vectors.shape)


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
