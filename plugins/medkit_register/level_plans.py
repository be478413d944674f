"""The resolutions of an affine registration, from coarse to fine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from medkit_register.problem import PointSampling
from medkit_register.pyramid import Pyramid

FINEST = 28.0
"""The object's root-mean-square radius over this is the finest spacing: 2 mm for a brain."""
FINEST_PLANAR = 80
"""The radius over this is the finest spacing of planar images."""
COARSEST_PLANAR = 5.0
"""The radius over this is the coarsest spacing of planar images: small objects have too few points beyond."""
MOST_POINTS = 64_000_000
"""Most points of the moving scan's finest level: a head at 0.65 mm. Only scans much larger than the fixed one have so
many."""
WINDOWS = (1.5, 2.0, 2.5, 2.5)
"""lncc: standard deviation of the window in points, of the last levels."""


@dataclass(frozen=True)
class LevelPlan:
    """One resolution."""

    spacing: float
    """mm between points."""
    sampling: PointSampling
    """Which points are compared."""
    window: float
    """lncc: standard deviation of its window in points."""
    max_steps: int = 40
    """Limit on Levenberg-Marquardt steps."""


def make_level_plans(fixed: Pyramid, moving: Pyramid, seed: int) -> Sequence[LevelPlan]:
    """Return the resolutions for a fixed scan, coarse to fine; a much larger moving scan has them as well."""
    planar = fixed.planar_axis is not None
    smallest = min(s for s, n in zip(fixed.spacing, fixed.size, strict=True) if n > 1)
    finest = max(float(smallest), fixed.radius / (FINEST_PLANAR if planar else FINEST), moving.spacing_of(MOST_POINTS))
    factors = [4, 2, 1]
    if planar:
        coarsest = fixed.radius / COARSEST_PLANAR / finest
        factors = [f for f in (8, 4, 2, 1) if f <= max(coarsest, 2)]
    return [
        LevelPlan(f * finest, PointSampling(margin=(2 + f) * finest * 0.8, limit=100_000, seed=seed), window)
        for f, window in zip(factors, WINDOWS[-len(factors) :], strict=True)
    ]
