"""Deformable registration on the CPU in seconds: Gauss-Newton steps on locally normalised images, coarse to fine.

The affine map of `affine` comes first. Then each level adds small smooth steps s to the warp u by composition, x ->
u(x + s(x)), so that the warp stays one to one (Vercauteren et al. 2009). What makes it fast: local correlation is
taken as the mean square of images normalised once per level, so that no window is summed while the warp changes (as in
the affine engine); a step needs the moving image's values and slopes at points only; and on the finest level each step
looks at one of the eight points of every cell of the warp's lattice, which is twice as coarse: the eight take turns.
Scans of unlike contrasts are compared by their `descriptors` instead, several numbers per point.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from medkit_register.descriptors import SUPPORT, descriptors
from medkit_register.problem import Look, reliable, slope
from medkit_register.similarity import MEASURES, normalised
from medkit_register.warp import (
    Lattice,
    Sampler,
    at_phase,
    compose,
    gradient,
    indices,
    invert,
    jacobian,
    resized,
    smooth_field,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

    from medkit_register.network import Start, StartNetwork
    from medkit_register.pyramid import Pyramid

Quality = Literal["fast", "default", "best"]

LARGEST = 8_000_000
"""Points of the finest lattice at most: it bounds the memory. A brain has four million at 1 mm."""
COARSEST = 12.0
"""The object's radius over this is the coarsest spacing at most."""
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
NEAR = 4.0
"""Steps of the finest lattice around the objects within which points are compared."""
LEAST: dict[Quality, float] = {"fast": 0.15, "default": 0.15, "best": 0.12}
"""Volumes are not shrunk to less than this share: next to a fold a warp has no usable inverse."""
FEW = 1e-5
"""Share of points at which they may be."""
UNIT = 0.3
"""mse and mi: intensities (0 .. 1) are divided by this, about their deviation, so that all metrics step alike."""


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
            fixed_side(fixed, lattice, lattice, Look("lncc", stage.window), device)


def first_warp(comparison: Comparison, lattice: Lattice, start: Start | None) -> tuple[torch.Tensor, Begun | None]:
    """What the first stage begins with, on its `lattice`: `start` where it lowers the cost, else nothing."""
    still = comparison.fixed[0].new_zeros(3, *lattice.shape)
    if start is None:
        return still, None
    moved = start.on(lattice)
    costs = [comparison.pull(warp, 0)[1] for warp in (moved, still)]
    begun = Begun(costs[0] < costs[1], *costs)
    return (moved if begun.used else still), begun


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


def spacings(lattice: Lattice) -> np.ndarray:
    """mm between points along each axis that has more than one."""
    steps = np.linalg.norm(lattice.affine[:3, :3], axis=0)
    return steps[np.asarray(lattice.shape) > 1]


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


