"""One level of an affine registration as a least-squares-like problem: sample, compare, linearise."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from medkit.errors import MedkitError
from medkit_register.similarity import MEASURES, normalised

if TYPE_CHECKING:
    import torch

    from medkit_register.axes import LocalAxes
    from medkit_register.pyramid import Pyramid
    from medkit_register.similarity import Measure

CHUNKS = 4
"""Points are sampled in this many batches: grid_sample runs one thread per batch entry in 3D."""
FEWEST = 50
"""Points that a comparison needs at least."""


@dataclass(frozen=True, eq=False)
class System:
    """The cost at a map and its quadratic model in the map's twelve entries."""

    cost: float
    """What is lowered."""
    gradient: np.ndarray
    """(12,) derivative in the entries of the (3, 4) map, row by row."""
    curvature: np.ndarray
    """(12, 12) Gauss-Newton matrix."""
    overlap: float
    """Share of the points that fall inside the moving scan."""


@dataclass(frozen=True, eq=False)
class Samples:
    """Points of the fixed scan that the metric looks at."""

    points: torch.Tensor
    """(4, N) coordinates in the fixed local frame (mm), with a row of ones."""
    values: torch.Tensor
    """(N,) fixed samples."""
    weights: torch.Tensor
    """(N,) 0..1."""


@dataclass(frozen=True, eq=False)
class Target:
    """The moving scan, ready to be sampled together with its slopes."""

    channels: torch.Tensor
    """(1, 4 or 5, I, J, K): value, its slopes along the three lattice axes, and the mask where there is one."""
    index_from_local: np.ndarray
    """(4, 4) moving local frame (mm) -> lattice index."""
    low: np.ndarray
    """(3,) lattice index where the scan begins; -inf at faces that only background touches."""
    high: np.ndarray
    """(3,) lattice index where it ends; inf likewise."""

    @cached_property
    def normalise(self) -> tuple[np.ndarray, np.ndarray]:
        """Scale and offset (3,) that take lattice indices to grid_sample's -1 .. 1."""
        size = np.asarray(self.channels.shape[2:])
        scale = np.where(size > 1, 2 / np.maximum(size - 1, 1), 0.0)
        return scale, np.where(size > 1, -1.0, 0.0)


