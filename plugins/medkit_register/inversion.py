"""The inverse of a displacement field by Newton's method; fields as in `warp`."""

from __future__ import annotations

import torch
from torch.nn.functional import avg_pool3d

from medkit_register.warp import Sampler, derivatives, indices, resized

STEEPEST = 0.05
"""Smallest Jacobian determinant that a Newton step divides by: near a fold the step points anywhere."""
COARSE = 32
"""Points along the longest axis of a lattice that is not halved any more."""
FIXED_POINT_STEPS = 4
"""Steps of the fixed-point iteration on the coarsest lattice."""


def invert(field: torch.Tensor, *, tolerance: float = 1e-3, limit: int = 20) -> torch.Tensor:
    """Return the field of the inverse map, on the same lattice.

    Newton's method runs at every point until the mean step is under `tolerance` lattice steps, or `limit` steps are
    taken. It starts from the inverse on a lattice of half as many points along each axis, and on the coarsest lattice
    from a few steps of the fixed-point iteration (Chen et al. 2008). Points that have arrived are left out. Near a fold
    there is no inverse, and the result is the closest field found.
    """
    shape = tuple(field.shape[1:])
    points = indices(shape, field.device).reshape(3, -1)
    half = halved(field)
    if half is not None:
        found = resized(invert(half, tolerance=tolerance, limit=limit), shape).reshape(3, -1)
    else:
        found = -field.reshape(3, -1)
        shift = Sampler(field)
        for _ in range(FIXED_POINT_STEPS):
            found = 0.5 * (found - shift.at(points + found))
    newton, left = Newton(field), torch.arange(points.shape[1], device=field.device)
    for _ in range(limit):
        here = found[:, left]
        residual, slopes = newton.linearised(points, here)
        step = newton_step(slopes, residual)
        found[:, left] = here - step
        moved = step.abs()
        if float(moved.sum()) < tolerance * found.numel():
            break
        still = (moved.amax(0) > tolerance).nonzero().squeeze(1)
        left, points = left[still], points[:, still]
    return found.reshape(field.shape)


class Newton:
    """Newton's method for the inverse of a field (3, I, J, K), at any points."""

    def __init__(self, field: torch.Tensor) -> None:
        slopes = derivatives(field).reshape(9, *field.shape[1:])
        self._field, self._both = Sampler(field), Sampler(torch.cat([field, slopes]))

    def residual(self, points: torch.Tensor, found: torch.Tensor) -> torch.Tensor:
        """Return by how much (3, N) the field misses `points` (3, N) after the inverse moved them by `found` (3, N)."""
        return found + self._field.at(points + found)

    def linearised(self, points: torch.Tensor, found: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the residual (3, N), and the slopes of the field there, (3, 3, N)."""
        values = self._both.at(points + found)
        return found + values[:3], values[3:].reshape(3, 3, -1)


def newton_step(slopes: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
    """Return the step (3, N) to subtract from the inverse: the solution x of (1 + slopes) x = residual, by cofactors.

    `slopes` are (3, 3, N), `residual` (3, N). A step is at most one lattice step along each axis.
    """
    (a, b, c), (d, e, f), (g, h, i) = slopes
    a, e, i = a + 1, e + 1, i + 1
    cofactors = (
        (e * i - f * h, c * h - b * i, b * f - c * e),
        (f * g - d * i, a * i - c * g, c * d - a * f),
        (d * h - e * g, b * g - a * h, a * e - b * d),
    )
    first, second, third = cofactors[0]
    total = (a * first).addcmul_(d, second).addcmul_(g, third).clamp_min_(STEEPEST)
    p, q, r = residual
    return torch.stack([(x * p).addcmul_(y, q).addcmul_(z, r).div_(total) for x, y, z in cofactors]).clamp_(-1, 1)


def halved(field: torch.Tensor) -> torch.Tensor | None:
    """Return the field on a lattice of half as many points; None if their number is odd or the lattice is coarse."""
    shape = field.shape[1:]
    if max(shape) <= COARSE or any(n > 1 and n % 2 for n in shape):
        return None
    return avg_pool3d(field[None], tuple(min(n, 2) for n in shape))[0].div_(2)
