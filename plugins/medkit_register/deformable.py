"""Deformable registration on the CPU in seconds: Gauss-Newton steps on locally normalised images, coarse to fine.

The affine map of `affine` comes first. Then each stage adds small smooth steps s to the warp u by composition, x ->
u(x + s(x)), so that the warp stays one to one (Vercauteren et al. 2009). Three things make it fast. Local correlation
is computed as the mean square of images that are normalised once per stage, so that no window is summed while the warp
changes (as in the affine engine). A step needs values and slopes of the moving image only at points. And where the
warp's lattice is twice as coarse as the images, each step compares only one of the eight points of each cell: the eight
take turns. Scans of unlike contrasts are compared by their `descriptors` instead, several numbers per point.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from medkit_register.comparison import Comparison
from medkit_register.features import MetricSettings
from medkit_register.inversion import invert
from medkit_register.lattice_features import fixed_features
from medkit_register.local_start import LocalStart, local_start
from medkit_register.memory import LARGEST_LATTICE
from medkit_register.network import Start, StartNetwork
from medkit_register.pyramid import Pyramid
from medkit_register.stages import Quality, Stage, coarsest_factor, make_stages
from medkit_register.warp import Lattice, compose, indices, resized, smooth_field, unfolded

MARGIN = 6
"""Steps of the finest lattice around the object."""
LONGEST = 0.5
"""Largest move of a point along an axis in one update, in steps of the warp's lattice: the update has an inverse."""
MOMENTUM = 0.5
"""Share of the last update that the next one keeps."""
GAIN = 0.01
"""A round of steps that lowers the cost by less than this share is the last one."""
ROUND = 5
"""Steps of a round where all points are compared in each step."""
MIN_VOLUME: dict[Quality, float] = {"fast": 0.15, "default": 0.15, "best": 0.12}
"""Smallest share of its volume to which a point may shrink: next to a fold a warp has no usable inverse."""


@dataclass(frozen=True)
class StageReport:
    """How one stage went."""

    spacing: float
    """mm between the points of the images' lattice."""
    steps: int
    """Steps taken."""
    converged: bool
    """False if the limit on steps ended it."""
    cost: float
    """Mean squared residual at the end."""


@dataclass(frozen=True)
class StartReport:
    """What a network's start was worth, at the coarsest resolution."""

    used: bool
    """Whether the warp started with it: it must lower the cost."""
    cost: float
    """Cost with it."""
    affine_cost: float
    """Cost of the affine map without a warp."""


@dataclass(frozen=True, eq=False)
class Warp:
    """A deformable registration: x -> matrix(x + forward(x)), and its inverse."""

    matrix: np.ndarray
    """(4, 4) RAS+ mm, fixed points to moving points."""
    lattice: Lattice
    """Points of the fields, in the fixed space."""
    forward: torch.Tensor
    """(3, I, J, K) in lattice steps, a field as in `warp`."""
    backward: torch.Tensor
    """Its inverse on the same lattice."""
    near: torch.Tensor
    """(N,) lattice points near the objects, as indices of the flattened lattice."""
    stages: tuple[StageReport, ...]
    """Coarse to fine."""
    metric: str
    """What was compared: lncc, mi, mse or mind."""
    start: StartReport | None = None
    """How it started, where a network was asked."""
    local: LocalStart | None = None
    """How it started, where parts of the body have moved apart."""


def register_deformable(
    fixed: Pyramid,
    moving: Pyramid,
    matrix: np.ndarray,
    *,
    metric: str,
    quality: Quality,
    device: str = "cpu",
    network: StartNetwork | None = None,
    unmoved: np.ndarray | None = None,
) -> Warp:
    """Refine an affine map `matrix` ((4, 4) RAS+ mm, fixed points to moving points) by a warp.

    `metric` is lncc, mi, mse or mind. If there is a `network`, the warp starts with its answer where that lowers the
    cost. `unmoved` (4, 4) is the map by which the scans lie as they are, if that may be right in a part of the body:
    see `local_start`. The work is done on `device`, where the result is as well; the pyramids stay in main memory.
    """
    finest = finest_lattice(fixed)
    field, reports, start_report, local = None, [], None, None
    start = network(fixed, moving, matrix, finest) if network else None
    with torch.inference_mode():
        for stage in make_stages(fixed, finest, quality, metric, stiff=fixed.hounsfield or moving.hounsfield):
            lattice = finest.coarser(stage.warp)
            make = functools.partial(
                Comparison.make, fixed, moving, finest=finest, stage=stage, metric=metric, device=device
            )
            comparison = make(matrix)
            if field is None and unmoved is not None and (found := local_start(make, comparison, lattice, unmoved)):
                comparison, local = found
                matrix, field = local.matrix, local.field
            elif field is None:
                field, start_report = first_field(comparison, lattice, start)
            else:
                field = resized(field, lattice.shape)
            field, report = run_stage(comparison, field, stage, finest.spacing * stage.image, MIN_VOLUME[quality])
            reports.append(report)
        assert field is not None
        field = unfolded(field, MIN_VOLUME[quality])
        return Warp(matrix, lattice, field, invert(field), comparison.near, tuple(reports), metric, start_report, local)