@dataclass(frozen=True, eq=False)
class Comparison:
    """The two scans at one resolution, on a lattice in the fixed space that the affine map has brought both to."""

    metric: str
    """lncc, mi, mse or mind."""
    cells: tuple[int, int, int]
    """Shape of the warp's lattice."""
    ratio: float
    """Steps of the images' lattice in one of the warp's: 1 or 2."""
    phases: tuple[tuple[int, ...], ...]
    """Which point of each cell is looked at, in turns."""
    near: torch.Tensor
    """(N,) the cells that are looked at, as indices of the flattened lattice."""
    fixed: tuple[torch.Tensor, ...]
    """Per phase the fixed values, (N,); for mind (C, N)."""
    trust: tuple[torch.Tensor, ...] | None
    """Per phase the weights of the fixed points, (N,) 0..1; None: 1."""
    positions: tuple[torch.Tensor, ...]
    """Per phase the points, (3, N), as `moving` takes them."""
    moving: Sampler
    """Moving value, its three slopes per finest step, and a weight where one is needed.

    For mind C values, the sum of their squared slopes, and the weight.
    """
    step: int
    """Spacing of the images in steps of the finest lattice."""

    @classmethod
    def make(
        cls,
        fixed: Pyramid,
        moving: Pyramid,
        matrix: np.ndarray,
        finest: Lattice,
        stage: Stage,
        metric: str,
        device: str,
    ) -> Comparison:
        """Both scans brought to the stage's lattice; `matrix` as in `register_deformable`."""
        import torch

        lattice = finest.coarser(stage.image)
        detail = finest.coarser(stage.detail or stage.image)
        look = Look(metric, stage.window)
        f, fixed_object, fixed_trust = fixed_side(fixed, lattice, detail, look, device)
        m, moving_object, moving_trust = one_side(moving, lattice, detail, matrix, look, device)
        near = neighbourhood(fixed_object, moving_object, stage)
        if metric == "mind":
            channels = [m, squared_slopes(m, stage.image)[None]]
        else:
            channels = [m[None], gradient(m) / stage.image]
        if moving_trust is not None:
            channels.append(moving_trust[None])
        sampler = Sampler(torch.cat(channels))
        cells = finest.coarser(stage.warp).shape
        every = [2 if n != c else 1 for n, c in zip(lattice.shape, cells, strict=True)]
        phases = in_turns(every)

        def picked(image: torch.Tensor, phase: tuple[int, ...]) -> torch.Tensor:
            a, b, c = (slice(p, None, e) for p, e in zip(phase, every, strict=True))
            return image[..., a, b, c].flatten(-3)[..., near]

        points = indices(cells, device).reshape(3, -1)[:, near]
        steps, corners = (torch.tensor(n, dtype=torch.float32).to(device)[..., None] for n in (every, phases))
        return cls(
            metric,
            cells,
            float(max(every)),
            phases,
            near,
            tuple(picked(f, phase) for phase in phases),
            None if fixed_trust is None else tuple(picked(fixed_trust, phase) for phase in phases),
            tuple(sampler.prepared(points * steps + corner) for corner in corners),
            sampler,
            stage.image,
        )

    def pull(self, warp: torch.Tensor, turn: int) -> tuple[torch.Tensor, float]:
        """Residual times slopes and squared slopes, (4, N) at the near cells, and the mean squared residual."""
        import torch

        number = turn % len(self.phases)
        moved = at_phase(warp, self.phases[number]) if len(self.phases) > 1 else warp
        at = self.positions[number].clone()
        for axis in range(3):
            shift = moved[axis].reshape(-1).index_select(0, self.near)
            at[axis].add_(shift, alpha=self.ratio * self.moving.scale[axis])
        out = self.moving.at(at)
        if self.metric == "mind":
            return self._pull_of_several(number, at, out)
        weights = self._weights(number, out[4:])
        residual, unit, cost = self._residual(self.fixed[number], out[0], weights)
        slopes = out[1:4] / unit if unit != 1.0 else out[1:4]
        square = (slopes * slopes).sum(0, keepdim=True)
        if weights is not None:
            residual, square = residual * weights, square * weights
        return torch.cat([slopes * residual, square]), cost

    def _pull_of_several(self, number: int, at: torch.Tensor, out: torch.Tensor) -> tuple[torch.Tensor, float]:
        """`pull` for values (C, N) of which only the sum of the squared slopes is at hand."""
        import torch

        fixed = self.fixed[number]
        count = len(fixed)
        residual, square = out[:count] - fixed, out[count : count + 1]
        weights = self._weights(number, out[count + 1 :])
        total = float(residual.shape[1] if weights is None else weights.sum())
        weighted = residual
        if weights is not None:
            weighted, square = residual * weights, square * weights
        cost = float(weighted.flatten() @ residual.flatten()) / max(total, 1.0)
        return torch.cat([self.moving.pulled(at, weighted).div_(self.step), square]), cost

    def _weights(self, number: int, moving: torch.Tensor) -> torch.Tensor | None:
        """(N,) both scans' weights, of which `moving` (1 or 0, N) is one's; None: 1."""
        trust = None if self.trust is None else self.trust[number]
        if not len(moving):
            return trust
        return moving[0] if trust is None else moving[0] * trust

    def _residual(
        self, fixed: torch.Tensor, moving: torch.Tensor, weights: torch.Tensor | None
    ) -> tuple[torch.Tensor, float, float]:
        """(N,) what the moving values have too much, the unit of both, and the cost: the mean square of what is left.

        For mi it is what the fit of `similarity` would change in one Gauss-Newton step, and the cost is the variance of
        moving values that the fixed ones do not explain.
        """
        unit = 1.0 if self.metric == "lncc" else UNIT
        if self.metric != "mi":
            residual = (moving - fixed) / unit
            weighted = residual if weights is None else weights * residual
            total = residual.numel() if weights is None else float(weights.sum())
            return residual, unit, float(weighted @ residual) / max(total, 1.0)
        ones = moving * 0 + 1 if weights is None else weights
        fit = MEASURES["mi"](fixed, moving, ones)
        curvature = max(fit.curvature, 1e-12)
        # the slope carries the weight, by which `pull` multiplies again
        residual = fit.slope / (curvature * unit) / ones.clamp_min(1e-3)
        return residual, unit, 1 / (curvature * max(float(ones.sum()), 1.0) * unit**2)


Side = tuple["torch.Tensor", "torch.Tensor", "torch.Tensor | None"]
"""A scan at one resolution: what is compared, where the object is (I, J, K) bool, and how far to trust it."""


def fixed_side(fixed: Pyramid, lattice: Lattice, detail: Lattice, look: Look, device: str) -> Side:
    """The fixed scan's side, kept with its pyramid for further moving scans; descriptors are too large for that."""
    if look.metric == "mind":
        return one_side(fixed, lattice, detail, np.eye(4), look, device)
    key = ("side", lattice.shape, lattice.affine.tobytes(), look)
    if key not in fixed.features:
        fixed.features[key] = one_side(fixed, lattice, detail, np.eye(4), look, device)
    return fixed.features[key]  # type: ignore[return-value]


