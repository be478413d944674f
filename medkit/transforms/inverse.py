"""The inverse of a displacement field, found point by point."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from medkit.space import Grid, apply_affine

if TYPE_CHECKING:
    from torch import Tensor

SLAB = 1 << 17
"""Voxels of the output that are computed at a time: besides input and output this takes about 20 MB of memory."""
INVERSE_TOLERANCE = 1e-3
"""Largest distance at which a point counts as having reached its target, as a share of the smallest spacing."""
INVERSE_ROUNDS = 60
"""Largest number of steps. About 10 are usual; at folds there is no end, and a point keeps its nearest position."""


def preimages(field: np.ndarray, grid: Grid, points: np.ndarray) -> np.ndarray:
    """Return the points (N, 3) that a displacement field takes to `points` (N, 3), RAS+ mm.

    `field` is (I, J, K, 3) mm on `grid`. Points that exist are found to within `INVERSE_TOLERANCE` (see
    `InverseSearch`).
    """
    import torch

    search = InverseSearch.of(field, grid)
    with torch.inference_mode():
        targets = torch.from_numpy(np.array(points, np.float64).T)
        found: np.ndarray = torch.cat([search(part) for part in torch.split(targets, SLAB, dim=1)], dim=1).numpy()
    return found.T


class _SearchState(NamedTuple):
    """The n points that have not reached their targets yet."""

    todo: Tensor
    """(n,) indices of these points among all points."""
    targets: Tensor
    """(3, n) positions to which the field shall take the points, mm."""
    points: Tensor
    """(3, n) the best positions found so far, mm."""
    rest: Tensor
    """(3, n) what is still missing at these positions, mm."""
    distance: Tensor
    """(n,) the length of `rest`, mm."""
    step: Tensor
    """(3, n) the step to try next, mm."""
    length: Tensor
    """(n,) factor of plain steps, halved after each step that led away from the target."""

    def only(self, chosen: Tensor) -> _SearchState:
        """Return the points for which `chosen`, (n,) bool, is true."""
        return _SearchState(*(values[..., chosen] for values in self))


@dataclass(frozen=True, eq=False)
class InverseSearch:
    """A search for the points that a displacement field takes to given targets.

    Fixed-point iteration (Chen et al., Medical Physics 35, 2008) about the affine map that is nearest to the field.
    Steps are those of Anderson's method of depth one, which also converges where the field stretches strongly. Just
    beyond the outermost voxels the field is continued as it is there. Targets far from the grid stay where they are.
    """

    volume: Tensor
    """(1, 3, K, J, I) float32, the displacements in RAS+ mm."""
    size: Tensor
    """(3, 1) number of voxels along I, J and K."""
    to_index: Tensor
    """(4, 4), RAS+ mm -> voxel index."""
    back: Tensor
    """(4, 4), inverse of the affine map that is nearest to the field, RAS+ mm."""
    margin: float
    """Largest distance between the field and that map, in voxels, plus one."""
    tolerance: float
    """Largest distance at which a point counts as having reached its target, mm."""

    @classmethod
    def of(cls, field: np.ndarray, grid: Grid) -> InverseSearch:
        """Prepare the search for a field (I, J, K, 3), RAS+ mm, on `grid`."""
        import torch

        matrix, margin = _nearest_affine(field, grid)
        return cls(
            volume=torch.from_numpy(np.ascontiguousarray(field.transpose(3, 2, 1, 0)))[None],
            size=torch.tensor(grid.shape, dtype=torch.float64)[:, None],
            to_index=torch.from_numpy(grid.to_index),
            back=torch.from_numpy(np.linalg.inv(matrix)),
            margin=margin,
            tolerance=INVERSE_TOLERANCE * float(grid.spacing[: grid.dims].min()),
        )

    def __call__(self, targets: Tensor) -> Tensor:
        """Return the points (3, N) that the field takes to `targets` (3, N) float64, RAS+ mm."""
        import torch

        found = targets.clone()
        points = _mapped(self.back, targets)
        todo = self._near_grid(points)
        targets, points = targets[:, todo], points[:, todo]
        rest = self._missing(targets, points)
        state = _SearchState(todo, targets, points, rest, rest.norm(dim=0), rest, torch.ones_like(rest[0]))
        for _ in range(INVERSE_ROUNDS):
            away = state.distance >= self.tolerance
            if away.sum() < 0.7 * away.numel():  # leaving out the points that have arrived costs as much as a round
                found[:, state.todo[~away]] = state.points[:, ~away]
                state = state.only(away)
            if not state.todo.numel():
                break
            state = self._advanced(state)
        found[:, state.todo] = state.points
        return found

    def _near_grid(self, points: Tensor) -> Tensor:
        """Return the indices (n,) of the points (3, N) that the field may move."""
        index = _mapped(self.to_index, points)
        near = (index >= -0.5 - self.margin) & (index < self.size - 0.5 + self.margin)
        return near.all(dim=0).nonzero()[:, 0]

    def _missing(self, targets: Tensor, points: Tensor) -> Tensor:
        """Return the steps (3, n) mm that would take `points` to their targets if the field were affine."""
        import torch

        scale = 2 / (self.size - 1).clamp_(min=1)
        places = _mapped(self.to_index, points).mul_(scale).sub_(1).float().T[None, None, None]
        # twice as fast as `_linear` of resampling.py for vectors; float32 is good for 1e-4 of a voxel
        shift = torch.nn.functional.grid_sample(self.volume, places, align_corners=True, padding_mode="border")
        return self.back[:3, :3] @ (targets - points).sub_(shift[0, :, 0, 0])

    def _advanced(self, state: _SearchState) -> _SearchState:
        """Return each point one step nearer to its target, or with a shorter step to try."""
        import torch

        todo, targets, points, rest, distance, step, length = state
        trial = points + step
        rest_there = self._missing(targets, trial)
        change = rest_there - rest
        distance_there = rest_there.norm(dim=0)
        nearer = distance_there < distance
        points, rest = torch.where(nearer, trial, points), torch.where(nearer, rest_there, rest)
        distance = torch.minimum(distance, distance_there)
        slope = (change * rest).sum(dim=0) / change.square().sum(dim=0).clamp_(min=1e-12)
        length = torch.where(nearer, (length * 2).clamp_(max=1), length / 2)
        step = torch.where(nearer, rest - slope * (step + change), length * rest)
        return _SearchState(todo, targets, points, rest, distance, step, length)


def _mapped(affine: Tensor, points: Tensor) -> Tensor:
    """Return points (3, N) mapped by a (4, 4) matrix."""
    import torch

    return torch.addmm(affine[:3, 3:], affine[:3, :3], points)


def _nearest_affine(field: np.ndarray, grid: Grid) -> tuple[np.ndarray, float]:
    """Return the affine map (4, 4), RAS+ mm, that fits `field` best, and their largest distance in voxels, plus 1."""
    every = tuple(slice(None, None, max(1, n // 16)) for n in grid.shape)
    places = (np.arange(n)[step] for n, step in zip(grid.shape, every, strict=True))
    index = np.stack(np.meshgrid(*places, indexing="ij"), axis=-1).reshape(-1, 3)
    points, shift = apply_affine(grid.affine, index), field[every].reshape(-1, 3).astype(np.float64)
    lever = np.column_stack([points - grid.centre, np.ones(len(points))])
    slopes = np.linalg.lstsq(lever, shift, rcond=1e-9)[0]  # of the shift; 0 along an axis of one voxel
    matrix = np.eye(4)
    matrix[:3, :3] += slopes[:3].T
    matrix[:3, 3] = slopes[3] - slopes[:3].T @ grid.centre
    if np.linalg.det(matrix) < 1e-3:  # the field is not at all like an affine map
        matrix = np.eye(4)
    apart = np.abs(apply_affine(np.linalg.inv(matrix), points + shift) - points).max()
    return matrix, 1 + float(apart / grid.spacing[: grid.dims].min())
