"""One level of an affine registration as a least-squares-like problem: sample, compare, linearise."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch.nn.functional import grid_sample

from medkit.errors import MedkitError
from medkit_register.axes import LocalAxes
from medkit_register.axis_sampling import smooth
from medkit_register.features import MetricSettings, feature, reliable, slopes
from medkit_register.pyramid import Pyramid
from medkit_register.similarity import MEASURES, Measure

CHUNKS = 4
"""Batches in which points are sampled: grid_sample runs one thread per batch entry in 3D."""
FEWEST = 50
"""Fewest points that a comparison works with."""


@dataclass(frozen=True, eq=False)
class System:
    """The cost at a map, and its quadratic model in the map's twelve entries."""

    cost: float
    """What the optimiser lowers."""
    gradient: np.ndarray
    """(12,) derivative in the entries of the (3, 4) map, row by row."""
    curvature: np.ndarray
    """(12, 12) Gauss-Newton matrix."""
    overlap: float
    """Share of the points that fall inside the moving scan."""


@dataclass(frozen=True, eq=False)
class Samples:
    """Points of the fixed scan at which the metric compares."""

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
    """(1, 4 or 5, I, J, K): the value, its slopes along the three axes, and the mask where there is one."""
    index_from_local: np.ndarray
    """(4, 4) moving local frame (mm) -> index of the level's points."""
    low: np.ndarray
    """(3,) index at which the scan starts; -inf at faces that only background touches."""
    high: np.ndarray
    """(3,) index at which the scan ends; inf at faces that only background touches."""

    @cached_property
    def normalise(self) -> tuple[np.ndarray, np.ndarray]:
        """Scale and offset (3,) that bring indices to grid_sample's -1 .. 1."""
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
        """Return moving samples and weights (K, N) at K maps, (K, 3, 4): fixed local mm -> moving local mm."""
        at = self._positions(maps)
        masked = self.target.channels.shape[1] > 4
        out = self._sample(at, self.target.channels[:, :: 4 if masked else 5])
        return out[:, 0], self._weights(at, out[:, 1] if masked else None)

    def system(self, mapping: np.ndarray) -> System:
        """Return the cost and its model at `mapping`, (3, 4): fixed local mm -> moving local mm."""
        at = self._positions(mapping[None])
        out = self._sample(at.reshape(3, CHUNKS, -1).transpose(0, 1), self.target.channels)
        out = out.transpose(0, 1).reshape(out.shape[1], -1)
        weights = self._weights(at, out[4:])[0]
        total = float(weights.sum())
        if total < FEWEST:
            return System(np.inf, np.zeros(12), np.eye(12), 0.0)
        fit = self.measure(self.samples.values, out[0], weights)
        along = torch.from_numpy(self.target.index_from_local[:3, :3].T.astype(np.float32)) @ out[1:4]
        jacobian = (along[:, None] * self.samples.points[None]).reshape(12, -1)
        gradient = (jacobian @ fit.slope).double().numpy()
        curvature = fit.curvature * gauss_newton(jacobian, weights, fit.invariant)
        return System(fit.cost, gradient, curvature, total / float(self.samples.weights.sum()))

    def _positions(self, maps: np.ndarray) -> torch.Tensor:
        """Return the indices (K, 3, N) of the points after K maps (K, 3, 4)."""
        index = self.target.index_from_local
        whole = index[:3, :3] @ maps
        whole[:, :, 3] += index[:3, 3]
        return torch.from_numpy(whole.astype(np.float32)) @ self.samples.points

    def _sample(self, at: torch.Tensor, channels: torch.Tensor) -> torch.Tensor:
        """Return (K, C, N) of `channels` (1, C, I, J, K) at indices `at` (K, 3, N); the border repeats outside."""
        scale, offset = (torch.from_numpy(v.astype(np.float32))[:, None] for v in self.target.normalise)
        grid = (at * scale + offset).flip(1).transpose(1, 2)[:, :, None, None]
        volume = channels.expand(at.shape[0], -1, -1, -1, -1)
        return grid_sample(volume, grid, mode="bilinear", padding_mode="border", align_corners=True)[..., 0, 0]

    def _weights(self, at: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """Return the fixed weights (K, N), zero outside the moving scan and its mask; `at` (K, 3, N) are indices."""
        weights = self.samples.weights.expand(at.shape[0], -1)
        for axis in range(3):
            low, high = self.target.low[axis], self.target.high[axis]
            if np.isfinite(low):
                weights = weights * (at[:, axis] >= float(low))
            if np.isfinite(high):
                weights = weights * (at[:, axis] <= float(high))
        return weights if mask is None or not mask.numel() else weights * mask


def gauss_newton(jacobian: torch.Tensor, weights: torch.Tensor, invariant: tuple[torch.Tensor, ...]) -> np.ndarray:
    """Return the weighted J J^T (12, 12) of a Jacobian (12, N), without the directions `invariant`, (N,) each."""
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
class PointSampling:
    """Which points of the fixed scan the metric compares."""

    margin: float
    """mm around the object, where the user gave no mask."""
    limit: int
    """Most points that are drawn."""
    seed: int
    """For the draw."""


def make_problem(
    fixed: Pyramid, moving: Pyramid, spacing: float, settings: MetricSettings, axes: LocalAxes, sampling: PointSampling
) -> Problem:
    """Return the comparison of two scans at one spacing (mm).

    Raises MedkitError if the fixed image or its mask leaves fewer than FEWEST points.
    """
    samples = make_samples(fixed, spacing, settings, axes.fixed, sampling)
    if samples.points.shape[1] < FEWEST:
        raise MedkitError(
            f"the fixed image or its mask leaves fewer than {FEWEST} points at {spacing:.2g} mm to compare"
        )
    return Problem(samples, make_target(moving, spacing, settings, axes.moving), MEASURES[settings.metric])


def make_samples(
    pyramid: Pyramid, spacing: float, settings: MetricSettings, world_from_local: np.ndarray, sampling: PointSampling
) -> Samples:
    """Return points of the object and its margin, or of the mask, kept with the pyramid.

    `world_from_local` (4, 4) takes local mm to RAS+ mm.
    """
    key = ("samples", spacing, settings, sampling, world_from_local.tobytes())
    if key not in pyramid.features:
        pyramid.features[key] = _draw_samples(pyramid, spacing, settings, world_from_local, sampling)
    return pyramid.features[key]  # type: ignore[return-value]


def _draw_samples(
    pyramid: Pyramid, spacing: float, settings: MetricSettings, world_from_local: np.ndarray, sampling: PointSampling
) -> Samples:
    level = pyramid.level(spacing)
    chosen = drawn(domain(pyramid, spacing, sampling.margin).reshape(-1).nonzero().squeeze(1), sampling)
    # torch.unravel_index imports sympy for its arguments' types, which takes a second
    grid = torch.from_numpy(np.stack(np.unravel_index(chosen.numpy(), level.image.shape)).astype(np.float32))
    local = torch.from_numpy((np.linalg.inv(world_from_local) @ level.affine).astype(np.float32))
    points = torch.ones(4, grid.shape[1])
    points[:3] = local[:3, :3] @ grid + local[:3, 3:]
    trust = reliable(pyramid, spacing, settings)
    weights = torch.ones(grid.shape[1]) if trust is None else trust.reshape(-1)[chosen]
    return Samples(points, feature(pyramid, spacing, settings).reshape(-1)[chosen], weights)


def domain(pyramid: Pyramid, spacing: float, margin: float) -> torch.Tensor:
    """Return which points (I, J, K) bool lie within about `margin` mm of the object and inside the user's mask."""
    level = pyramid.level(spacing)
    near = smooth((level.image > pyramid.threshold).float(), max(margin / 2 / spacing, 0.5)) > 0.02
    if level.mask is None:
        return near
    kept = level.mask > 0.5
    both = kept & near
    return both if int(both.sum()) >= FEWEST else kept


def drawn(chosen: torch.Tensor, sampling: PointSampling) -> torch.Tensor:
    """Return at most `sampling.limit` of the indices (N,), in order; their number is a multiple of CHUNKS."""
    if chosen.numel() > sampling.limit:
        draw = torch.randperm(chosen.numel(), generator=torch.Generator().manual_seed(sampling.seed))
        chosen = chosen[draw[: sampling.limit].sort().values]
    return chosen[: chosen.numel() // CHUNKS * CHUNKS]


def make_target(pyramid: Pyramid, spacing: float, settings: MetricSettings, world_from_local: np.ndarray) -> Target:
    """Return the moving scan's feature with its slopes; `world_from_local` (4, 4) takes local mm to RAS+ mm."""
    level = pyramid.level(spacing)
    image = feature(pyramid, spacing, settings)
    channels = [image, *slopes(image)]
    trust = reliable(pyramid, spacing, settings)
    if trust is not None:
        channels.append(trust)
    size = np.asarray(image.shape)
    low = np.where(pyramid.closed[:, 0], -np.inf, -0.5)
    high = np.where(pyramid.closed[:, 1], np.inf, size - 0.5)
    if pyramid.planar_axis is not None:
        low[pyramid.planar_axis], high[pyramid.planar_axis] = -np.inf, np.inf
    return Target(torch.stack(channels)[None], level.index_from_world @ world_from_local, low, high)
