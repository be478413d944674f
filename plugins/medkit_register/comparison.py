"""How well two scans match under a warp at one stage, and the forces that pull the warp towards a better match."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn.functional import max_pool3d

from medkit_register.features import MetricSettings, slope, slopes
from medkit_register.lattice_features import LatticeFeatures, features_on, fixed_features
from medkit_register.pyramid import Pyramid
from medkit_register.similarity import MEASURES
from medkit_register.stages import Stage
from medkit_register.warp import Lattice, Sampler, at_phase, indices

NEAR = 4.0
"""Steps of the finest lattice around the objects within which points are compared."""
UNIT = 0.3
"""mse and mi: intensities (0 .. 1) are divided by this, about their deviation, so that all metrics take equal steps."""


@dataclass(frozen=True, eq=False)
class Comparison:
    """The two scans at one stage, both brought by the affine map to a lattice in the fixed space."""

    metric: str
    """lncc, mi, mse or mind."""
    matrix: np.ndarray
    """(4, 4) RAS+ mm, the affine map, fixed points to moving points."""
    cells: tuple[int, int, int]
    """Shape of the warp's lattice."""
    ratio: float
    """Steps of the images' lattice in one of the warp's: 1 or 2."""
    phases: tuple[tuple[int, ...], ...]
    """Which point of each cell is compared, in turns."""
    near: torch.Tensor
    """(N,) the cells that are compared, as indices of the flattened lattice."""
    fixed: tuple[torch.Tensor, ...]
    """Per phase the fixed values, (N,); for mind (C, N)."""
    trust: tuple[torch.Tensor, ...] | None
    """Per phase the weights of the fixed points, (N,) 0..1; None: all 1."""
    positions: tuple[torch.Tensor, ...]
    """Per phase the points, (3, N), prepared for `moving`."""
    moving: Sampler
    """Moving value, its three slopes per finest step, and a weight where there is one.

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
        """Return the comparison of one stage; `matrix` and `metric` are as in `register_deformable`."""
        images, cells = finest.coarser(stage.image), finest.coarser(stage.warp).shape
        detail = finest.coarser(stage.detail or stage.image)
        settings = MetricSettings(metric, stage.window)
        first = fixed_features(fixed, images, detail, settings, device)
        second = features_on(moving, images, detail, matrix, settings, device)
        near = neighbourhood(first.on_object, second.on_object, stage)
        sampler = moving_sampler(second, stage)
        every = [2 if n != c else 1 for n, c in zip(images.shape, cells, strict=True)]
        phases = in_turns(every)
        points = indices(cells, device).reshape(3, -1)[:, near]
        steps, corners = (torch.tensor(n, dtype=torch.float32).to(device)[..., None] for n in (every, phases))
        trust = None if first.trust is None else per_phase(first.trust, phases, every, near)
        positions = tuple(sampler.prepared(points * steps + corner) for corner in corners)
        values = per_phase(first.values, phases, every, near)
        return cls(
            metric, matrix, cells, float(max(every)), phases, near, values, trust, positions, sampler, stage.image
        )

    def no_warp(self) -> torch.Tensor:
        """Return the field (3, I, J, K) that moves no point of the warp's lattice."""
        return self.fixed[0].new_zeros(3, *self.cells)

    def forces(self, warp: torch.Tensor, turn: int) -> tuple[torch.Tensor, float]:
        """Return residual times slopes and squared slopes, (4, N) at the near cells, and the mean squared residual."""
        number = turn % len(self.phases)
        at = self._moved(warp, number)
        out = self.moving.at_prepared(at)
        if self.metric == "mind":
            return self._descriptor_forces(number, at, out)
        weights = self._weights(number, out[4:])
        residual, unit, cost = self._residual(self.fixed[number], out[0], weights)
        along = out[1:4] / unit if unit != 1.0 else out[1:4]
        square = (along * along).sum(0, keepdim=True)
        if weights is not None:
            residual, square = residual * weights, square * weights
        return torch.cat([along * residual, square]), cost

    def mismatch(self, warp: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return squared residuals and weights, (N,) each, at the near cells; not for mi."""
        out, fixed = self.moving.at_prepared(self._moved(warp, 0)), self.fixed[0]
        count = len(fixed) if fixed.ndim > 1 else 1
        squares = (out[:count] - fixed).square().sum(0)
        weights = self._weights(0, out[count + (1 if count > 1 else 3) :])
        weights = torch.ones_like(squares) if weights is None else weights
        return squares * weights, weights

    def _moved(self, warp: torch.Tensor, number: int) -> torch.Tensor:
        """Return where the points (3, N) of a phase are after the warp, prepared for `moving`."""
        moved = at_phase(warp, self.phases[number]) if len(self.phases) > 1 else warp
        at = self.positions[number].clone()
        for axis in range(3):
            shift = moved[axis].reshape(-1).index_select(0, self.near)
            at[axis].add_(shift, alpha=self.ratio * self.moving.scale[axis])
        return at

    def _descriptor_forces(self, number: int, at: torch.Tensor, out: torch.Tensor) -> tuple[torch.Tensor, float]:
        """Return `forces` for descriptors (C, N), of whose squared slopes only the sum was sampled."""
        fixed = self.fixed[number]
        count = len(fixed)
        residual, square = out[:count] - fixed, out[count : count + 1]
        weights = self._weights(number, out[count + 1 :])
        total = float(residual.shape[1] if weights is None else weights.sum())
        weighted = residual
        if weights is not None:
            weighted, square = residual * weights, square * weights
        cost = float(weighted.flatten() @ residual.flatten()) / max(total, 1.0)
        return torch.cat([self.moving.weighted_slopes(at, weighted).div_(self.step), square]), cost

    def _weights(self, number: int, moving: torch.Tensor) -> torch.Tensor | None:
        """Return the product (N,) of both scans' weights; None: all 1. `moving` (1 or 0, N) are the moving scan's."""
        trust = None if self.trust is None else self.trust[number]
        if not len(moving):
            return trust
        return moving[0] if trust is None else moving[0] * trust

    def _residual(
        self, fixed: torch.Tensor, moving: torch.Tensor, weights: torch.Tensor | None
    ) -> tuple[torch.Tensor, float, float]:
        """Return by how much the moving values are too high (N,), the unit of both, and the cost.

        The cost is the mean squared residual. For mi the residual is the change of the moving values in one
        Gauss-Newton step of `similarity`, and the cost is their variance that the fixed values do not explain.
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
        # the slope includes the weight, and `forces` multiplies by it once more
        residual = fit.slope / (curvature * unit) / ones.clamp_min(1e-3)
        return residual, unit, 1 / (curvature * max(float(ones.sum()), 1.0) * unit**2)


def moving_sampler(features: LatticeFeatures, stage: Stage) -> Sampler:
    """Return the sampler of `Comparison.moving`."""
    values = features.values
    if values.ndim > 3:
        channels = [values, squared_slopes(values, stage.image)[None]]
    else:
        channels = [values[None], slopes(values) / stage.image]
    if features.trust is not None:
        channels.append(features.trust[None])
    return Sampler(torch.cat(channels))


def per_phase(
    image: torch.Tensor, phases: Sequence[tuple[int, ...]], every: Sequence[int], near: torch.Tensor
) -> tuple[torch.Tensor, ...]:
    """Return for each phase the values (..., N) of an image (..., I, J, K) in the cells `near`.

    A cell has `every` (3,) points along each axis.
    """
    picked = []
    for phase in phases:
        a, b, c = (slice(p, None, e) for p, e in zip(phase, every, strict=True))
        picked.append(image[..., a, b, c].flatten(-3)[..., near])
    return tuple(picked)


def squared_slopes(values: torch.Tensor, step: int) -> torch.Tensor:
    """Return squared slopes (I, J, K) of values (C, I, J, K) per finest step, summed over axes and values.

    Points are `step` finest steps apart.
    """
    total = torch.zeros_like(values[0])
    for value in values:
        for axis in range(3):
            along = slope(value, axis)
            total.addcmul_(along, along)
    return total.div_(step**2)


def neighbourhood(fixed: torch.Tensor, moving: torch.Tensor, stage: Stage) -> torch.Tensor:
    """Return the indices (N,) of the warp's cells near either object; `fixed` and `moving` are (I, J, K) bool."""
    on = (fixed | moving).float()[None, None]
    factor = stage.warp // stage.image
    if factor > 1:
        on = max_pool3d(on, tuple(factor if n > 1 else 1 for n in fixed.shape))
    reach = max(1, round(NEAR / stage.warp))
    for axis in range(3):  # axis by axis, which is faster than a box at once
        along = tuple(reach if a == axis and n > 1 else 0 for a, n in enumerate(on.shape[2:]))
        on = max_pool3d(on, tuple(2 * n + 1 for n in along), 1, along)
    return on.reshape(-1).nonzero().squeeze(1)


def in_turns(every: Sequence[int]) -> tuple[tuple[int, ...], ...]:
    """Return the points of a cell of `every` (3,) points along each axis, each followed by the opposite one."""
    points = list(itertools.product(*[range(e) for e in every]))
    half = points[: len(points) // 2]
    opposite = [tuple(e - 1 - p for p, e in zip(point, every, strict=True)) for point in half]
    return tuple(itertools.chain(*zip(half, opposite, strict=True))) or tuple(points)
