"""The stages of a deformable registration, from coarse to fine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from medkit_register.descriptors import SUPPORT
from medkit_register.warp import Lattice, spacings

if TYPE_CHECKING:
    from medkit_register.pyramid import Pyramid

Quality = Literal["fast", "default", "best"]
COARSEST = 12.0
"""The object's radius over this is the coarsest spacing at most."""


@dataclass(frozen=True)
class Stage:
    """One resolution, in steps of the finest lattice."""

    image: int
    """Spacing of the images."""
    warp: int
    """Spacing of the warp: that of the images, or twice as coarse."""
    update: float
    """Standard deviation, in steps of the warp's lattice, of the Gaussian over which steps are averaged."""
    elastic: float
    """The same for the Gaussian that the whole warp passes after each step."""
    window: float
    """lncc: standard deviation of its window in steps of the image's lattice."""
    limit: int
    """At most so many steps."""
    detail: int = 0
    """mind: spacing at which descriptors are taken, then averaged over the image's lattice; 0: that lattice itself."""


def make_stages(fixed: Pyramid, finest: Lattice, quality: Quality, metric: str, *, stiff: bool = False) -> list[Stage]:
    """Coarse to fine; `fast` leaves out the finest images, `best` adds a warp as fine as they are.

    Steps beyond these follow the noise: label Dice of two persons no longer rises. Wider windows at the end gain a
    little on real scans and lose more on drawn ones, whose labels are exact.
    `stiff`: one of the scans is a CT; see `mind_stages`.
    """
    factor = coarsest_factor(fixed.radius, float(spacings(finest).min()))
    if metric == "mind":
        return mind_stages(factor, quality, STIFF if stiff else SOFT)
    stages = []
    fast = quality == "fast"
    while factor > 2:
        stages.append(Stage(factor, factor, 2.0, 0.5, 2.0, 25 if fast else 50))
        factor //= 2
    steps = 30 if not stages else 10 if fast else 14
    stages.append(Stage(2, 2, 1.0 if fast else 1.5, 0.5, 2.0, steps))
    if not fast:
        stages.append(Stage(1, 2, 0.6, 0.4, 4.0, 16))
    if quality == "best":
        stages.append(Stage(1, 1, 0.7, 0.4, 5.0, 5))
    return stages


@dataclass(frozen=True)
class Smoothness:
    """Of warps that follow descriptors: (update, elastic) of a `Stage`."""

    coarse: tuple[float, float]
    fine: tuple[float, float]
    """Where images are finer than the warp."""
    finest: tuple[float, float]


SOFT = Smoothness((2.0, 0.7), (0.8, 0.6), (1.2, 0.6))
"""Between MR scans; found on drawn heads of two persons, T1 with T2 and proton density."""


STIFF = Smoothness((3.0, 1.0), (2.5, 1.0), (3.0, 1.0))
"""With a CT, whose soft tissues differ by little more than its noise."""


def mind_stages(factor: int, quality: Quality, smooth: Smoothness) -> list[Stage]:
    """The same for mind, from the coarsest spacing `factor` on.

    Coarse images have lost the structure that descriptors describe: they are taken at half the spacing and averaged.
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
    """A power of two, 2 at least: the coarsest spacing in steps of the finest (mm), for an object's radius (mm)."""
    factor = 2
    while radius / (2 * factor * step) >= COARSEST:
        factor *= 2
    return factor
