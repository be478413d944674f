"""The rigid map that brings one surface onto another: iterative closest points.

Points are matched with the nearest ones by a k-d tree; each step minimises the distances to the tangent planes (Chen
and Medioni 1992). Several starts are tried, because the method only finds the nearest minimum.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from medkit.space import apply_affine

MOST_STEPS = 100
_COARSE, _FINE = (30, 500, 5000), (200, 4000, 40000)
"""Moving points of a structure, at least and at most, and of all together, roughly: to choose a start, and after it."""
_COARSE_STEPS = 25
_PREFERRED = 0.8
"""A later start is taken if its distance is less than this share of that of the earlier ones."""
_FAR = 3.0
"""Pairs farther apart than this many times the median do not count: they are parts that only one surface has."""
_LOOSE = 0.03
"""Smallest curvature of the distance along a motion, as a share of the largest, that determines the motion.

For the turns of a ball of voxels it is 0.02, for 12 structures of a brain, 5 of a chest and a tumour 0.05 to 0.32.
"""


@dataclass(frozen=True, eq=False)
class Cloud:
    """Points on the surface of a structure."""

    points: np.ndarray
    """(N, 3) RAS+ mm, even and in random order."""
    normals: np.ndarray
    """(N, 3) unit vectors."""
    area: float
    """mm2 of the surface."""

    def distances(self, places: np.ndarray) -> np.ndarray:
        """Return how far places (N, 3) RAS+ mm are from the surface, (N,) mm.

        The nearest point lies beside the place's foot on the surface by about the distance between points, which must
        not count: along the surface, only what is more than that does.
        """
        apart, nearest = self.tree.query(places)
        across = np.abs(((places - self.points[nearest]) * self.normals[nearest]).sum(axis=1))
        along = np.sqrt(np.maximum(apart**2 - across**2, 0))
        found: np.ndarray = np.hypot(across, np.maximum(along - np.sqrt(self.area / len(self.points)), 0))
        return found

    @cached_property
    def tree(self) -> Any:
        """The k-d tree of the points."""
        from scipy.spatial import KDTree

        return KDTree(self.points)


@dataclass(frozen=True, eq=False)
class RigidFit:
    """A rigid map and how well it fits."""

    matrix: np.ndarray
    """(4, 4) RAS+ mm, takes moving points to fixed points."""
    converged: bool
    steps: int
    loose: bool
    """Whether the surfaces leave some motion open, as the turns of a sphere."""


Clouds = Mapping[int, Cloud]
"""Structure's number -> its points; a structure is matched with the one of the same number."""


def fitted(moving: Clouds, fixed: Clouds, tolerance: float) -> RigidFit:
    """Return the rigid map of moving surfaces onto fixed ones, both with the same numbers.

    tolerance: mm; a step that moves no point by more ends the search.
    """
    thin, fine = _thinned(moving, *_COARSE), _thinned(moving, *_FINE)
    best, least = np.eye(4), np.inf
    for start in _starts(moving, fixed):
        matrix = _descended(start, thin, fixed, tolerance, _COARSE_STEPS)[0]
        distance = float(np.concatenate(distances(thin, fixed, matrix)).mean())
        if distance < _PREFERRED * least:
            best, least = matrix, distance
    matrix, steps, loose = _descended(best, fine, fixed, tolerance, MOST_STEPS)
    return RigidFit(matrix, steps < MOST_STEPS, steps, loose)


