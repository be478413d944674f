"""Rigid and affine registration over several resolutions, on the CPU in about a second.

First a coarse level is searched for rotation and position by mutual information, and the best starts are refined there.
Then Levenberg-Marquardt lowers the metric's cost level by level, from coarse to fine. Scans are compared at points that
do not depend on how a file stores its voxels (see `pyramid`), and so neither does the result.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch

from medkit_register.axes import LocalAxes, make_axes
from medkit_register.features import MetricSettings
from medkit_register.level_plans import LevelPlan, make_level_plans
from medkit_register.optimise import Freedom, Optimum, displacement, minimise, rigid_part
from medkit_register.problem import Problem, make_problem
from medkit_register.pyramid import Pyramid, ScanVolume
from medkit_register.similarity import to_bins
from medkit_register.start import search

Metric = Literal["lncc", "mi", "mse"]

DETERMINANT = (0.1, 10.0)
"""Range of volume changes: a map outside it has collapsed."""
ELONGATION = 4.0
"""Largest ratio of stretches along two directions: a map beyond it has collapsed."""
LIKE_CONTRASTS = 0.5
"""Correlation of intensities from which on contrasts count as alike: T1 with T1 scans reach 0.56 to 0.85, T1 with PD
0.46, T1 with T2 less than 0."""
RANKS = 0.82
"""Ratio of the correlation of ranks to that of intensities below which a few bright voxels carry the latter. Scans of
one contrast have 0.84 and more (120 pairs); T1 with FLAIR or contrast agent has 0.74 to 0.81, as scalps are bright.
"""
STEPS = 64
"""Steps of intensity within which voxels have the same rank: noise in flat regions must not decide."""
CONVINCING = 0.3
"""Squared local correlation on the second level at which a start is accepted. For like contrasts it is 0.4 to 0.6 at
the right place (of 200 starts on real scans, some with a third of the head missing) and at most 0.2 at a wrong one."""
SEARCHES = 4
"""Searches for a start at most."""
LOW_OVERLAP = 0.5
"""Share of the object inside the other scan below which a warning is due."""
UNFINISHED = "the registration had not converged"
"""How a warning begins of a registration whose steps ran out."""
MARGIN = 0.15
"""Margin around the object while a start is searched, as a share of the object's radius."""
FINALISTS = 4
"""Starts that are compared after affine steps."""
DECISIVE = 16_000
"""Points at which starts are compared on the second level."""
ROLE_SWAP = 0.9
"""Ratio of the moving object's radius to the fixed object's below which the scans swap roles: points are then taken
from the moving scan."""


@dataclass(frozen=True, eq=False)
class AffineSettings:
    """How to register."""

    type: Literal["rigid", "affine"] = "affine"
    """Rotation and translation, or shears and scales as well."""
    metric: Literal["auto", "lncc", "mi", "mse"] = "auto"
    """Local correlation, mutual information or mean squares; auto: chosen by how much the intensities correlate."""
    init: Literal["auto", "moments", "centre", "header"] | np.ndarray = "auto"
    """Start: searched; centres of mass; centres of the fields of view; world coordinates as they are; or a (4, 4)
    matrix in RAS+ mm that takes fixed points to moving points."""
    seed: int = 0
    """For the draw of sample points."""
    descriptors: bool = False
    """Whether `verdict.register_better` refines a map that follows mutual information, see `descriptor_affine`."""


@dataclass(frozen=True)
class LevelReport:
    """How one level went."""

    stage: str
    """"start", "rigid", "similarity" or "affine"."""
    metric: str
    """What was compared: lncc, mi, mse or mind."""
    spacing: float
    """mm between points."""
    points: int
    """Sample points."""
    steps: int
    """Steps tried."""
    converged: bool
    """False if the limit on steps ended it."""
    value: float
    """The metric: squared (local) correlation, nats, mean square over the fixed variance, or that of descriptors."""
    overlap: float
    """Share of the points inside the moving scan."""


