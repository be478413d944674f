"""The stages of a deformable registration, from coarse to fine."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from medkit_register.descriptors import SUPPORT
from medkit_register.pyramid import Pyramid
from medkit_register.warp import Lattice

Quality = Literal["fast", "default", "best"]
COARSEST = 12.0
"""The object's radius over this is the limit on the coarsest spacing."""


@dataclass(frozen=True)
class Stage:
    """One resolution."""

    image: int
    """Spacing of the images, in steps of the finest lattice."""
    warp: int
    """Spacing of the warp, in steps of the finest lattice: that of the images, or twice as coarse."""
    update: float
    """Standard deviation, in steps of the warp's lattice, of the Gaussian that smooths each update."""
    elastic: float
    """Standard deviation, in steps of the warp's lattice, of the Gaussian that smooths the warp after each step."""
    window: float
    """lncc: standard deviation of its window in steps of the images' lattice."""
    limit: int
    """Limit on steps."""
    detail: int = 0
    """mind: spacing at which descriptors are computed before they are averaged, in steps of the finest lattice; 0: that
    of the images."""
    stiffness: float = 0.01
    """Added to the squared slopes, per squared step of the finest lattice: flat regions follow their neighbours, and
    noise is followed less."""


def make_stages(fixed: Pyramid, finest: Lattice, quality: Quality, metric: str, *, stiff: bool = False) -> list[Stage]:
    """Return the stages, coarse to fine; `fast` leaves out the finest images, `best` adds a warp as fine as they are.

    More steps follow the noise: label Dice between two persons no longer rises. Wider windows at the end gain a little
    on real scans and lose more on synthetic ones, whose labels are exact. Fine stages are stiffer for lncc, whose noise
    is as large as the structure that it compares; at coarse ones a stiff warp would not reach what has moved far.
    `stiff`: one of the scans is a CT; mind then uses STIFF.
    """
    factor = coarsest_factor(fixed.radius, finest.spacing)
    if metric == "mind":
        return mind_stages(factor, quality, STIFF if stiff else SOFT)
    stages = []
    fast = quality == "fast"
    while factor > 2:
        stages.append(Stage(factor, factor, 2.0, 0.5, 2.0, 25 if fast else 50))
        factor //= 2
    steps = 30 if not stages else 10 if fast else 14
    stages.append(Stage(2, 2, 1.0 if fast else 1.5, 0.5, 2.0, steps, stiffness=Stage.stiffness if fast else 0.03))
    if not fast:
        stages.append(Stage(1, 2, 0.6, 0.4, 4.0, 20, stiffness=0.08))
    if quality == "best":
        stages.append(Stage(1, 1, 0.7, 0.4, 5.0, 6, stiffness=0.15))
    return stages if metric == "lncc" else [replace(stage, stiffness=Stage.stiffness) for stage in stages]


@dataclass(frozen=True)
class Smoothness:
    """The smoothness of warps that follow descriptors: pairs (update, elastic) of a `Stage`."""

    coarse: tuple[float, float]
    """Where images and warp have the same spacing, except the last stage of `best`."""
    fine: tuple[float, float]
    """Where images are finer than the warp."""
    finest: tuple[float, float]
    """The last stage of `best`."""


SOFT = Smoothness((2.0, 0.7), (0.8, 0.6), (1.2, 0.6))
"""Between MR scans; tuned on synthetic heads of two persons, T1 with T2 and proton density."""
STIFF = Smoothness((3.0, 1.0), (2.5, 1.0), (3.0, 1.0))
"""With a CT, whose soft tissues differ by little more than its noise."""


def mind_stages(factor: int, quality: Quality, smooth: Smoothness) -> list[Stage]:
    """Return the stages for mind; `factor` is the coarsest spacing in steps of the finest lattice.

    Coarse images lack the structure that descriptors describe, so these are computed at half the spacing and averaged.
    """
    stages = [Stage(factor, factor, *smooth.coarse, SUPPORT, 50, factor // 2)]
    while factor > 2:
        factor //= 2
        stages.append(Stage(factor, factor, *smooth.coarse, SUPPORT, 30, 0 if factor == 2 else factor // 2))
    if quality != "fast":
        stages.append(Stage(1, 2, *smooth.fine, SUPPORT, 24))
    if quality == "best":
        stages.append(Stage(1, 1, *smooth.finest, SUPPORT, 15))
    return stages


def coarsest_factor(radius: float, step: float) -> int:
    """Return the coarsest spacing in steps of the finest, a power of two from 2 on; `radius` and `step` are in mm."""
    factor = 2
    while radius / (2 * factor * step) >= COARSEST:
        factor *= 2
    return factor
