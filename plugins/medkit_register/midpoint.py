"""The space half-way between two scans, such as two time points of a person, in which neither is favoured.

Only one image of a pair is interpolated where it is brought to the other's grid, and what is measured on both then
differs for that reason alone (Reuter and Fischl 2011). Here each goes half of the way. With the map T from the fixed to
the moving scan, an affine map M after a warp, and H the root of M, T is H s s H, where s is the root of the warp seen
from the middle: fixed points come to the middle by H and s, and middle points to the moving scan by s and H. Everything
is found in both directions and averaged, so that the two scans may change places.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from medkit.errors import MedkitError
from medkit.space import Grid, apply_affine
from medkit_register.deformable import Warp
from medkit_register.warp import Lattice, Sampler, indices, invert

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

EXACT = 0.005
"""Lattice steps by which the root of a warp, taken twice, may be off on average."""
LIMIT = 30
"""Steps towards it at most."""
ROUNDS = 3
"""Means of two directions; they come together as fast as Newton's method does."""
TURNED = 1e-3
"""Radians within which a turn is one by 180 degrees: half of it may go either way."""


def root(matrix: np.ndarray) -> np.ndarray:
    """The (4, 4) affine map that, taken twice, is `matrix`.

    Raises MedkitError where there is none: one scan is the other's mirror image or is turned by 180 degrees.
    """
    from scipy.linalg import sqrtm

    turns = np.abs(np.angle(np.linalg.eigvals(matrix[:3, :3])))
    if turns.max() > np.pi - TURNED:
        raise MedkitError("no space lies half-way: one scan is turned by 180 degrees, or a mirror image of the other")
    return np.real(sqrtm(matrix))


def mean_matrix(there: np.ndarray, back: np.ndarray) -> np.ndarray:
    """The (4, 4) mean of an affine map and of the inverse of one found in the other direction."""
    return there @ root(np.linalg.inv(there) @ np.linalg.inv(back))


def middle_grid(fixed: Grid, moving: Grid, half: np.ndarray) -> Grid:
    """The grid in the middle of two; `half` (4, 4) RAS+ mm takes fixed points to the middle, and middle points to the
    moving scan. See `common_grid`."""
    return common_grid([fixed, moving], [np.linalg.inv(half), half])


def common_grid(grids: Sequence[Grid], maps: Sequence[np.ndarray]) -> Grid:
    """Mean directions and centre, the finest spacing and the largest field of view of several. Axes run as in RAS+.

    `maps`, (4, 4) RAS+ mm, take points of the common space to those of each grid.
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
    """`affine` (4, 4) with its axes turned to run as RAS+, and the shape (3,) of `grid` in that order."""
    from nibabel.orientations import apply_orientation, inv_ornt_aff, io_orientation

    if grid.dims == 2:
        return affine, np.asarray(grid.shape)
    turned = io_orientation(affine)
    shape = apply_orientation(np.empty(grid.shape, bool), turned).shape
    return affine @ inv_ornt_aff(turned, grid.shape), np.asarray(shape)


def middle_warp(there: Warp, back: Warp, half: np.ndarray) -> Warp:
    """Middle points to moving points: the mean of half of `there` (fixed to moving) and half of `back` (the reverse).

    `half` (4, 4) RAS+ mm is the root of the affine map of `there`, and the inverse of that of `back`.
    """
    import torch

    with torch.inference_mode():
        lattice = Lattice(there.lattice.shape, half @ there.lattice.affine)
        # seen from the middle the warps keep their values: their lattices come along
        other = Lattice(back.lattice.shape, np.linalg.inv(half) @ back.lattice.affine)
        there_half = half_warp(there.forward)
        back_half = _brought(half_warp(back.forward), other, lattice)
        forward = mean_warp(there_half, back_half)
        return replace(there, matrix=half, lattice=lattice, forward=forward, backward=invert(forward))


def mean_warp(there: torch.Tensor, back: torch.Tensor) -> torch.Tensor:
    """The field (3, I, J, K) between `there` and the inverse of `back`.

    The mean of two fields is not the inverse of the mean of their inverses; both are taken, until they are. So the mean
    of the two in the other order is the inverse of this one.
    """
    for _ in range(ROUNDS):
        there, back = (there + invert(back)) / 2, (back + invert(there)) / 2
    return there


def to_fixed(warp: Warp) -> Warp:
    """Middle points to fixed points, from `middle_warp`'s map to the moving ones."""
    return replace(warp, matrix=np.linalg.inv(warp.matrix), forward=warp.backward, backward=warp.forward)


def half_warp(field: torch.Tensor) -> torch.Tensor:
    """The field (3, I, J, K) in lattice steps that, composed with itself, gives `field`."""
    points = indices(field.shape[1:], field.device).reshape(3, -1)
    half = field / 2
    for _ in range(LIMIT):
        sampler = Sampler(half)
        twice = half + sampler.at(sampler.prepared(points + half.reshape(3, -1))).reshape(half.shape)
        missing = field - twice
        half = half + missing / 2
        if float(missing.abs().mean()) < EXACT / 2:
            break
    return half


def _brought(field: torch.Tensor, source: Lattice, target: Lattice) -> torch.Tensor:
    """A field in steps of `source` at the points of `target`, in steps of that."""
    import torch

    to_source = np.linalg.inv(source.affine) @ target.affine
    matrix = torch.from_numpy(to_source.astype(np.float32)).to(field.device)
    at = matrix[:3, :3] @ indices(target.shape, field.device).reshape(3, -1) + matrix[:3, 3:]
    sampler = Sampler(field)
    turn = torch.linalg.inv(matrix[:3, :3])
    return (turn @ sampler.at(sampler.prepared(at))).reshape(3, *target.shape)
