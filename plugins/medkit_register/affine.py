"""Rigid and affine registration over several resolutions, on the CPU in about a second.

The order of work: a coarse level is searched for rotation and position by mutual information, the best few starts are
refined there, then Levenberg-Marquardt follows the metric from coarse to fine. Scans are compared on lattices of their
own (see `pyramid`), so the result does not depend on how a file stores its voxels.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import numpy as np

from medkit_register.axes import LocalAxes, make_axes
from medkit_register.optimise import Freedom, Optimum, displacement, minimise, rigid_part
from medkit_register.problem import MetricSettings, Sampling, make_problem
from medkit_register.pyramid import Pyramid, ScanVolume
from medkit_register.start import search

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from medkit_register.problem import Problem

Metric = Literal["lncc", "mi", "mse"]

DETERMINANT = (0.1, 10.0)
"""Volume changes outside these are no registration but a collapse."""
FINEST = 28.0
"""The object's root-mean-square radius over this is the finest spacing: 2 mm for a brain."""
FINEST_PLANAR = 80
"""The same for planar images."""
COARSEST_PLANAR = 5.0
"""The radius over this is a planar image's coarsest spacing: a small one has too few points beyond."""
ELONGATION = 4.0
"""Stretching one direction that much more than another is a collapse too."""
ALIKE = 0.5
"""Correlation of intensities from which on contrasts count as alike: T1 with T1 scans give 0.56 to 0.85, with PD 0.46,
with T2 under 0."""
CONVINCING = 0.3
"""Squared local correlation on the second level: that of like contrasts is 0.4 to 0.6 at the right place (of 200 starts
on real scans, some with a third of the head missing) and at most 0.2 at a wrong one."""
SEARCHES = 4
"""A start is sought at most that often."""
LITTLE = 0.5
"""Overlap under which a warning is due."""
MARGIN = 0.15
"""While a start is sought, points this share of the radius around the object count."""
FINALISTS = 4
"""Starts that are compared after affine steps."""
DECISIVE = 16_000
"""Points by which starts are compared on the second level."""
ROLE_SWAP = 0.9
"""Where the moving object's radius is under this share of the fixed one's, points are taken from the moving scan."""


@dataclass(frozen=True, eq=False)
class AffineSettings:
    """How to register."""

    type: Literal["rigid", "affine"] = "affine"
    """Rotation and translation, or shears and scales as well."""
    metric: Literal["auto", "lncc", "mi", "mse"] = "auto"
    """Local correlation, mutual information, mean squares; auto: chosen by how alike the contrasts are."""
    init: Literal["auto", "moments", "centre", "header"] | np.ndarray = "auto"
    """Start: searched; centres of mass; centres of the fields of view; world coordinates as they are; or a (4, 4)
    matrix in RAS+ mm that takes fixed points to moving points."""
    seed: int = 0
    """For the draw of sample points."""


@dataclass(frozen=True)
class LevelReport:
    """How one level went."""

    stage: str
    """"start", "rigid", "similarity" or "affine"."""
    metric: str
    """What was compared: lncc, mi or mse."""
    spacing: float
    """mm."""
    points: int
    """Sample points."""
    steps: int
    """Steps tried."""
    converged: bool
    """False: the limit on steps ended it."""
    value: float
    """The metric: squared (local) correlation, nats, or mean square over the fixed variance."""
    overlap: float
    """Share of the points inside the moving scan."""


@dataclass(frozen=True, eq=False)
class Result:
    """A rigid or affine registration."""

    matrix: np.ndarray
    """(4, 4) RAS+ mm, takes fixed points to moving points (ITK's convention)."""
    metric: str
    """lncc, mi or mse."""
    reason: str
    """Why that metric."""
    levels: tuple[LevelReport, ...]
    """Coarse to fine."""
    warnings: tuple[str, ...] = ()
    """Plain sentences."""
    alike: float | None = None
    """By how much the intensities correlate inside both objects; None where the metric was asked for."""


@dataclass(frozen=True)
class LevelPlan:
    """One resolution."""

    spacing: float
    """mm."""
    sampling: Sampling
    """Which points."""
    window: float
    """lncc: standard deviation of its window in lattice steps."""
    max_steps: int = 40
    """Limit on Levenberg-Marquardt steps."""


def prepare(volume: ScanVolume) -> Pyramid:
    """A scan's pyramid: computed once for the fixed image, then used for every moving one."""
    return Pyramid(volume)


def register_affine(fixed: Pyramid, moving: ScanVolume | Pyramid, settings: AffineSettings | None = None) -> Result:
    """Find the rigid or affine map that takes points of `fixed` to points of `moving`.

    Both may have any orientation and spacing; both are volumes or both planar, in parallel planes.
    Raises MedkitError for scans that no such map relates (a planar and a volume, planes that cross).
    """
    settings = settings or AffineSettings()
    with one_thread():
        moving = Pyramid(moving) if isinstance(moving, ScanVolume) else moving
        frames = make_axes(fixed, moving)
        if moving.radius < ROLE_SWAP * fixed.radius:
            result = AffineRun(moving, fixed, frames.swapped(), swapped(settings)).result()
            return replace(result, matrix=np.linalg.inv(result.matrix))
        return AffineRun(fixed, moving, frames, settings).result()