def prepare_fixed(fixed: Pyramid, quality: Quality, device: str) -> None:
    """Make the fixed scan's features for lncc; they are kept with its pyramid for `register_deformable`."""
    finest = finest_lattice(fixed)
    with torch.inference_mode():
        for stage in make_stages(fixed, finest, quality, "lncc"):
            lattice = finest.coarser(stage.image)
            fixed_features(fixed, lattice, lattice, MetricSettings("lncc", stage.window), device)


def first_field(
    comparison: Comparison, lattice: Lattice, start: Start | None
) -> tuple[torch.Tensor, StartReport | None]:
    """Return the field (3, I, J, K) that the first stage starts with on its `lattice`, and how it was chosen.

    It is `start` where that lowers the cost, else zero.
    """
    zero = comparison.no_warp()
    if start is None:
        return zero, None
    moved = start.on(lattice)
    cost, affine_cost = (comparison.forces(field, 0)[1] for field in (moved, zero))
    report = StartReport(cost < affine_cost, cost, affine_cost)
    return (moved if report.used else zero), report


def finest_lattice(fixed: Pyramid) -> Lattice:
    """Return a lattice over the box of the fixed object and a margin.

    Its spacing is the scan's median spacing, or more where the lattice would exceed LARGEST_LATTICE points. Along each
    axis its shape is a multiple of the coarsest stage's spacing.
    """
    several = fixed.size > 1
    level = fixed.level(fixed.extent / 60)
    on_object = (level.image > 0.5 * fixed.threshold).nonzero().numpy()
    if len(on_object) == 0:
        on_object = np.array([[0, 0, 0], np.asarray(level.image.shape) - 1])
    low, high = on_object.min(0) - 1.0, on_object.max(0) + 1.0
    axes = np.linalg.norm(level.affine[:3, :3], axis=0)
    sides = (high - low) * axes
    step = float(np.median(fixed.spacing[several]))
    step = max(step, float(np.prod(sides[several] + 2 * MARGIN * step) / LARGEST_LATTICE) ** (1 / several.sum()))
    multiple = coarsest_factor(fixed.radius, step)
    counts = np.ceil((sides / step + 2 * MARGIN) / multiple) * multiple
    counts = np.where(several, counts, 1).astype(int)
    affine = level.affine.copy()
    affine[:3, :3] *= np.where(several, step / axes, 1.0)
    middle = np.where(several, (low + high) / 2, 0.0)
    affine[:3, 3] = level.affine[:3] @ [*middle, 1.0] - affine[:3, :3] @ ((counts - 1) / 2)
    return Lattice((int(counts[0]), int(counts[1]), int(counts[2])), affine)


def run_stage(
    comparison: Comparison, field: torch.Tensor, stage: Stage, spacing: float, min_volume: float
) -> tuple[torch.Tensor, StageReport]:
    """Take steps at one resolution until a round of them gains little, and keep volumes above `min_volume`.

    Returns the field (3, I, J, K) on the warp's lattice, and how the stage went; `spacing` (mm) is for that report.
    """
    points = indices(comparison.cells, field.device).reshape(3, -1)[:, comparison.near]
    sums = field.new_zeros(4, *comparison.cells)
    update = field.new_zeros(field.shape)
    turns = len(comparison.phases)
    round_length = turns if turns > 1 else ROUND
    costs: list[float] = []
    for turn in range(stage.limit):
        forces, cost = comparison.forces(field, turn)
        costs.append(cost)
        if stalled(costs, round_length):
            break
        sums.view(4, -1)[:, comparison.near] = forces
        mean = smooth_field(sums, stage.update)
        step = mean[:3].div_(mean[3].add_(stage.stiffness)).mul_(-1 / stage.warp)
        update = update.mul_(MOMENTUM).add_(step)
        field = compose(field, update.clamp(-LONGEST, LONGEST), points, comparison.near)
        field = smooth_field(field, stage.elastic)
        if turn % round_length == round_length - 1:
            field = unfolded(field, min_volume, passes=1)
    converged, recent = stalled(costs, round_length), costs[-round_length:]
    steps = len(costs) - 1 if converged else len(costs)
    return field, StageReport(spacing, steps, converged, sum(recent) / max(len(recent), 1))


def stalled(costs: Sequence[float], length: int) -> bool:
    """Whether the last of two rounds of `length` steps lowered the cost by a share of less than GAIN."""
    if len(costs) % length or len(costs) < 2 * length:
        return False
    before, now = sum(costs[-2 * length : -length]), sum(costs[-length:])
    return now > (1 - GAIN) * before
