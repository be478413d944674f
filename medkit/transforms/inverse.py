"""The inverse of a displacement field, found point by point."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from medkit.space import Grid, apply_affine

if TYPE_CHECKING:
    from torch import Tensor

SLAB = 1 << 17
"""Voxels of the output worked on at a time: the memory beside input and output stays at some 20 MB."""
INVERSE_TOLERANCE = 1e-3
"""How far from its aim, in the smallest spacing of the field, a point of an inverse may end."""
INVERSE_ROUNDS = 60
"""Steps after which a point that has not arrived stays where it came nearest: 10 are usual, folds never end."""


def preimages(field: np.ndarray, grid: Grid, points: np.ndarray) -> np.ndarray:
    """Return the points (N, 3) that a displacement field takes to `points` (N, 3), RAS+ mm.

    `field` is (I, J, K, 3) mm on `grid`. Where such points exist they are met to within `INVERSE_TOLERANCE`: see
    `InverseSearch`.
    """
    import torch

    seek = InverseSearch.of(field, grid)
    with torch.inference_mode():
        aims = torch.from_numpy(np.array(points, np.float64).T)
        return torch.cat([seek(part) for part in aims.split(SLAB, dim=1)], dim=1).numpy().T


class _Search(NamedTuple):
    """The points that have not arrived yet, n of them."""

    todo: Tensor
    """(n,) their numbers among all points."""
    aims: Tensor
    """(3, n) where the field is to take them, mm."""
    points: Tensor
    """(3, n) the nearest places found so far, mm."""
    rest: Tensor
    """(3, n) what is missing there, mm."""
    distance: Tensor
    """(n,) its length."""
    step: Tensor
    """(3, n) the step to try next, mm."""
    length: Tensor
    """(n,) the factor of plain steps, halved where one led away from the aim."""

    def only(self, chosen: Tensor) -> _Search:
        """Keep the points that `chosen`, (n,) bool, names."""
        return _Search(*(values[..., chosen] for values in self))


@dataclass(frozen=True, eq=False)
class InverseSearch:
    """Finds the points that a displacement field takes to given aims.

    Fixed-point iteration (Chen et al., Medical Physics 35, 2008) about the affine map that is nearest to the field,
    with the step of Anderson's method of depth one, which also arrives where the field stretches strongly. Just beyond
    the outermost voxels the field goes on as it is there; points that none of the grid leads to stay.
    """

    volume: Tensor
    """(1, 3, K, J, I) float32, the displacements in RAS+ mm."""
    size: Tensor
    """(3, 1) voxels along I, J and K."""
    to_index: Tensor
    """(4, 4), from RAS+ mm to voxels."""
    back: Tensor
    """(4, 4), the inverse of the affine map nearest to the field, RAS+ mm."""
    margin: float
    """Voxels that the field is away from that map at most, plus one."""
    tolerance: float
    """How near an aim a point has to come, mm."""

    @classmethod
    def of(cls, field: np.ndarray, grid: Grid) -> InverseSearch:
        """Prepare the search for a field (I, J, K, 3), RAS+ mm, on `grid`."""
        import torch

        matrix, margin = _nearest_affine(field, grid)
        return cls(
            volume=torch.from_numpy(np.ascontiguousarray(field.transpose(3, 2, 1, 0)))[None],
            size=torch.tensor(grid.shape, dtype=torch.float64)[:, None],
            to_index=torch.from_numpy(np.linalg.inv(grid.affine)),
            back=torch.from_numpy(np.linalg.inv(matrix)),
            margin=margin,
            tolerance=INVERSE_TOLERANCE * float(grid.spacing[: grid.dims].min()),
        )

    def __call__(self, aims: Tensor) -> Tensor:
        """Aims (3, N) float64, RAS+ mm -> the points (3, N) that the field takes there."""
        import torch

        found = aims.clone()
        points = _through(self.back, aims)
        todo = self._near_grid(points)
        aims, points = aims[:, todo], points[:, todo]
        rest = self._missing(aims, points)
        search = _Search(todo, aims, points, rest, rest.norm(dim=0), rest, torch.ones_like(rest[0]))
        for _ in range(INVERSE_ROUNDS):
            away = search.distance >= self.tolerance
            if away.sum() < 0.7 * away.numel():  # leaving the others out costs as much as a round
                found[:, search.todo[~away]] = search.points[:, ~away]
                search = search.only(away)
            if not search.todo.numel():
                break
            search = self._advanced(search)
        found[:, search.todo] = search.points
        return found

    def _near_grid(self, points: Tensor) -> Tensor:
        """(n,) the numbers of the points (3, N) that the field may move."""
        index = _through(self.to_index, points)
        near = (index >= -0.5 - self.margin) & (index < self.size - 0.5 + self.margin)
        return near.all(dim=0).nonzero()[:, 0]

    def _missing(self, aims: Tensor, points: Tensor) -> Tensor:
        """(3, n) mm, what to add to `points` for the field to take them to their aims, were it affine."""
        import torch

        scale = 2 / (self.size - 1).clamp_(min=1)
        places = _through(self.to_index, points).mul_(scale).sub_(1).float().T[None, None, None]
        # twice as fast as `_linear` of resampling.py for vectors; float32 is good for 1e-4 of a voxel
        shift = torch.nn.functional.grid_sample(self.volume, places, align_corners=True, padding_mode="border")
        return self.back[:3, :3] @ (aims - points).sub_(shift[0, :, 0, 0])

    def _advanced(self, search: _Search) -> _Search:
        """Every point one step nearer to its aim, or with a shorter step to try."""
        import torch

        todo, aims, points, rest, distance, step, length = search
        trial = points + step
        rest_there = self._missing(aims, trial)
        change = rest_there - rest
        distance_there = rest_there.norm(dim=0)
        nearer = distance_there < distance
        points, rest = torch.where(nearer, trial, points), torch.where(nearer, rest_there, rest)
        distance = torch.minimum(distance, distance_there)
        slope = (change * rest).sum(dim=0) / change.square().sum(dim=0).clamp_(min=1e-12)
        length = torch.where(nearer, (length * 2).clamp_(max=1), length / 2)
        step = torch.where(nearer, rest - slope * (step + change), length * rest)
        return _Search(todo, aims, points, rest, distance, step, length)


def _through(affine: Tensor, points: Tensor) -> Tensor:
    """(3, N) points mapped by a (4, 4) matrix."""
    import torch

    return torch.addmm(affine[:3, 3:], affine[:3, :3], points)


def _nearest_affine(field: np.ndarray, grid: Grid) -> tuple[np.ndarray, float]:
    """The affine map (4, 4) that fits `field` best, RAS+ mm, and how many voxels the field is away from it at most."""
    every = tuple(slice(None, None, max(1, n // 16)) for n in grid.shape)
    places = (np.arange(n)[step] for n, step in zip(grid.shape, every, strict=True))
    index = np.stack(np.meshgrid(*places, indexing="ij"), axis=-1).reshape(-1, 3)
    points, shift = apply_affine(grid.affine, index), field[every].reshape(-1, 3).astype(np.float64)
    lever = np.column_stack([points - grid.centre, np.ones(len(points))])
    slopes = np.linalg.lstsq(lever, shift, rcond=1e-9)[0]  # of the shift: flat along an axis of one voxel
    matrix = np.eye(4)
    matrix[:3, :3] += slopes[:3].T
    matrix[:3, 3] = slopes[3] - slopes[:3].T @ grid.centre
    if np.linalg.det(matrix) < 1e-3:  # nothing like an affine map
        matrix = np.eye(4)
    apart = np.abs(apply_affine(np.linalg.inv(matrix), points + shift) - points).max()
    return matrix, 1 + float(apart / grid.spacing[: grid.dims].min())