@dataclass(frozen=True, eq=False)
class Problem:
    """Samples of the fixed scan, the moving scan and a measure."""

    samples: Samples
    target: Target
    measure: Measure

    def look_up(self, maps: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """(K, N) moving samples and weights at K maps, (K, 3, 4): fixed local mm -> moving local mm."""
        at = self._positions(maps)
        masked = self.target.channels.shape[1] > 4
        out = self._sample(at, self.target.channels[:, :: 4 if masked else 5])
        return out[:, 0], self._weights(at, out[:, 1] if masked else None)

    def _positions(self, maps: np.ndarray) -> torch.Tensor:
        """(K, 3, N) lattice indices of the mapped points."""
        import torch

        index = self.target.index_from_local
        whole = index[:3, :3] @ maps
        whole[:, :, 3] += index[:3, 3]
        return torch.from_numpy(whole.astype(np.float32)) @ self.samples.points

    def system(self, mapping: np.ndarray) -> System:
        """The cost and its model at `mapping`, (3, 4): fixed local mm -> moving local mm."""
        import torch

        at = self._positions(mapping[None])
        out = self._sample(at.reshape(3, CHUNKS, -1).transpose(0, 1), self.target.channels)
        out = out.transpose(0, 1).reshape(out.shape[1], -1)
        weights = self._weights(at, out[4:])[0]
        total = float(weights.sum())
        if total < FEWEST:
            return System(np.inf, np.zeros(12), np.eye(12), 0.0)
        fit = self.measure(self.samples.values, out[0], weights)
        slopes = torch.from_numpy(self.target.index_from_local[:3, :3].T.astype(np.float32)) @ out[1:4]
        jacobian = (slopes[:, None] * self.samples.points[None]).reshape(12, -1)
        gradient = (jacobian @ fit.slope).double().numpy()
        curvature = fit.curvature * gauss_newton(jacobian, weights, fit.invariant)
        return System(fit.cost, gradient, curvature, total / float(self.samples.weights.sum()))

    def _sample(self, at: torch.Tensor, channels: torch.Tensor) -> torch.Tensor:
        """(K, C, N) of `channels` (1, C, I, J, K) at lattice indices `at` (K, 3, N); the border repeats outside."""
        import torch
        from torch.nn.functional import grid_sample

        scale, offset = (torch.from_numpy(v.astype(np.float32))[:, None] for v in self.target.normalise)
        grid = (at * scale + offset).flip(1).transpose(1, 2)[:, :, None, None]
        volume = channels.expand(at.shape[0], -1, -1, -1, -1)
        return grid_sample(volume, grid, mode="bilinear", padding_mode="border", align_corners=True)[..., 0, 0]

    def _weights(self, at: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """(K, N) the fixed weights, zero outside the moving scan and its mask; `at` (K, 3, N) in lattice indices."""
        weights = self.samples.weights.expand(at.shape[0], -1)
        for axis in range(3):
            low, high = self.target.low[axis], self.target.high[axis]
            if np.isfinite(low):
                weights = weights * (at[:, axis] >= float(low))
            if np.isfinite(high):
                weights = weights * (at[:, axis] <= float(high))
        return weights if mask is None or not mask.numel() else weights * mask


def gauss_newton(jacobian: torch.Tensor, weights: torch.Tensor, invariant: tuple[torch.Tensor, ...]) -> np.ndarray:
    """(12, 12) weighted J J^T of a Jacobian (12, N) from which the directions `invariant`, (N,) each, are projected."""
    import torch

    weighted = jacobian * weights
    matrix = (weighted @ jacobian.T).double().numpy()
    if not invariant:
        return matrix
    free = torch.stack(invariant)
    cross = (weighted @ free.T).double().numpy()
    inner = ((free * weights) @ free.T).double().numpy()
    inner += 1e-9 * np.trace(inner) * np.eye(len(inner))
    return matrix - cross @ np.linalg.solve(inner, cross.T)


@dataclass(frozen=True)
class MetricSettings:
    """What of a level the metric sees."""

    metric: str
    """A key of MEASURES, or mind."""
    window: float
    """lncc: the window's standard deviation in lattice steps; mind: about that of what a descriptor rests on."""
    floor: float = 0.05
    """lncc: added to local deviations (levels run 0..1), so that noise in flat regions stays small."""


def feature(pyramid: Pyramid, spacing: float, look: MetricSettings) -> torch.Tensor:
    """(I, J, K) the image that the metric compares, kept with the pyramid."""
    level = pyramid.level(spacing)
    if look.metric != "lncc":
        return level.image
    key = (spacing, look)
    if key not in pyramid.features:
        pyramid.features[key] = normalised(level.image, look.window, look.floor)
    return pyramid.features[key]  # type: ignore[return-value]


@dataclass(frozen=True)
class Sampling:
    """Which points of the fixed scan the metric looks at."""

    margin: float
    """mm around the object, where the user gave no mask."""
    limit: int
    """At most so many points."""
    seed: int
    """For their draw."""


def make_samples(
    pyramid: Pyramid, spacing: float, look: MetricSettings, frame: np.ndarray, sampling: Sampling
) -> Samples:
    """Points of the object and its margin, or of the mask, kept with the pyramid.

    `frame` (4, 4) takes local mm to RAS+ mm.
    """
    key = ("samples", spacing, look, sampling, frame.tobytes())
    if key not in pyramid.features:
        pyramid.features[key] = _samples(pyramid, spacing, look, frame, sampling)
    return pyramid.features[key]  # type: ignore[return-value]


def _samples(pyramid: Pyramid, spacing: float, look: MetricSettings, frame: np.ndarray, sampling: Sampling) -> Samples:
    import torch

    level = pyramid.level(spacing)
    chosen = drawn(domain(pyramid, spacing, sampling.margin).reshape(-1).nonzero().squeeze(1), sampling)
    # torch.unravel_index imports sympy for its arguments' types: a second
    grid = torch.from_numpy(np.stack(np.unravel_index(chosen.numpy(), level.image.shape)).astype(np.float32))
    local = torch.from_numpy((np.linalg.inv(frame) @ level.affine).astype(np.float32))
    points = torch.ones(4, grid.shape[1])
    points[:3] = local[:3, :3] @ grid + local[:3, 3:]
    trust = reliable(pyramid, spacing, look)
    weights = torch.ones(grid.shape[1]) if trust is None else trust.reshape(-1)[chosen]
    return Samples(points, feature(pyramid, spacing, look).reshape(-1)[chosen], weights)


def reliable(pyramid: Pyramid, spacing: float, look: MetricSettings) -> torch.Tensor | None:
    """(I, J, K) 0..1: how far each point's feature rests on voxels inside the scan and its mask; None: all wholly.

    A window of lncc that reaches out compares other tissue than its counterpart in the other scan.
    """
    from medkit_register.pyramid import smooth

    level = pyramid.level(spacing)
    if look.metric not in ("lncc", "mind"):
        return level.mask
    inside = None
    if level.mask is not None:
        inside = level.mask * ramp(smooth(level.mask, look.window))
    for axis, closed in enumerate(pyramid.closed):
        if axis != pyramid.planar_axis and not closed.all():
            along = from_borders(level.image.shape[axis], look.window, closed)
            shape = [-1 if a == axis else 1 for a in range(3)]
            inside = (level.image * 0 + 1 if inside is None else inside) * along.reshape(shape)
    return inside


def ramp(share: torch.Tensor) -> torch.Tensor:
    """The weight of a window that lies inside by `share`: 0 for a half, 1 for nearly all."""
    return ((share - 0.5) / 0.45).clamp(0, 1)


def from_borders(size: int, window: float, closed: np.ndarray) -> torch.Tensor:
    """(size,) weights along an axis that fall towards the ends (low, high) that are not closed."""
    import torch

    steps = torch.arange(size) + 0.5
    ends = [
        torch.ones(size) if shut else ramp(torch.special.ndtr(d / window))
        for shut, d in zip(closed, (steps, steps.flip(0)), strict=True)
    ]
    return ends[0] * ends[1]


def domain(pyramid: Pyramid, spacing: float, margin: float) -> torch.Tensor:
    """(I, J, K) bool: within about `margin` mm of the object and inside the user's mask."""
    from medkit_register.pyramid import smooth

    level = pyramid.level(spacing)
    near = smooth((level.image > pyramid.threshold).float(), max(margin / 2 / spacing, 0.5)) > 0.02
    if level.mask is None:
        return near
    kept = level.mask > 0.5
    both = kept & near
    return both if int(both.sum()) >= FEWEST else kept


def drawn(chosen: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    """At most `limit` of the indices, in order, a multiple of CHUNKS."""
    import torch

    if chosen.numel() > sampling.limit:
        draw = torch.randperm(chosen.numel(), generator=torch.Generator().manual_seed(sampling.seed))
        chosen = chosen[draw[: sampling.limit].sort().values]
    return chosen[: chosen.numel() // CHUNKS * CHUNKS]


def make_target(pyramid: Pyramid, spacing: float, look: MetricSettings, frame: np.ndarray) -> Target:
    """The moving scan's feature with its slopes, in the local frame `frame` (4, 4): local mm -> RAS+ mm."""
    import torch

    level = pyramid.level(spacing)
    image = feature(pyramid, spacing, look)
    channels = [image, *(slope(image, axis) for axis in range(3))]
    trust = reliable(pyramid, spacing, look)
    if trust is not None:
        channels.append(trust)
    size = np.asarray(image.shape)
    low = np.where(pyramid.closed[:, 0], -np.inf, -0.5)
    high = np.where(pyramid.closed[:, 1], np.inf, size - 0.5)
    if pyramid.planar_axis is not None:
        low[pyramid.planar_axis], high[pyramid.planar_axis] = -np.inf, np.inf
    return Target(torch.stack(channels)[None], level.index_from_world @ frame, low, high)


def slope(image: torch.Tensor, axis: int) -> torch.Tensor:
    """Central differences along an axis, zero at its two ends."""
    import torch

    out = torch.zeros_like(image)
    size = image.shape[axis]
    if size > 2:
        difference = image.narrow(axis, 2, size - 2) - image.narrow(axis, 0, size - 2)
        out.narrow(axis, 1, size - 2).copy_(difference).mul_(0.5)
    return out


def make_problem(
    fixed: Pyramid, moving: Pyramid, spacing: float, look: MetricSettings, frames: LocalAxes, sampling: Sampling
) -> Problem:
    """The comparison of two scans at one spacing (mm)."""
    samples = make_samples(fixed, spacing, look, frames.fixed, sampling)
    if samples.points.shape[1] < FEWEST:
        raise MedkitError(
            f"the fixed image or its mask leaves fewer than {FEWEST} points at {spacing:.2g} mm to compare"
        )
    return Problem(samples, make_target(moving, spacing, look, frames.moving), MEASURES[look.metric])
