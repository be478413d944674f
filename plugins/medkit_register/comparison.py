"""How two images are compared on one lattice of points during a deformable registration."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from medkit_register.descriptors import descriptors
from medkit_register.problem import MetricSettings, reliable, slope
from medkit_register.similarity import MEASURES, normalised
from medkit_register.warp import Lattice, Sampler, at_phase, gradient, indices, inside, spacings

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

    from medkit_register.pyramid import Pyramid
    from medkit_register.stages import Stage

NEAR = 4.0
"""Steps of the finest lattice around the objects within which points are compared."""
UNIT = 0.3
"""mse and mi: intensities (0 .. 1) are divided by this, about their deviation, so that all metrics step alike."""
Side = tuple["torch.Tensor", "torch.Tensor", "torch.Tensor | None"]
"""A scan at one resolution: what is compared, where the object is (I, J, K) bool, and how far to trust it."""


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
        look = MetricSettings(metric, stage.window)
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


def fixed_side(fixed: Pyramid, lattice: Lattice, detail: Lattice, look: MetricSettings, device: str) -> Side:
    """The fixed scan's side, kept with its pyramid for further moving scans; descriptors are too large for that."""
    if look.metric == "mind":
        return one_side(fixed, lattice, detail, np.eye(4), look, device)
    key = ("side", lattice.shape, lattice.affine.tobytes(), look)
    if key not in fixed.features:
        fixed.features[key] = one_side(fixed, lattice, detail, np.eye(4), look, device)
    return fixed.features[key]  # type: ignore[return-value]


def one_side(
    pyramid: Pyramid, lattice: Lattice, detail: Lattice, matrix: np.ndarray, look: MetricSettings, device: str
) -> Side:
    """A scan on `lattice`, whose points `matrix` (4, 4) RAS+ mm takes to it; what is compared is made on `detail`."""
    image, trust = on_lattice(pyramid, detail, matrix, look, device)
    on = averaged(image, lattice) > 0.3 * pyramid.threshold
    compared = averaged(comparable(image, look, pyramid.threshold), lattice)
    return compared, on, None if trust is None else averaged(trust, lattice)


def on_lattice(
    pyramid: Pyramid, lattice: Lattice, matrix: np.ndarray, look: MetricSettings, device: str
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


def comparable(image: torch.Tensor, look: MetricSettings, threshold: float) -> torch.Tensor:
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
