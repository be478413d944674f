"""Levenberg-Marquardt over rigid, similarity and affine maps."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from medkit_register.problem import Problem, System

GENERATORS = np.array(
    [[[0, 0, 0], [0, 0, -1], [0, 1, 0]], [[0, 0, 1], [0, 0, 0], [-1, 0, 0]], [[0, -1, 0], [1, 0, 0], [0, 0, 0]]], float
)
"""Infinitesimal rotations about the three axes."""


@dataclass(frozen=True)
class Freedom:
    """Which maps the optimiser may reach."""

    kind: str
    """"rigid", "similarity" or "affine"."""
    planar: bool = False
    """Whether maps stay in the plane of the local frame's first two axes."""

    def directions(self, mapping: np.ndarray) -> np.ndarray:
        """Return the change (12, P) of the (3, 4) map's entries, row by row, per parameter."""
        linear = mapping[:, :3]
        plane = 2 if self.planar else 3
        if self.kind == "affine":
            moves = [unit(i, j) for i in range(plane) for j in range(plane)]
        else:
            moves = [GENERATORS[axis] @ linear for axis in range(2 if self.planar else 0, 3)]
            if self.kind == "similarity":
                growth = np.diag([1.0, 1.0, 0.0 if self.planar else 1.0])
                moves.append(growth @ linear)
        columns = [np.hstack([move, np.zeros((3, 1))]) for move in moves]
        columns += [unit(i, 3, columns=4) for i in range(plane)]
        return np.stack([column.ravel() for column in columns], axis=1)

    def move(self, mapping: np.ndarray, step: np.ndarray) -> np.ndarray:
        """Return the map (3, 4) after a step (P,); rotations stay exact rotations."""
        if self.kind == "affine":
            return mapping + (self.directions(mapping) @ step).reshape(3, 4)
        turns, translation = (1, 2) if self.planar else (3, 3)
        angles = np.zeros(3)
        angles[3 - turns :] = step[:turns]
        linear = rotation(angles) @ mapping[:, :3]
        if self.kind == "similarity":
            scale = np.exp(np.clip(step[turns], -1, 1))
            linear = np.diag([scale, scale, 1.0 if self.planar else scale]) @ linear
        shift = mapping[:, 3].copy()
        shift[:translation] += step[len(step) - translation :]
        return np.hstack([linear, shift[:, None]])


def unit(i: int, j: int, columns: int = 3) -> np.ndarray:
    """Return a matrix (3, columns) of zeros with a one at (i, j)."""
    out = np.zeros((3, columns))
    out[i, j] = 1
    return out


def rotation(angles: np.ndarray) -> np.ndarray:
    """Return the rotation (3, 3) by |angles| radians about the axis `angles` (3,), by Rodrigues' formula."""
    # scipy's Rotation is as fast, but importing it takes 0.3 s of a run of few seconds
    angle = float(np.linalg.norm(angles))
    if angle < 1e-12:
        return np.eye(3)
    k = np.tensordot(angles / angle, GENERATORS, 1)
    return np.eye(3) + np.sin(angle) * k + (1 - np.cos(angle)) * (k @ k)


def rigid_part(mapping: np.ndarray) -> np.ndarray:
    """Return the map (3, 4) with the rotation nearest to its linear part (polar decomposition)."""
    u, _, vt = np.linalg.svd(mapping[:, :3])
    turn = u @ np.diag([1.0, 1.0, np.linalg.det(u @ vt)]) @ vt
    return np.hstack([turn, mapping[:, 3:]])


@dataclass(frozen=True, eq=False)
class Optimum:
    """Where an optimisation ended."""

    mapping: np.ndarray
    """(3, 4) fixed local mm -> moving local mm."""
    cost: float
    """The metric's cost there."""
    steps: int
    """Steps tried."""
    converged: bool
    """Whether the last step was shorter than the tolerance, or no step lowers the cost any more."""
    overlap: float
    """Share of the fixed points that fall inside the moving scan."""


def minimise(
    problem: Problem, start: np.ndarray, freedom: Freedom, *, radius: float, tolerance: float, max_steps: int
) -> Optimum:
    """Lower the problem's cost from `start` until a step moves no point within `radius` mm by `tolerance` mm.

    Levenberg-Marquardt (Marquardt 1963) on the Gauss-Newton matrix, damped by its own diagonal.
    """
    mapping, damping = start, 1e-2
    here = problem.system(mapping)
    least = 0.5 * here.overlap
    for count in range(1, max_steps + 1):
        step = damped_step(here, freedom.directions(mapping), damping)
        trial = freedom.move(mapping, step)
        length = displacement(trial - mapping, radius)
        if length > radius:  # the model does not hold that far, and maps found there have little overlap
            damping *= 8
            continue
        there = problem.system(trial)
        if there.cost < here.cost and there.overlap >= least:
            gained = here.cost - there.cost
            mapping, here, damping = trial, there, max(damping * 0.2, 1e-4)
            if length < tolerance or gained < 1e-7:
                return Optimum(mapping, here.cost, count, True, here.overlap)
        else:
            damping = damping * 8
            if length < tolerance or damping > 1e8:
                return Optimum(mapping, here.cost, count, True, here.overlap)
    return Optimum(mapping, here.cost, max_steps, False, here.overlap)


def damped_step(system: System, directions: np.ndarray, damping: float) -> np.ndarray:
    """Return the step (P,) to the minimum of the damped quadratic model."""
    gradient = directions.T @ system.gradient
    matrix = directions.T @ system.curvature @ directions
    diagonal = np.diag(matrix).clip(1e-12 * max(float(np.trace(matrix)), 1e-12))
    return -np.linalg.solve(matrix + np.diag(damping * diagonal), gradient)


def displacement(change: np.ndarray, radius: float) -> float:
    """Return an upper bound (mm) on how far a change (3, 4) of a map moves points within `radius` mm of the origin."""
    return float(np.linalg.norm(change[:, :3], 2) * radius + np.linalg.norm(change[:, 3]))
