"""A start for warps where parts of the body have moved apart, as when the liver moves with the breath.

One affine map cannot follow the organs and the spine at once: the metric takes it to where more of the image agrees,
and all else is then farther off than before. So each place may start with the better one of two maps: the affine one,
or the one by which the scans lie as they are.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from medkit_register.comparison import Comparison
from medkit_register.warp import Lattice, indices, smooth_field, transformed, unfolded

APART = 2.0
"""Steps of the first stage's lattice by which the two maps must differ on average: a warp finds less by itself. Livers
in deep breaths differ by 2.5 to 3.1."""
RIVAL = 2.0
"""Factor on the affine map's cost up to which the other map may be right somewhere. In deep breaths it is 1.6 to 1.8,
for brains of two persons 2.5 to 4, where the affine map is right everywhere."""
GAIN = 0.15
"""Share by which the start must lower the cost of the affine map. Livers in deep breaths reach 0.27 to 0.33."""
NEIGHBOURHOOD = 2.0
"""Standard deviation, in steps of the lattice, of the Gaussian over which mismatches are averaged."""
TRANSITION = 1.5
"""The same for the shares of the two maps, so that a border along which organs slide does not fold."""
SHARPNESS = 4
"""Power of the mismatch by which the shares of two maps are told apart."""
MIN_VOLUME = 0.3
"""Smallest share of its volume to which a point may shrink."""


@dataclass(frozen=True, eq=False)
class LocalStart:
    """The map by which the scans lie as they are, and where it gives way to the affine map."""

    matrix: np.ndarray
    """(4, 4) RAS+ mm, fixed points to moving points, for the warp to refine in place of the affine map."""
    field: torch.Tensor
    """(3, I, J, K) on the first stage's lattice, as in `warp`: towards the affine map where that fits better."""
    cost: float
    """Mean squared residual with it."""
    affine_cost: float
    """The same of the affine map."""
    share: float
    """Mean share of the affine map near the objects."""


def local_start(
    make: Callable[[np.ndarray], Comparison], comparison: Comparison, lattice: Lattice, unmoved: np.ndarray
) -> tuple[Comparison, LocalStart] | None:
    """Return the start, with the comparison under the map `unmoved`; None unless it clearly lowers the cost.

    `make` returns the first stage's comparison, on `lattice`, under a map (4, 4) RAS+ mm, fixed points to moving
    points, and `comparison` is what it returned for the affine map.
    """
    if comparison.metric == "mi":
        return None
    matrix = comparison.matrix
    still = _between(lattice, matrix, unmoved, comparison)
    if float(still.norm(dim=0).reshape(-1)[comparison.near].mean()) < APART:
        return None
    costs = [comparison.forces(field, 0)[1] for field in (torch.zeros_like(still), still)]
    if costs[1] > RIVAL * costs[0]:
        return None
    comparison = make(unmoved)
    towards = _between(lattice, unmoved, matrix, comparison)
    far, near = (_mismatch(comparison, lattice, field) for field in (torch.zeros_like(towards), towards))
    share = far**SHARPNESS / (far**SHARPNESS + near**SHARPNESS)
    kept = share.new_zeros(share.numel())
    kept[comparison.near] = share.reshape(-1)[comparison.near]
    share = smooth_field(kept.reshape(1, *lattice.shape), TRANSITION)
    field = unfolded(share * towards, MIN_VOLUME)
    cost = comparison.forces(field, 0)[1]
    if cost > (1 - GAIN) * costs[0]:
        return None
    return comparison, LocalStart(unmoved, field, cost, costs[0], float(share.reshape(-1)[comparison.near].mean()))


def _between(lattice: Lattice, start: np.ndarray, end: np.ndarray, comparison: Comparison) -> torch.Tensor:
    """Return the field (3, I, J, K) that makes the map `start` into the map `end`."""
    points = indices(lattice.shape, comparison.near.device).reshape(3, -1)
    to_end = np.linalg.inv(start @ lattice.affine) @ end @ lattice.affine
    return (transformed(to_end, points) - points).reshape(3, *lattice.shape)


def _mismatch(comparison: Comparison, lattice: Lattice, field: torch.Tensor) -> torch.Tensor:
    """Return the mean squared residual (I, J, K) around each point of the lattice."""
    sums = field.new_zeros(2, field[0].numel())
    sums[:, comparison.near] = torch.stack(comparison.mismatch(field))
    squares, weights = smooth_field(sums.reshape(2, *lattice.shape), NEIGHBOURHOOD)
    return squares / (weights + 1e-3) + 1e-4