@dataclass(frozen=True, eq=False)
class AffineResult:
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
    intensity_correlation: float | None = None
    """Correlation of the intensities inside both objects; None if the user chose the metric."""
    information: float | None = None
    """Nats that the scans have in common, see `verdict`; None where nobody asked."""
    start: str | None = None
    """The start that was taken in place of the one asked for, see `verdict`."""
    headers_fit: bool = False
    """Whether the scans roughly fit as their headers place them, see `verdict`."""


def register_affine(
    fixed: Pyramid, moving: ScanVolume | Pyramid, settings: AffineSettings | None = None
) -> AffineResult:
    """Find the rigid or affine map that takes points of `fixed` to points of `moving`.

    Both may have any orientation and spacing; both are volumes, or both planar in parallel planes.
    Raises MedkitError for scans that no such map relates (a planar scan and a volume, planes that cross).
    """
    settings = settings or AffineSettings()
    with one_thread():
        moving = Pyramid(moving) if isinstance(moving, ScanVolume) else moving
        axes = make_axes(fixed, moving)
        if moving.radius < ROLE_SWAP * fixed.radius:
            result = AffineRun(moving, fixed, axes.swapped(), swapped(settings)).result()
            return replace(result, matrix=np.linalg.inv(result.matrix))
        return AffineRun(fixed, moving, axes, settings).result()