@contextmanager
def one_thread() -> Iterator[None]:
    """Torch on a single thread.

    Its operations here are many and short: a second thread saves a fifth of the time on an idle machine and costs ten
    times as much on a busy one, where threads wait for each other. It also makes results independent of the machine.
    """
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def swapped(settings: AffineSettings) -> AffineSettings:
    """The settings for the other direction: only a start given as a matrix knows one."""
    return settings if isinstance(settings.init, str) else replace(settings, init=np.linalg.inv(settings.init))


class AffineRun:
    """One registration on its way from coarse to fine."""

    def __init__(self, fixed: Pyramid, moving: Pyramid, frames: LocalAxes, settings: AffineSettings) -> None:
        self.fixed, self.moving, self.frames, self.settings = fixed, moving, frames, settings
        self.planar = fixed.planar_axis is not None
        self.plans = make_plans(fixed, settings.seed)
        self.reports: list[LevelReport] = []
        self.warnings: list[str] = []
        self.problems: dict[tuple[LevelPlan, Metric], Problem] = {}

    def result(self) -> Result:
        """Search, choose the metric, refine, check."""
        start = self.start()
        metric, reason, alike = self.choose(start.mapping)
        best = self.refine(start.mapping, metric, self.settings.type)
        if not sane(best.mapping):
            self.warnings.append("the affine registration collapsed; the result is a rigid one")
            best = self.refine(rigid_part(start.mapping), metric, "rigid")
        self.check(best)
        matrix = self.frames.to_world(best.mapping)
        return Result(matrix, metric, reason, tuple(self.reports), tuple(self.warnings), alike)

    def problem(self, plan: LevelPlan, metric: Metric) -> Problem:
        """The comparison at one resolution, made once."""
        key = plan, metric
        if key not in self.problems:
            look = MetricSettings(metric, plan.window)
            frames, sampling = self.frames, plan.sampling
            self.problems[key] = make_problem(self.fixed, self.moving, plan.spacing, look, frames, sampling)
        return self.problems[key]

    def follow(
        self, problem: Problem, mapping: np.ndarray, kind: str, plan: LevelPlan, *, stage: str, metric: Metric
    ) -> Optimum:
        """Minimise at one resolution and note how it went."""
        freedom, radius = Freedom(kind, self.planar), self.fixed.radius
        tolerance = (0.05 if stage == "start" else 0.01) * plan.spacing
        best = minimise(problem, mapping, freedom, radius=radius, tolerance=tolerance, max_steps=plan.max_steps)
        value = best.cost if metric == "mse" else -best.cost if metric == "mi" else 1 - best.cost
        points = int(problem.samples.points.shape[1])
        self.reports.append(
            LevelReport(stage, metric, plan.spacing, points, best.steps, best.converged, value, best.overlap)
        )
        return best

    def start(self) -> Optimum:
        """The best end of one search, and of further ones as long as what was found does not convince."""
        best = self.searched(self.settings.seed, "mi")
        for attempt in range(1, SEARCHES):
            like = self.alike(best.mapping) >= ALIKE
            if like and self.correlated(best.mapping) >= CONVINCING:
                break
            # mutual information may be highest where one scan's scalp meets the other's skull
            metric: Metric = "lncc" if like and attempt % 2 else "mi"
            other = self.searched(self.settings.seed + attempt, metric, thorough=True)
            found_again = displacement(best.mapping - other.mapping, self.fixed.radius) <= self.fixed.radius / 10
            best = self.better(best, other, like=like)
            if not self.searching or (found_again and (attempt > 1 or not like)):
                break
        return best

    def better(self, one: Optimum, other: Optimum, *, like: bool) -> Optimum:
        """By local correlation where the contrasts are alike, else by mutual information, on the second level."""
        if like:
            return max(one, other, key=lambda end: self.correlated(end.mapping))
        second = self.start_plan(self.plans[1], DECISIVE)
        return self.compare([one.mapping, other.mapping], self.settings.type, second, "mi")[0]

    @property
    def searching(self) -> bool:
        """Whether no start was given."""
        return isinstance(self.settings.init, str) and self.settings.init == "auto"

    def searched(self, seed: int, metric: Metric, *, thorough: bool = False) -> Optimum:
        """The best of the starts by a metric, after some steps on the two coarsest levels."""
        kind = "rigid" if self.settings.type == "rigid" else "similarity"
        coarse = self.start_plan(self.plans[0], self.plans[0].sampling.limit)
        starts = search(
            self.problem(coarse, "mi"), self.frames, self.settings.init,
            scaled=kind != "rigid", planar=self.planar, seed=seed, thorough=thorough,
        )  # fmt: skip
        ends = self.compare(starts, kind, coarse, metric)
        ends = self.compare([end.mapping for end in ends], self.settings.type, coarse, metric)
        if len(ends) > 1:
            # repeating anatomy (the spine) looks much the same on the coarsest level wherever it is put
            second = self.start_plan(self.plans[1], DECISIVE)
            ends = self.compare([end.mapping for end in ends], self.settings.type, second, metric)
        return ends[0]

    def start_plan(self, plan: LevelPlan, limit: int) -> LevelPlan:
        """The plan for comparing starts."""
        return replace(plan, sampling=replace(plan.sampling, margin=MARGIN * self.fixed.radius, limit=limit))

    def compare(self, starts: Sequence[np.ndarray], kind: str, plan: LevelPlan, metric: Metric) -> list[Optimum]:
        """Where the starts (3, 4) lead, best first: at most FINALISTS, no two alike. Only the best is reported."""
        problem = self.problem(plan, metric)
        if kind == "rigid":
            starts = [rigid_part(mapping) for mapping in starts]
        before = len(self.reports)
        ends = [self.follow(problem, mapping, kind, plan, stage="start", metric=metric) for mapping in starts]
        order = sorted(range(len(ends)), key=lambda i: (not sane(ends[i].mapping), ends[i].cost))
        self.reports[before:] = [self.reports[before + order[0]]]
        return distinct([ends[i] for i in order], self.fixed.radius)[:FINALISTS]

    def correlated(self, mapping: np.ndarray) -> float:
        """The squared local correlation on the second level; 0 for a map that is no registration."""
        return 1 - self.problem(self.plans[1], "lncc").system(mapping).cost if sane(mapping) else 0.0

    def alike(self, mapping: np.ndarray) -> float:
        """How far the intensities of the two objects rise together."""
        return agreement(self.problem(self.plans[1], "mi"), mapping, self.fixed.threshold, self.moving.threshold)

    def choose(self, mapping: np.ndarray) -> tuple[Metric, str, float | None]:
        """The metric and why: local correlation where the contrasts are alike; and how far they are."""
        if self.settings.metric != "auto":
            return self.settings.metric, "asked for", None
        alike = self.alike(mapping)
        verdict = f"inside both objects the intensities correlate by {alike:.2f}"
        if alike >= ALIKE:
            return "lncc", f"{verdict}: like contrasts", alike
        return "mi", f"{verdict}, under {ALIKE}: unlike contrasts", alike

    def refine(self, mapping: np.ndarray, metric: Metric, kind: str) -> Optimum:
        """Every resolution but the coarsest in turn."""
        for plan in self.plans[1:]:
            best = self.follow(self.problem(plan, metric), mapping, kind, plan, stage=kind, metric=metric)
            mapping = best.mapping
        return best

    def check(self, best: Optimum) -> None:
        """Warn of what looks wrong."""
        if not best.converged:
            self.warnings.append(f"the registration had not converged after {best.steps} steps at the finest level")
        if best.overlap < LITTLE:
            self.warnings.append(f"only {100 * best.overlap:.0f} % of the object lies inside the other scan")


