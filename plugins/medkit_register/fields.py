"""Registrations as transforms between the grids of the scans, and how good warps are.

A warp becomes a displacement field that includes the affine part. The work is done on the device of the warp's tensors;
the fields are in main memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
import torch

from medkit.space import Grid
from medkit.transforms import AffineTransform, DisplacementField, Transform
from medkit_register.deformable import Warp
from medkit_register.field_grids import parallel, warp_grid
from medkit_register.inversion import Newton, newton_step
from medkit_register.warp import Lattice, Sampler, jacobian

SLAB = 1 << 20
"""Voxels worked on at a time."""
EXACT = 0.01
"""Lattice steps by which the inverse may be off near the objects."""
REFINED = 2
"""Most Newton steps for the inverse after the first one, whose slopes they use."""
ROUND = 2.0**8
"""Displacements are rounded to 1/256 mm: the bits after that are noise, and half of a compressed file."""

VoxelAxes = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
"""i, j and k of voxels, of shapes that broadcast to (K, J, I)."""


class Shifts(Protocol):
    """Displacements of a warp at the voxels of a grid."""

    def __call__(self, part: slice, voxels: VoxelAxes) -> torch.Tensor:
        """Return displacements (3, K, J, I) in lattice steps at `voxels`, which are a `part` of the axis K."""


def forward_transform(
    matrix: np.ndarray, warp: Warp | None, fixed: Grid, moving: Grid, *, coarse: bool = False
) -> Transform:
    """Return the transform from `fixed` to `moving`: the affine `matrix` (4, 4) RAS+ mm where there is no warp.

    A field has the voxels of `fixed`; `coarse`: the points of `warp_grid`.
    """
    if warp is None:
        return AffineTransform(matrix, fixed.digest(), moving.digest(), dims=min(fixed.dims, moving.dims))
    return forward_field(warp, fixed, moving, coarse=coarse)


def backward_transform(warp: Warp | None, transform: Any, moving: Grid, *, coarse: bool = False) -> Transform:
    """Return the inverse of the `transform` that `forward_transform` returned for a warp; a field is on `moving`."""
    inverse: Transform = transform.inverse() if warp is None else backward_field(warp, transform, moving, coarse=coarse)
    return inverse


def forward_field(warp: Warp, fixed: Grid, moving: Grid, *, coarse: bool = False) -> DisplacementField:
    """Return the field that takes fixed points to moving points, on the fixed grid or, `coarse`, its `warp_grid`."""
    lattice = warp.lattice.affine
    grid = warp_grid(warp.lattice, fixed) if coarse else fixed
    to_lattice = np.linalg.inv(lattice) @ grid.affine
    with torch.inference_mode():
        shifts: Shifts
        if parallel(to_lattice, grid.shape):
            shifts = _ParallelGrid(warp.forward, to_lattice, grid.shape)
        else:
            shifts = _AnyGrid(warp.forward, to_lattice)
        values = _displacements(warp, shifts, grid, to_lattice, warp.matrix @ lattice)
        return DisplacementField(_stored(values), grid, fixed.digest(), moving.digest())


def backward_field(warp: Warp, forward: DisplacementField, moving: Grid, *, coarse: bool = False) -> DisplacementField:
    """Return the field that takes moving points to fixed points, on the moving grid or, `coarse`, its `warp_grid`.

    It is the inverse of `forward`, exact at voxels near the objects.
    """
    lattice = warp.lattice.affine
    grid = warp_grid(Lattice(warp.lattice.shape, warp.matrix @ lattice), moving) if coarse else moving
    to_lattice = np.linalg.inv(warp.matrix @ lattice) @ grid.affine
    with torch.inference_mode():
        values = _displacements(warp, _Inverse(warp, to_lattice), grid, to_lattice, lattice)
        return DisplacementField(_stored(values), grid, forward.to_grid, forward.from_grid)


def _displacements(
    warp: Warp, shifts: Shifts, grid: Grid, to_lattice: np.ndarray, to_world: np.ndarray
) -> torch.Tensor:
    """Return displacements (3, K, J, I), RAS+ mm, at the voxels of `grid`.

    `to_lattice` (4, 4) takes voxel indices to indices of the warp's lattice, `to_world` (4, 4) these to RAS+ mm.
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
    """Return displacements (3, K, J, I) as (I, J, K, 3), rounded, with axis I fastest in memory."""
    return values.mul_(ROUND).round_().div_(ROUND).cpu().numpy().transpose(3, 2, 1, 0)