def one_side(pyramid: Pyramid, lattice: Lattice, detail: Lattice, matrix: np.ndarray, look: Look, device: str) -> Side:
    """A scan on `lattice`, whose points `matrix` (4, 4) RAS+ mm takes to it; what is compared is made on `detail`."""
    image, trust = on_lattice(pyramid, detail, matrix, look, device)
    on = averaged(image, lattice) > 0.3 * pyramid.threshold
    compared = averaged(comparable(image, look, pyramid.threshold), lattice)
    return compared, on, None if trust is None else averaged(trust, lattice)


def on_lattice(
    pyramid: Pyramid, lattice: Lattice, matrix: np.ndarray, look: Look, device: str
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """A scan (I, J, K) on a lattice whose points `matrix`, (4, 4) RAS+ mm, takes to it, and how far to trust it.

    Weights (I, J, K) 0..1, None where they are 1 everywhere.
    """
    import torch

    spacing = float(spacings(lattice).min())
    level = pyramid.level(spacing)
    to_index = torch.from_numpy((level.index_from_world @ matrix @ lattice.affine).astype(np.float32))
    to_index = to_index.to(device)
    at = to_index[:3, :3] @ indices(lattice.shape, device).reshape(3, -1) + to_index[:3, 3:]
    trust = reliable(pyramid, spacing, look)
    several = np.asarray(level.image.shape) > 1
    open_faces = not pyramid.closed[several].all()
    if trust is None and open_faces:
        trust = torch.ones_like(level.image)
    channels = level.image[None] if trust is None else torch.stack([level.image, trust])
    sampler = Sampler(channels.to(device))
    out = sampler.at(sampler.prepared(at))
    if trust is not None and open_faces:
        out[1] *= inside(at, level.image.shape)
    shaped = out.reshape(-1, *lattice.shape)
    return shaped[0], None if trust is None else shaped[1]


def inside(index: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    """(N,) 1 where indices (3, N) lie within an image of that shape, else 0; an axis of one voxel is no limit."""
    import torch

    kept = torch.ones(index.shape[1], dtype=torch.bool, device=index.device)
    for along, size in zip(index, shape, strict=True):
        if size > 1:
            kept &= (along >= -0.5) & (along <= size - 0.5)
    return kept.float()


def comparable(image: torch.Tensor, look: Look, threshold: float) -> torch.Tensor:
    """(I, J, K) what the metric compares, for mind (C, I, J, K); `threshold` lies between background and object."""
    if look.metric == "mind":
        return descriptors(image, threshold)
    return normalised(image, look.window, look.floor) if look.metric == "lncc" else image


def averaged(image: torch.Tensor, lattice: Lattice) -> torch.Tensor:
    """(..., I, J, K) on `lattice`, from an image on it or on one twice as fine."""
    from torch.nn.functional import avg_pool3d

    shape = image.shape[-3:]
    if tuple(shape) == lattice.shape:
        return image
    factors = tuple(fine // coarse for fine, coarse in zip(shape, lattice.shape, strict=True))
    return avg_pool3d(image.reshape(1, -1, *shape), factors).reshape(*image.shape[:-3], *lattice.shape)


def squared_slopes(values: torch.Tensor, step: int) -> torch.Tensor:
    """(I, J, K) of values (C, I, J, K) on a lattice of `step` finest steps, summed over axes and values."""
    import torch

    total = torch.zeros_like(values[0])
    for value in values:
        for axis in range(3):
            along = slope(value, axis)
            total.addcmul_(along, along)
    return total.div_(step**2)


def neighbourhood(fixed: torch.Tensor, moving: torch.Tensor, stage: Stage) -> torch.Tensor:
    """(N,) indices of the warp's cells near either object; `fixed` and `moving` (I, J, K) bool."""
    from torch.nn.functional import max_pool3d

    on = (fixed | moving).float()[None, None]
    factor = stage.warp // stage.image
    if factor > 1:
        on = max_pool3d(on, tuple(factor if n > 1 else 1 for n in fixed.shape))
    reach = max(1, round(NEAR / stage.warp))
    for axis in range(3):  # one by one, which is a box at once
        along = tuple(reach if a == axis and n > 1 else 0 for a, n in enumerate(on.shape[2:]))
        on = max_pool3d(on, tuple(2 * n + 1 for n in along), 1, along)
    return on.reshape(-1).nonzero().squeeze(1)


def in_turns(every: Sequence[int]) -> tuple[tuple[int, ...], ...]:
    """The points of a cell of `every` (3,) points along each axis; one and the opposite one follow each other."""
    points = list(itertools.product(*[range(e) for e in every]))
    half = points[: len(points) // 2]
    opposite = [tuple(e - 1 - p for p, e in zip(point, every, strict=True)) for point in half]
    return tuple(itertools.chain(*zip(half, opposite, strict=True))) or tuple(points)


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