def agreement(problem: Problem, mapping: np.ndarray, fixed_threshold: float, moving_threshold: float) -> float:
    """Correlation coefficient of the samples that are object in both scans; 0 where there are none."""
    moving, weights = (out[0] for out in problem.look_up(mapping[None]))
    fixed = problem.samples.values
    both = (weights > 0.5) & (fixed > fixed_threshold) & (moving > moving_threshold)
    f, m = (values[both].double() - float(values[both].double().mean()) for values in (fixed, moving))
    norm = float(f.norm() * m.norm())
    return float(f @ m) / norm if norm > 0 else 0.0


def sane(mapping: np.ndarray) -> bool:
    """Whether a map (3, 4) keeps volumes and shapes about as they are."""
    if not np.isfinite(mapping).all():
        return False
    stretch = np.linalg.svd(mapping[:, :3], compute_uv=False)
    low, high = DETERMINANT
    return bool(low < np.linalg.det(mapping[:, :3]) < high and stretch[0] < ELONGATION * stretch[-1])


def distinct(ends: Sequence[Optimum], radius: float) -> list[Optimum]:
    """The ends, best first, without those that another one, better, lies next to."""
    kept: list[Optimum] = []
    for end in ends:
        if all(displacement(end.mapping - other.mapping, radius) > radius / 10 for other in kept):
            kept.append(end)
    return kept


def make_plans(fixed: Pyramid, seed: int) -> Sequence[LevelPlan]:
    """The resolutions for a fixed scan, coarse to fine."""
    planar = fixed.planar_axis is not None
    smallest = min(s for s, n in zip(fixed.spacing, fixed.size, strict=True) if n > 1)
    finest = max(float(smallest), fixed.radius / (FINEST_PLANAR if planar else FINEST))
    factors = [4, 2, 1]
    if planar:
        coarsest = fixed.radius / COARSEST_PLANAR / finest
        factors = [f for f in (8, 4, 2, 1) if f <= max(coarsest, 2)]
    windows = (1.5, 2.0, 2.5, 2.5)
    return [
        LevelPlan(f * finest, Sampling(margin=(2 + f) * finest * 0.8, limit=100_000, seed=seed), w)
        for f, w in zip(factors, windows[-len(factors) :], strict=True)
    ]
