"""Warps as displacement fields on the grids of the scans, affine part included, and what is said about them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from medkit.space import DisplacementField, Grid
from medkit_register.warp import Newton, Sampler, jacobian

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

    from medkit_register.deformable import Warp

SLAB = 1 << 20
"""Voxels worked on at a time."""
EXACT = 0.01
"""Lattice steps by which the inverse may be off near the objects."""
REFINED = 3
"""Newton steps for it at most."""
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


def backward_field(warp: Warp, fixed: Grid, moving: Grid, threads: int) -> DisplacementField:
    """Moving points to fixed points, on the moving grid."""
    lattice = warp.lattice.affine
    to_lattice = np.linalg.inv(warp.matrix @ lattice) @ moving.affine
    values = _displacements(_Inverse(warp, threads), moving, to_lattice, lattice)
    return DisplacementField(values, moving, moving.digest(), fixed.digest())


class _Inverse:
    """The inverse warp between its lattice's points: interpolated, and near the objects made exact."""

    def __init__(self, warp: Warp, threads: int) -> None:
        import torch

        self._backward = Sampler(warp.backward, threads)
        self._forward = Sampler(warp.forward, threads)
        self._newton = Newton(warp.forward, threads)
        self._near = torch.zeros(warp.forward[0].numel())
        self._near[warp.near] = 1
        self._shape = warp.lattice.shape

    def __call__(self, at: torch.Tensor) -> torch.Tensor:
        """(3, N) displacements at (3, N) lattice indices, in lattice steps."""
        found = self._backward.at(self._backward.prepared(at))
        chosen = self._close(at)
        for _ in range(REFINED):
            points, here = at[:, chosen], found[:, chosen]
            residual = here + self._forward.at(self._forward.prepared(points + here))
            off = (residual * residual).sum(0) > EXACT**2
            chosen, points, here = chosen[off], points[:, off], here[:, off]
            if not len(chosen):
                break
            found[:, chosen] = here - self._newton.step(points, here)
        return found

    def _close(self, at: torch.Tensor) -> torch.Tensor:
        """(M,) which of the points lie near the objects."""
        corner = [axis.round().clamp_(0, n - 1).long() for axis, n in zip(at, self._shape, strict=True)]
        cell = (corner[0] * self._shape[1] + corner[1]) * self._shape[2] + corner[2]
        return self._near[cell].nonzero().squeeze(1)


def _displacements(
    shift_at: Callable[[torch.Tensor], torch.Tensor], grid: Grid, to_lattice: np.ndarray, to_world: np.ndarray
) -> np.ndarray:
    """(I, J, K, 3) float32 RAS+ mm at the voxels of `grid`, axis I fastest in memory.

    `to_lattice` (4, 4) takes voxel indices to the warp's lattice, where `shift_at` gives displacements (3, N) at points
    (3, N), and `to_world` (4, 4) the lattice to RAS+ mm.
    """
    import torch

    out = np.empty((3, *grid.shape[::-1]), np.float32)
    i, j, k = grid.shape
    affine = (to_world @ to_lattice - grid.affine)[:3]
    turn = torch.from_numpy(to_world[:3, :3].astype(np.float32))
    slices = max(1, SLAB // (i * j))
    with torch.inference_mode():
        x, y = (torch.arange(n, dtype=torch.float32) for n in (i, j))
        for first in range(0, k, slices):
            z = torch.arange(first, min(first + slices, k), dtype=torch.float32)
            points = (z[:, None, None], y[None, :, None], x[None, None, :])
            at = torch.stack([_along(row, points) for row in to_lattice[:3]]).reshape(3, -1)
            moved = (turn @ shift_at(at)).reshape(3, len(z), j, i)
            for row, target in zip(affine, moved, strict=True):
                target += _along(row, points)
            out[:, first : first + len(z)] = moved.mul_(ROUND).round_().div_(ROUND).numpy()
    if grid.dims == 2:
        out[2] = 0
    return out.transpose(3, 2, 1, 0)


def _along(row: np.ndarray, points: tuple[torch.Tensor, torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """(K, J, I) an affine function of the voxel index; `row` (4,) its coefficients."""
    z, y, x = points
    return (z * float(row[2]) + float(row[3])) + y * float(row[1]) + x * float(row[0])


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
