"""The space half-way between two scans, such as two time points of a person, in which neither is favoured.

If one image of a pair is resampled onto the other's grid, only that one is interpolated, and measurements on the two
differ for this reason only (Reuter and Fischl 2011). Here each image goes half of the way. Let T be the map from the
fixed to the moving scan, an affine map M after a warp, and let H be the root of M. Then T = H s s H, where s is the
root of the warp in the coordinates of the middle: fixed points come to the middle by H and s, and middle points to the
moving scan by s and H. Everything is computed in both directions and averaged, so that the two scans may change places.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from medkit.errors import MedkitError
from medkit.space import Grid, apply_affine
from medkit_register.deformable import Warp
from medkit_register.inversion import invert
from medkit_register.warp import Lattice, Sampler, doubled, indices, transformed

EXACT = 0.005
"""Lattice steps by which the root of a warp, applied twice, may be off on average."""
LIMIT = 30
"""Most steps towards the root of a warp."""
ROUNDS = 3
"""Rounds in which the means of two directions are computed: they converge as fast as Newton's method."""
TURNED = 1e-3
"""Radians within which a rotation counts as one by 180 degrees: half of it may go either way."""


def root(matrix: np.ndarray) -> np.ndarray:
    """Return the (4, 4) affine map that, applied twice, is `matrix`.

    Raises MedkitError if there is no such map: one scan is the other's mirror image, or is turned by 180 degrees.
    """
    from scipy.linalg import sqrtm

    turns = np.abs(np.angle(np.linalg.eigvals(matrix[:3, :3])))
    if turns.max() > np.pi - TURNED:
        raise MedkitError("no space lies half-way: one scan is turned by 180 degrees, or a mirror image of the other")
    return np.real(sqrtm(matrix))


def mean_matrix(forward: np.ndarray, backward: np.ndarray) -> np.ndarray:
    """Return the (4, 4) mean of an affine map and of the inverse of the separately found `backward` map."""
    return forward @ root(np.linalg.inv(forward) @ np.linalg.inv(backward))


def middle_grid(fixed: Grid, moving: Grid, half: np.ndarray) -> Grid:
    """Return the `common_grid` in the middle of two.

    `half` (4, 4) RAS+ mm takes fixed points to the middle, and middle points to the moving scan.
    """
    return common_grid([fixed, moving], [np.linalg.inv(half), half])


def common_grid(grids: Sequence[Grid], maps: Sequence[np.ndarray]) -> Grid:
    """Return the grid with the mean directions and centre, the finest spacing and the largest field of view of several.

    Its axes run as in RAS+. `maps`, (4, 4) RAS+ mm, take points of the common space to points of each grid.
    """
    turned = [_canonical(np.linalg.inv(m) @ grid.affine, grid) for grid, m in zip(grids, maps, strict=True)]
    directions = [affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0) for affine, _ in turned]
    left, _, right = np.linalg.svd(np.sum(directions, axis=0))
    turn = left @ right
    spacing = np.min([np.linalg.norm(affine[:3, :3], axis=0) for affine, _ in turned], axis=0)
    sides = np.max([np.linalg.norm(affine[:3, :3], axis=0) * shape for affine, shape in turned], axis=0)
    several = np.max([shape for _, shape in turned], axis=0) > 1
    shape = np.where(several, np.ceil(sides / spacing - 1e-3), 1).astype(int)
    centre = np.mean([apply_affine(affine, (shape[None] - 1) / 2)[0] for affine, shape in turned], axis=0)
    affine = np.eye(4)
    affine[:3, :3] = turn * spacing
    affine[:3, 3] = centre - affine[:3, :3] @ ((shape - 1) / 2)
    return Grid((shape[0], shape[1], shape[2]), affine, min(grid.dims for grid in grids))


def _canonical(affine: np.ndarray, grid: Grid) -> tuple[np.ndarray, np.ndarray]:
    """Return `affine` (4, 4) and the shape (3,) of `grid` with axes in closest-RAS order and direction."""
    from nibabel.orientations import apply_orientation, inv_ornt_aff, io_orientation

    if grid.dims == 2:
        return affine, np.asarray(grid.shape)
    turned = io_orientation(affine)
    shape = apply_orientation(np.empty(grid.shape, bool), turned).shape
    return affine @ inv_ornt_aff(turned, grid.shape), np.asarray(shape)


def middle_warp(forward: Warp, backward: Warp, half: np.ndarray) -> Warp:
    """Return the warp from middle points to moving points.

    It is the mean of half of `forward` (fixed to moving) and half of `backward` (the reverse). `half` (4, 4) RAS+ mm is
    the root of the affine map of `forward`, and the inverse of the root of that of `backward`.
    """
    with torch.inference_mode():
        lattice = Lattice(forward.lattice.shape, half @ forward.lattice.affine)
        # in the coordinates of the middle the warps keep their values, and their lattices move
        other = Lattice(backward.lattice.shape, np.linalg.inv(half) @ backward.lattice.affine)
        half_forward = half_warp(forward.forward)
        half_backward = _resampled(half_warp(backward.forward), other, lattice)
        field = mean_warp(half_forward, half_backward)
        return replace(forward, matrix=half, lattice=lattice, forward=field, backward=invert(field))


def mean_warp(forward: torch.Tensor, backward: torch.Tensor) -> torch.Tensor:
    """Return the field (3, I, J, K) in the middle between `forward` and the inverse of `backward`.

    The mean of two fields is not the inverse of the mean of their inverses. Both means are computed repeatedly until
    they are inverse to each other, so that with the two arguments exchanged the result is the inverse field.
    """
    for _ in range(ROUNDS):
        forward, backward = (forward + invert(backward)) / 2, (backward + invert(forward)) / 2
    return forward


def to_fixed(warp: Warp) -> Warp:
    """Return the warp from middle points to fixed points; `warp` is that of `middle_warp`, to moving points."""
    return replace(warp, matrix=np.linalg.inv(warp.matrix), forward=warp.backward, backward=warp.forward)


def half_warp(field: torch.Tensor) -> torch.Tensor:
    """Return the field (3, I, J, K) in lattice steps that, composed with itself, is `field`."""
    points = indices(field.shape[1:], field.device).reshape(3, -1)
    half = field / 2
    for _ in range(LIMIT):
        missing = field - doubled(half, points)
        half = half + missing / 2
        if float(missing.abs().mean()) < EXACT / 2:
            break
    return half


def _resampled(field: torch.Tensor, source: Lattice, target: Lattice) -> torch.Tensor:
    """Return a field (3, I, J, K) on `source` at the points of `target`, in steps of `target`."""
    to_source = np.linalg.inv(source.affine) @ target.affine
    at = transformed(to_source, indices(target.shape, field.device).reshape(3, -1))
    to_target = torch.linalg.inv(torch.from_numpy(to_source[:3, :3].astype(np.float32)).to(field.device))
    return (to_target @ Sampler(field).at(at)).reshape(3, *target.shape)