@contextmanager
def one_thread() -> Iterator[None]:
    """Run torch on a single thread.

    The operations here are many and short: a second thread saves a fifth of the time on an idle machine and takes ten
    times as long on a busy one, where threads wait for each other. Results also do not depend on the machine then.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def swapped(settings: AffineSettings) -> AffineSettings:
    """Return the settings for the opposite direction: a start given as a matrix is inverted."""
    return settings if isinstance(settings.init, str) else replace(settings, init=np.linalg.inv(settings.init))


class AffineRun:
    """One registration, from coarse to fine."""

    def __init__(self, fixed: Pyramid, moving: Pyramid, axes: LocalAxes, settings: AffineSettings) -> None:
        self.fixed, self.moving, self.axes, self.settings = fixed, moving, axes, settings
        self.planar = fixed.planar_axis is not None
        self.level_plans = make_level_plans(fixed, moving, settings.seed)
        self.reports: list[LevelReport] = []
        self.warnings: list[str] = []
        self.problems: dict[tuple[LevelPlan, Metric], Problem] = {}

    def result(self) -> AffineResult:
        """Find a start, choose the metric, refine and check."""
        start = self.find_start()
        metric, reason, correlation = self.choose_metric(start.mapping)
        best = self.refine(start.mapping, metric, self.settings.type)
        if not sane(best.mapping):
            self.warnings.append("the affine registration collapsed; the result is a rigid one")
            best = self.refine(rigid_part(start.mapping), metric, "rigid")
        self.check(best)
        matrix = self.axes.to_world(best.mapping)
        return AffineResult(matrix, metric, reason, tuple(self.reports), tuple(self.warnings), correlation)

    def find_start(self) -> Optimum:
        """Return the best result of one search, and of further searches as long as it does not convince."""
        best = self.search_once(self.settings.seed, "mi")
        for attempt in range(1, SEARCHES):
            like = self.intensity_correlation(best.mapping) >= LIKE_CONTRASTS
            if like and self.local_correlation(best.mapping) >= CONVINCING:
                break
            # mutual information may be highest where one scan's scalp lies on the other's skull
            metric: Metric = "lncc" if like and attempt % 2 else "mi"
            other = self.search_once(self.settings.seed + attempt, metric, thorough=True)
            found_again = displacement(best.mapping - other.mapping, self.fixed.radius) <= self.fixed.radius / 10
            best = self.better_of(best, other, like=like)
            if not self.start_is_searched or (found_again and (attempt > 1 or not like)):
                break
        return best

    @property
    def start_is_searched(self) -> bool:
        """Whether no start was given."""
        return isinstance(self.settings.init, str) and self.settings.init == "auto"

    def search_once(self, seed: int, metric: Metric, *, thorough: bool = False) -> Optimum:
        """Return the start that is best by `metric` after some steps on the two coarsest levels."""
        kind = "rigid" if self.settings.type == "rigid" else "similarity"
        coarse = self.start_plan(self.level_plans[0], self.level_plans[0].sampling.limit)
        starts = search(
            self.problem(coarse, "mi"), self.axes, self.settings.init,
            scaled=kind != "rigid", planar=self.planar, seed=seed, thorough=thorough,
        )  # fmt: skip
        ends = self.refine_starts(starts, kind, coarse, metric)
        ends = self.refine_starts([end.mapping for end in ends], self.settings.type, coarse, metric)
        if len(ends) > 1:
            # on the coarsest level repeating anatomy (the spine) matches about equally well in several places
            second = self.start_plan(self.level_plans[1], DECISIVE)
            ends = self.refine_starts([end.mapping for end in ends], self.settings.type, second, metric)
        return ends[0]

    def better_of(self, one: Optimum, other: Optimum, *, like: bool) -> Optimum:
        """Return the better one on the second level: by local correlation for `like` contrasts, else by mi."""
        if like:
            return max(one, other, key=lambda end: self.local_correlation(end.mapping))
        second = self.start_plan(self.level_plans[1], DECISIVE)
        return self.refine_starts([one.mapping, other.mapping], self.settings.type, second, "mi")[0]

    def start_plan(self, plan: LevelPlan, limit: int) -> LevelPlan:
        """Return the plan for comparing starts at most at `limit` points."""
        return replace(plan, sampling=replace(plan.sampling, margin=MARGIN * self.fixed.radius, limit=limit))

    def refine_starts(self, starts: Sequence[np.ndarray], kind: str, plan: LevelPlan, metric: Metric) -> list[Optimum]:
        """Return where starts (3, 4) lead, best first: at most FINALISTS different ones. Only the best is reported."""
        if kind == "rigid":
            starts = [rigid_part(mapping) for mapping in starts]
        before = len(self.reports)
        ends = [self.optimise(mapping, kind, plan, stage="start", metric=metric) for mapping in starts]
        order = sorted(range(len(ends)), key=lambda i: (not sane(ends[i].mapping), ends[i].cost))
        self.reports[before:] = [self.reports[before + order[0]]]
        return distinct([ends[i] for i in order], self.fixed.radius)[:FINALISTS]

    def choose_metric(self, mapping: np.ndarray) -> tuple[Metric, str, float | None]:
        """Return the metric, the reason, and the correlation of intensities: lncc for like contrasts, else mi."""
        if self.settings.metric != "auto":
            return self.settings.metric, "asked for", None
        correlation = self.intensity_correlation(mapping)
        verdict = f"inside both objects the intensities correlate by {correlation:.2f}"
        if correlation >= LIKE_CONTRASTS:
            return "lncc", f"{verdict}: like contrasts", correlation
        return "mi", f"{verdict}, under {LIKE_CONTRASTS}: unlike contrasts", correlation

    def intensity_correlation(self, mapping: np.ndarray) -> float:
        """Return the correlation of the intensities that are object in both scans, on the second level."""
        problem = self.problem(self.level_plans[1], "mi")
        return object_correlation(problem, mapping, self.fixed.threshold, self.moving.threshold)

    def local_correlation(self, mapping: np.ndarray) -> float:
        """Return the squared local correlation on the second level; 0 for a map that has collapsed."""
        return 1 - self.problem(self.level_plans[1], "lncc").system(mapping).cost if sane(mapping) else 0.0

    def refine(self, mapping: np.ndarray, metric: Metric, kind: str) -> Optimum:
        """Optimise at every resolution except the coarsest."""
        for plan in self.level_plans[1:]:
            best = self.optimise(mapping, kind, plan, stage=kind, metric=metric)
            mapping = best.mapping
        return best

    def optimise(self, mapping: np.ndarray, kind: str, plan: LevelPlan, *, stage: str, metric: Metric) -> Optimum:
        """Lower the cost at one resolution and report how it went."""
        problem = self.problem(plan, metric)
        freedom, radius = Freedom(kind, self.planar), self.fixed.radius
        tolerance = (0.05 if stage == "start" else 0.01) * plan.spacing
        best = minimise(problem, mapping, freedom, radius=radius, tolerance=tolerance, max_steps=plan.max_steps)
        value = best.cost if metric == "mse" else -best.cost if metric == "mi" else 1 - best.cost
        points = int(problem.samples.points.shape[1])
        self.reports.append(
            LevelReport(stage, metric, plan.spacing, points, best.steps, best.converged, value, best.overlap)
        )
        return best

    def problem(self, plan: LevelPlan, metric: Metric) -> Problem:
        """Return the comparison at one resolution, made once."""
        key = plan, metric
        if key not in self.problems:
            settings = MetricSettings(metric, plan.window)
            self.problems[key] = make_problem(self.fixed, self.moving, plan.spacing, settings, self.axes, plan.sampling)
        return self.problems[key]

    def check(self, best: Optimum) -> None:
        """Add warnings about a result that may be wrong."""
        if not best.converged:
            self.warnings.append(f"{UNFINISHED} after {best.steps} steps at the finest level")
        if best.overlap < LOW_OVERLAP:
            self.warnings.append(f"only {100 * best.overlap:.0f} % of the object lies inside the other scan")


def object_correlation(problem: Problem, mapping: np.ndarray, fixed_threshold: float, moving_threshold: float) -> float:
    """Return the correlation coefficient of the samples that are object in both scans; 0 where there are none.

    Where ranks correlate clearly less (RANKS), their coefficient is returned.
    """
    moving, weights = (out[0] for out in problem.look_up(mapping[None]))
    fixed = problem.samples.values
    both = (weights > 0.5) & (fixed > fixed_threshold) & (moving > moving_threshold)
    f, m = fixed[both].double(), moving[both].double()
    of_values, of_ranks = _coefficient(f, m), _coefficient(_ranks(f), _ranks(m))
    return of_ranks if of_ranks < RANKS * of_values else of_values


def _coefficient(one: torch.Tensor, other: torch.Tensor) -> float:
    """Return the correlation coefficient of two sets of values (N,); 0 where one is constant or empty."""
    if not one.numel():
        return 0.0
    a, b = one - one.mean(), other - other.mean()
    norm = float(a.norm() * b.norm())
    return float(a @ b) / norm if norm > 0 else 0.0


def _ranks(values: torch.Tensor) -> torch.Tensor:
    """Return the ranks (N,) of intensities, the same one for all that are within one of STEPS."""
    step = to_bins(values, STEPS).round().long()
    counts = torch.bincount(step, minlength=STEPS).double()
    return (counts.cumsum(0) - counts / 2)[step]


def sane(mapping: np.ndarray) -> bool:
    """Whether a map (3, 4) roughly keeps volumes and shapes."""
    if not np.isfinite(mapping).all():
        return False
    stretch = np.linalg.svd(mapping[:, :3], compute_uv=False)
    low, high = DETERMINANT
    return bool(low < np.linalg.det(mapping[:, :3]) < high and stretch[0] < ELONGATION * stretch[-1])


def distinct(ends: Sequence[Optimum], radius: float) -> list[Optimum]:
    """Return the ends, best first, without those that are close to a better one."""
    kept: list[Optimum] = []
    for end in ends:
        if all(displacement(end.mapping - other.mapping, radius) > radius / 10 for other in kept):
            kept.append(end)
    return kept