class _AnyGrid:
    """The shifts of a field on a lattice, at the voxels of any grid; linear between the lattice's points."""

    def __init__(self, field: torch.Tensor, to_lattice: np.ndarray) -> None:
        self._sampler, self._to_lattice = Sampler(field), to_lattice

    def __call__(self, part: slice, voxels: VoxelAxes) -> torch.Tensor:
        at = _mapped(self._to_lattice, voxels)
        return self._sampler.at(at.reshape(3, -1)).reshape(at.shape)


class _ParallelGrid:
    """The shifts of a field on a lattice, at the voxels of a grid that is parallel to it: three times as fast."""

    def __init__(self, field: torch.Tensor, to_lattice: np.ndarray, shape: tuple[int, int, int]) -> None:
        along = np.abs(to_lattice[:3, :3] * np.asarray(shape)).argmax(0).tolist()  # per axis of the grid
        operators = [
            _hats(to_lattice[a, axis] * np.arange(n) + to_lattice[a, 3], field.shape[1 + a])
            for axis, (a, n) in enumerate(zip(along, shape, strict=True))
        ]
        i, j, k = (torch.from_numpy(operator).to(field.device) for operator in operators)
        lines = field.permute(0, *(1 + a for a in along[::-1])) @ i.T
        self._planes, self._last = torch.matmul(j, lines), k

    def __call__(self, part: slice, voxels: VoxelAxes) -> torch.Tensor:
        operator, planes = self._last[part], self._planes
        return (operator @ planes.flatten(2)).reshape(3, len(operator), *planes.shape[2:])


def _hats(positions: np.ndarray, size: int) -> np.ndarray:
    """Return weights (N, size) float32 of linear interpolation at positions (N,), the border repeated."""
    apart = np.abs(np.clip(positions, 0, size - 1)[:, None] - np.arange(size))
    return np.maximum(1 - apart, 0).astype(np.float32)


class _Inverse:
    """The shifts of the inverse warp: interpolated, and near the objects made exact."""

    def __init__(self, warp: Warp, to_lattice: np.ndarray) -> None:
        self._backward = Sampler(warp.backward)
        self._newton = Newton(warp.forward)
        self._near = _Near(warp)
        self._to_lattice = to_lattice

    def __call__(self, part: slice, voxels: VoxelAxes) -> torch.Tensor:
        at = _mapped(self._to_lattice, voxels)
        shape, at = at.shape, at.reshape(3, -1)
        found = self._backward.at(at)
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
        self._shape = warp.lattice.shape
        self._flags = warp.forward.new_zeros(warp.forward[0].numel(), dtype=torch.bool)
        self._flags[warp.near] = True

    def chosen(self, at: torch.Tensor) -> torch.Tensor:
        """Return which (M,) of the points (3, N), given as lattice indices."""
        x, y, z = (axis.round().clamp_(0, n - 1).long() for axis, n in zip(at, self._shape, strict=True))
        return self._flags[(x * self._shape[1] + y) * self._shape[2] + z].nonzero().squeeze(1)


def _slabs(shape: tuple[int, int, int], like: torch.Tensor) -> Iterator[tuple[slice, VoxelAxes]]:
    """Yield blocks of about SLAB voxels: the part of the axis K, and the indices i, j, k, on the device of `like`."""
    i, j, k = shape
    slices = max(1, SLAB // (i * j))
    x, y, z = (torch.arange(n, dtype=torch.float32, device=like.device) for n in shape)
    for first in range(0, k, slices):
        part = slice(first, min(first + slices, k))
        yield part, (x[None, None, :], y[None, :, None], z[part, None, None])


def _mapped(matrix: np.ndarray, voxels: VoxelAxes) -> torch.Tensor:
    """Return voxels mapped by a (4, 4) matrix, as (3, K, J, I)."""
    x, y, z = voxels
    rows = [[float(value) for value in row] for row in matrix[:3]]
    return torch.stack([(z * row[2] + row[3]) + y * row[1] + x * row[0] for row in rows])


def _turned(matrix: np.ndarray, vectors: torch.Tensor) -> torch.Tensor:
    """Return vectors (3, ...) mapped by the linear part of a (4, 4) matrix."""
    turn = torch.from_numpy(matrix[:3, :3].astype(np.float32)).to(vectors.device)
    return (turn @ vectors.reshape(3, -1)).reshape(vectors.shape)


def folding(warp: Warp) -> dict[str, float]:
    """Return the range of the Jacobian determinant near the objects, and the share of points where it is 0 or less.

    Determinants are of the whole map, including the affine part.
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
    """Return by how many mm both fields together move voxels (N, 3) of the fixed grid: mean and maximum."""
    points = voxels @ forward.grid.affine[:3, :3].T + forward.grid.affine[:3, 3]
    apart = np.linalg.norm(backward.map_points(forward.map_points(points)) - points, axis=1)
    return {"mean": round(float(apart.mean()), 4), "max": round(float(apart.max()), 4)}
