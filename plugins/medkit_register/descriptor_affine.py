"""The last part of an affine registration of unlike contrasts: a map that self-similarity descriptors agree on.

Mutual information leads near the right map, but its highest value may be elsewhere: one scan lies within a part of the
other, or scalp lies on skull. Descriptors cannot be followed from afar, yet they tell such a map from a right one, and
from nearby they lead on: warp the scans coarsely, take the affine map that is nearest to the warp, and begin again.
"""

from __future__ import annotations

import functools
from dataclasses import replace

import numpy as np
import torch

from medkit_register.affine import AffineResult, LevelReport, one_thread, sane
from medkit_register.comparison import Comparison
from medkit_register.deformable import MIN_VOLUME, finest_lattice, run_stage
from medkit_register.optimise import rigid_part
from medkit_register.pyramid import Pyramid
from medkit_register.stages import Stage, make_stages
from medkit_register.warp import Lattice, indices

ROUNDS = 6
"""Most warps in a row."""
GAIN = 0.02
"""Share by which a round must lower the cost for another one."""


def follow_descriptors(fixed: Pyramid, moving: Pyramid, found: AffineResult, *, rigid: bool) -> AffineResult:
    """Return an affine result of mutual information, refined by descriptors where that lowers their cost.

    The work starts at the map or at its rotation and shift alone, whichever descriptors agree on more. With `rigid` it
    stays a rotation and a shift.
    """
    finest = finest_lattice(fixed)
    stiff = fixed.hounsfield or moving.hounsfield
    stage = make_stages(fixed, finest, "fast", "mind", stiff=stiff)[0]
    lattice = finest.coarser(stage.warp)
    make = functools.partial(Comparison.make, fixed, moving, finest=finest, stage=stage, metric="mind", device="cpu")
    with one_thread(), torch.inference_mode():  # as all affine work, so that the result does not depend on threads
        starts = [found.matrix] if rigid else [found.matrix, rotation_about(found.matrix, fixed.centre)]
        compared = [make(matrix) for matrix in starts]
        costs = [_cost(comparison) for comparison in compared]
        best = int(np.argmin(costs))
        comparison, cost = compared[best], costs[best]
        rounds, converged = 0, False
        while rounds < ROUNDS and not converged:
            trial = make(comparison.matrix @ _nearest_to_warp(comparison, lattice, stage, rigid=rigid))
            reached = _cost(trial) if sane(trial.matrix[:3]) else np.inf
            converged = reached > (1 - GAIN) * cost
            if reached < cost:
                comparison, cost = trial, reached
            rounds += 1
    overlap = found.levels[-1].overlap if found.levels else 1.0
    report = LevelReport(
        "rigid" if rigid else "affine", "mind", lattice.spacing, len(comparison.near), rounds, converged, cost, overlap
    )
    return replace(found, matrix=comparison.matrix, levels=(*found.levels, report))


def rotation_about(matrix: np.ndarray, centre: np.ndarray) -> np.ndarray:
    """Return the rotation and shift (4, 4) nearest to a map; the point `centre` (3,) RAS+ mm goes where it went."""
    out = np.eye(4)
    out[:3, :3] = rigid_part(matrix[:3])[:, :3]
    out[:3, 3] = matrix[:3, :3] @ centre + matrix[:3, 3] - out[:3, :3] @ centre
    return out


def _cost(comparison: Comparison) -> float:
    """Return the mean squared residual of the map without a warp."""
    return comparison.forces(comparison.no_warp(), 0)[1]


def _nearest_to_warp(comparison: Comparison, lattice: Lattice, stage: Stage, *, rigid: bool) -> np.ndarray:
    """Return the map (4, 4) of points in the fixed space, RAS+ mm, that is nearest to a coarse warp (least squares)."""
    field, _ = run_stage(comparison, comparison.no_warp(), stage, lattice.spacing, MIN_VOLUME["fast"])
    index = indices(lattice.shape, field.device).reshape(3, -1)[:, comparison.near]
    shift = field.reshape(3, -1)[:, comparison.near]
    linear = lattice.affine[:3, :3]
    points = linear @ index.double().cpu().numpy() + lattice.affine[:3, 3:]
    ends = points + linear @ shift.double().cpu().numpy()
    out = np.eye(4)
    if rigid:
        here, there = points.mean(axis=1, keepdims=True), ends.mean(axis=1, keepdims=True)
        out[:3, :3] = rigid_part(np.hstack([(ends - there) @ (points - here).T, here]))[:, :3]
        out[:3, 3:] = there - out[:3, :3] @ here
    else:
        rows = np.vstack([points, np.ones(points.shape[1])])
        out[:3] = np.linalg.lstsq(rows.T, ends.T, rcond=None)[0].T
    return out
