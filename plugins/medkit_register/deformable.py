"""Deformable registration on the CPU in seconds: Gauss-Newton steps on locally normalised images, coarse to fine.

The affine map of `affine` comes first. Then each level adds small smooth steps s to the warp u by composition, x ->
u(x + s(x)), so that the warp stays one to one (Vercauteren et al. 2009). What makes it fast: local correlation is
taken as the mean square of images normalised once per level, so that no window is summed while the warp changes (as in
the affine engine); a step needs the moving image's values and slopes at points only; and on the finest level each step
looks at one of the eight points of every cell of the warp's lattice, which is twice as coarse: the eight take turns.
Scans of unlike contrasts are compared by their `descriptors` instead, several numbers per point.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from medkit_register.comparison import Comparison, fixed_side
from medkit_register.problem import MetricSettings
from medkit_register.stages import coarsest_factor, make_stages
from medkit_register.warp import (
    Lattice,
    compose,
    indices,
    invert,
    jacobian,
    resized,
    smooth_field,
    spacings,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

    from medkit_register.network import Start, StartNetwork
    from medkit_register.pyramid import Pyramid
    from medkit_register.stages import Quality, Stage


LARGEST = 8_000_000
"""Points of the finest lattice at most: it bounds the memory. A brain has four million at 1 mm."""
MARGIN = 6
"""Steps of the finest lattice around the object."""
STIFFNESS = 0.01
"""Added to the squared slopes, per squared step of the finest lattice: flat regions follow their neighbours."""
LONGEST = 0.5
"""Steps of the warp's lattice that one update moves a point at most, so that it has an inverse."""
MOMENTUM = 0.5
"""Share of the last update in the next."""
GAIN = 0.01
"""A round of steps that lowers the cost by less than this share is the last one."""
LEAST: dict[Quality, float] = {"fast": 0.15, "default": 0.15, "best": 0.12}
"""Volumes are not shrunk to less than this share: next to a fold a warp has no usable inverse."""
FEW = 1e-5
"""Share of points at which they may be."""


@dataclass(frozen=True)
class StageReport:
    """How one stage went."""

    spacing: float
    """mm between the points of the images' lattice."""
    steps: int
    """Steps taken."""
    converged: bool
    """False: the limit on steps ended it."""
    cost: float
    """Mean squared residual at the end."""


@dataclass(frozen=True, eq=False)
class Warp:
    """A deformable registration: x -> matrix(x + forward(x)), and its inverse."""

    matrix: np.ndarray
    """(4, 4) RAS+ mm, fixed points to moving points."""
    lattice: Lattice
    """Where the fields are; in the fixed space."""
    forward: torch.Tensor
    """(3, I, J, K) in lattice steps, see `warp`."""
    backward: torch.Tensor
    """Its inverse on the same lattice."""
    near: torch.Tensor
    """(N,) lattice points near the objects, as indices of the flattened lattice."""
    stages: tuple[StageReport, ...]
    """Coarse to fine."""
    metric: str
    """What was compared: lncc, mi, mse or mind."""
    begun: Begun | None = None
    """How it began where a network was asked."""


@dataclass(frozen=True)
class Begun:
    """What a network's start was worth, at the coarsest resolution."""

    used: bool
    """Whether the warp began with it: it must lower the cost."""
    cost: float
    """With it."""
    affine_cost: float
    """With the affine map alone."""


def register_deformable(
    fixed: Pyramid,
    moving: Pyramid,
    matrix: np.ndarray,
    *,
    metric: str,
    quality: Quality,
    device: str = "cpu",
    network: StartNetwork | None = None,
) -> Warp:
    """Refine an affine map `matrix` ((4, 4) RAS+ mm, fixed points to moving points) by a warp.

    Where a `network` is given, the warp begins with what it says if that is better than nothing. The work is done on
    `device`, where the result lies too; the pyramids stay where they are.
    """
    import torch

    finest = finest_lattice(fixed)
    warp, reports, begun = None, [], None
    start = network(fixed, moving, matrix, finest) if network else None
    with torch.inference_mode():
        for stage in make_stages(fixed, finest, quality, metric, stiff=fixed.hounsfield or moving.hounsfield):
            lattice = finest.coarser(stage.warp)
            comparison = Comparison.make(fixed, moving, matrix, finest, stage, metric, device)
            if warp is None:
                warp, begun = first_warp(comparison, lattice, start)
            else:
                warp = resized(warp, lattice.shape)
            spacing = float(spacings(finest).min()) * stage.image
            warp, report = follow(comparison, warp, stage, spacing, LEAST[quality])
            reports.append(report)
        assert warp is not None
        warp = unfolded(warp, LEAST[quality])
        return Warp(matrix, lattice, warp, invert(warp), comparison.near, tuple(reports), metric, begun)