def _thinned(clouds: Clouds, least: int, most: int, total: int) -> Clouds:
    count = min(most, max(least, total // len(clouds)))
    return {n: Cloud(cloud.points[:count], cloud.normals[:count], cloud.area) for n, cloud in clouds.items()}


def distances(moving: Clouds, fixed: Clouds, matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the distances, mm, of all moving points to the fixed surface, and of all fixed points to the moved one."""
    back = np.linalg.inv(matrix)
    there = [fixed[n].distances(apply_affine(matrix, cloud.points)) for n, cloud in moving.items()]
    here = [cloud.distances(apply_affine(back, fixed[n].points)) for n, cloud in moving.items()]
    return np.concatenate(there), np.concatenate(here)


def _starts(moving: Clouds, fixed: Clouds) -> Sequence[np.ndarray]:
    """Return the maps to start from: none, the shift of the centres, and the turns that align the main axes."""
    ours, theirs = (np.concatenate([cloud.points for cloud in side.values()]) for side in (moving, fixed))
    out = [np.eye(4), _about(ours.mean(axis=0), theirs.mean(axis=0), np.eye(3))]
    axes_a, axes_b = (np.linalg.svd(np.cov((side - side.mean(axis=0)).T))[0] for side in (ours, theirs))
    for signs in ((1, 1), (1, -1), (-1, 1), (-1, -1)):
        turn = axes_b @ np.diag([*signs, 1]) @ axes_a.T
        turn = axes_b @ np.diag([*signs, np.sign(np.linalg.det(turn))]) @ axes_a.T
        out.append(_about(ours.mean(axis=0), theirs.mean(axis=0), turn))
    return out


def _about(centre: np.ndarray, target: np.ndarray, turn: np.ndarray) -> np.ndarray:
    """Return the map (4, 4) that turns about `centre` and takes it to `target`."""
    matrix = np.eye(4)
    matrix[:3, :3] = turn
    matrix[:3, 3] = target - turn @ centre
    return matrix


def _descended(
    matrix: np.ndarray, moving: Clouds, fixed: Clouds, tolerance: float, most: int
) -> tuple[np.ndarray, int, bool]:
    """Return a map improved step by step, the number of steps (`most`: it did not settle), and `RigidFit.loose`."""
    loose = False
    for step in range(most):
        places, targets, normals = _pairs(matrix, moving, fixed)
        centre = places.mean(axis=0)
        change, loose = _step(places - centre, targets - centre, normals)
        change[:3, 3] += centre - change[:3, :3] @ centre
        moved = np.abs(apply_affine(change, places) - places).max()
        matrix = change @ matrix
        if moved < tolerance:
            return matrix, step, loose
    return matrix, most, loose


def _pairs(matrix: np.ndarray, moving: Clouds, fixed: Clouds) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return moved points, the fixed points nearest to them, and their normals, (N, 3) each, without far pairs."""
    parts = []
    for number, cloud in moving.items():
        places = apply_affine(matrix, cloud.points)
        apart, nearest = fixed[number].tree.query(places)
        parts.append((places, fixed[number].points[nearest], fixed[number].normals[nearest], apart))
    places, targets, normals, apart = (np.concatenate(side) for side in zip(*parts, strict=True))
    near = apart <= _FAR * np.median(apart) + 1e-9
    return places[near], targets[near], normals[near]


def _step(places: np.ndarray, targets: np.ndarray, normals: np.ndarray) -> tuple[np.ndarray, bool]:
    """Return the small rigid map (4, 4) that brings points closest to tangent planes, and whether one is left open."""
    from scipy.spatial.transform import Rotation

    size = float(np.sqrt((places**2).sum(axis=1).mean())) or 1.0
    rows = np.concatenate([np.cross(places / size, normals), normals], axis=1)
    gap = ((targets - places) * normals).sum(axis=1)
    curvature = rows.T @ rows
    strengths, motions = np.linalg.eigh(curvature)
    open_ = strengths < _LOOSE * strengths[-1]
    # motions that the surfaces leave open are not made
    inverse = motions @ np.diag(np.where(open_, 0, 1 / np.where(open_, 1, strengths))) @ motions.T
    motion = inverse @ rows.T @ gap
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_rotvec(motion[:3] / size).as_matrix()
    matrix[:3, 3] = motion[3:]
    return matrix, bool(open_.any())