def prepare_fixed(fixed: Pyramid, quality: Quality, device: str) -> None:
    """Makes and keeps the fixed scan's side of what `register_deformable` compares by lncc."""
    import torch

    finest = finest_lattice(fixed)
    with torch.inference_mode():
        for stage in make_stages(fixed, finest, quality, "lncc"):
            lattice = finest.coarser(stage.image)
            fixed_side(fixed, lattice, lattice, MetricSettings("lncc", stage.window), device)


def first_warp(comparison: Comparison, lattice: Lattice, start: Start | None) -> tuple[torch.Tensor, Begun | None]:
    """What the first stage begins with, on its `lattice`: `start` where it lowers the cost, else nothing."""
    still = comparison.fixed[0].new_zeros(3, *lattice.shape)
    if start is None:
        return still, None
    moved = start.on(lattice)
    costs = [comparison.pull(warp, 0)[1] for warp in (moved, still)]
    begun = Begun(costs[0] < costs[1], *costs)
    return (moved if begun.used else still), begun


def finest_lattice(fixed: Pyramid) -> Lattice:
    """The box of the fixed object and a margin, at the scan's median spacing, wider where the box is large."""
    several = fixed.size > 1
    level = fixed.level(fixed.extent / 60)
    on = (level.image > 0.5 * fixed.threshold).nonzero().numpy()
    if len(on) == 0:
        on = np.array([[0, 0, 0], np.asarray(level.image.shape) - 1])
    low, high = on.min(0) - 1.0, on.max(0) + 1.0
    axes = np.linalg.norm(level.affine[:3, :3], axis=0)
    sides = (high - low) * axes
    step = float(np.median(fixed.spacing[several]))
    step = max(step, float(np.prod(sides[several] + 2 * MARGIN * step) / LARGEST) ** (1 / several.sum()))
    multiple = coarsest_factor(fixed.radius, step)
    counts = np.ceil((sides / step + 2 * MARGIN) / multiple) * multiple
    counts = np.where(several, counts, 1).astype(int)
    affine = level.affine.copy()
    affine[:3, :3] *= np.where(several, step / axes, 1.0)
    middle = np.where(several, (low + high) / 2, 0.0)
    affine[:3, 3] = level.affine[:3] @ [*middle, 1.0] - affine[:3, :3] @ ((counts - 1) / 2)
    return Lattice((int(counts[0]), int(counts[1]), int(counts[2])), affine)


def follow(
    comparison: Comparison, warp: torch.Tensor, stage: Stage, spacing: float, least: float
) -> tuple[torch.Tensor, StageReport]:
    """Steps at one resolution until a round of them gains little; volumes are kept above `least`."""
    points = indices(comparison.cells, warp.device).reshape(3, -1)[:, comparison.near]
    sums = warp.new_zeros(4, *comparison.cells)
    last = warp.new_zeros(warp.shape)
    turns = len(comparison.phases)
    round_length = turns if turns > 1 else 5
    costs: list[float] = []
    for turn in range(stage.limit):
        pull, cost = comparison.pull(warp, turn)
        costs.append(cost)
        if stalled(costs, round_length):
            break
        sums.view(4, -1)[:, comparison.near] = pull
        mean = smooth_field(sums, stage.update)
        step = mean[:3].div_(mean[3].add_(STIFFNESS)).mul_(-1 / stage.warp)
        last = last.mul_(MOMENTUM).add_(step)
        warp = compose(warp, last.clamp(-LONGEST, LONGEST), points, comparison.near)
        warp = smooth_field(warp, stage.elastic)
        if turn % round_length == round_length - 1:
            warp = unfolded(warp, least, passes=1)
    steps = len(costs) - 1 if stalled(costs, round_length) else len(costs)
    recent = costs[-round_length:]
    report = StageReport(spacing, steps, stalled(costs, round_length), sum(recent) / max(len(recent), 1))
    return warp, report


def stalled(costs: Sequence[float], length: int) -> bool:
    """Whether the last two rounds of `length` steps show a gain under GAIN."""
    if len(costs) % length or len(costs) < 2 * length:
        return False
    before, now = sum(costs[-2 * length : -length]), sum(costs[-length:])
    return now > (1 - GAIN) * before


def unfolded(warp: torch.Tensor, least: float, passes: int = 10) -> torch.Tensor:
    """The warp, smoothed about the points whose volume it shrinks to less than `least` until next to none is left.

    Each pass reaches farther than the one before: what resists is folded over several points.
    """
    for number in range(passes):
        sigma = 1 + 0.5 * number
        steep = (jacobian(warp) < least).float()[None]
        if float(steep.mean()) <= FEW:
            break
        share = (8 * smooth_field(steep, sigma)).clamp_(0, 1)
        warp = warp + share * (smooth_field(warp, sigma) - warp)
    return warp
