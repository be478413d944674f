"""Similarity of two sets of samples: its value, its slope in the moving samples and how strongly it curves.

Each function takes the fixed samples f, the moving samples m and weights w, all (N,), and gives a `Fit`, from which a
Gauss-Newton step follows. Costs fall as the images grow alike.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

    Measure = Callable[["torch.Tensor", "torch.Tensor", "torch.Tensor"], "Fit"]

BINS = 32


@dataclass(frozen=True, eq=False)
class Fit:
    """How well the moving samples fit the fixed ones."""

    cost: float
    """What the optimiser lowers."""
    slope: torch.Tensor
    """(N,) derivative of the cost in each moving sample."""
    curvature: float
    """Gauss-Newton curvature: the cost changes by curvature/2 * sum(w * d**2) when the residuals change by d."""
    invariant: tuple[torch.Tensor, ...]
    """Changes of the moving samples, (N,) each, that leave the cost as it is (brightness, contrast)."""


def correlation(f: torch.Tensor, m: torch.Tensor, w: torch.Tensor) -> Fit:
    """One minus the squared correlation coefficient: blind to brightness, contrast and its sign."""
    total = float(w.sum())
    f0, m0 = f - float(w @ f) / total, m - float(w @ m) / total
    wf, wm = w * f0, w * m0
    ff, mm, fm = float(wf @ f0), float(wm @ m0), float(wf @ m0)
    if ff <= 0 or mm <= 0:
        return Fit(1.0, 0 * w, 0.0, ())
    gain = fm / mm
    slope = (2 * gain / ff) * (gain * wm - wf)
    return Fit(1 - fm * gain / ff, slope, 2 * gain**2 / ff, (0 * m + 1, m0))


def mean_squares(f: torch.Tensor, m: torch.Tensor, w: torch.Tensor) -> Fit:
    """Mean squared difference, in units of the fixed samples' variance."""
    residual = m - f
    f0 = f - float(w @ f) / float(w.sum())
    scale = 1 / max(float((w * f0) @ f0), 1e-12)
    wr = w * residual
    return Fit(float(wr @ residual) * scale, 2 * scale * wr, 2 * scale, ())


def mutual_information(f: torch.Tensor, m: torch.Tensor, w: torch.Tensor, bins: int = BINS) -> Fit:
    """Minus the mutual information in nats (Viola 1997; Mattes 2003: hard bins for f, cubic Parzen window for m).

    Samples are binned over -0.1 .. 1.2, the levels' own scaling; what lies outside counts in the last bins.
    """
    import torch

    total = float(w.sum())
    row = to_bins(f, bins).round_().long()
    position = to_bins(m, bins)
    left = position.floor()
    part = position - left
    column = left.long() + 1
    width = bins + 3
    values, slopes = cubic(part)
    index = row * width + column - 1
    counts = [torch.bincount(index + k, w * v, bins * width) for k, v in enumerate(values)]
    joint = torch.stack(counts).sum(0, dtype=torch.float64).reshape(bins, width) / total
    pf, pm = joint.sum(1, keepdim=True), joint.sum(0, keepdim=True)
    ratio = torch.log((joint + 1e-12) / (pf * pm + 1e-12))
    information = float((joint * ratio).sum())
    table = torch.log((joint + 1e-6) / (pm + 1e-6)).float().reshape(-1)
    pull = torch.stack([s * table[index + k] for k, s in enumerate(slopes)]).sum(0)
    slope = pull * w * (-(bins - 1) / (RANGE * total))
    mean_f = torch.bincount(row, w * m, bins) / torch.bincount(row, w, bins).clamp_min(1e-9)
    rest = m - mean_f[row]
    spread = float((w * rest) @ rest) / total
    return Fit(-information, slope, 1 / (total * max(spread, 1e-4)), (0 * m + 1,))


LOW, RANGE = -0.1, 1.3


def to_bins(values: torch.Tensor, bins: int) -> torch.Tensor:
    """Samples as positions 0 .. bins - 1."""
    return ((values - LOW) * ((bins - 1) / RANGE)).clamp_(0, bins - 1 - 1e-3)


def cubic(part: torch.Tensor) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Cubic B-spline weights of the four neighbours of a point `part` of the way between the middle two; slopes."""
    t, u = part, 1 - part
    t2, u2 = t * t, u * u
    values = [u2 * u / 6, (3 * t2 * t - 6 * t2 + 4) / 6, (3 * u2 * u - 6 * u2 + 4) / 6, t2 * t / 6]
    slopes = [-u2 / 2, (3 * t2 - 4 * t) / 2, (4 * u - 3 * u2) / 2, t2 / 2]
    return values, slopes


MEASURES: dict[str, Measure] = {
    "lncc": correlation,  # of locally normalised images, see `normalised`
    "mi": functools.partial(mutual_information, bins=BINS),
    "mse": mean_squares,
}


def normalised(image: torch.Tensor, sigma: float, floor: float) -> torch.Tensor:
    """`image` minus its local mean, over its local standard deviation (Gaussian windows of `sigma` voxels).

    The correlation of two such images is local correlation (LNCC) with windows that travel with the image. `floor` is
    added to the deviation so that noise in flat background stays small.
    """
    from medkit_register.pyramid import smooth

    mean = smooth(image, sigma)
    variance = smooth(image * image, sigma) - mean * mean
    return (image - mean) / (variance.clamp_min_(0) + floor**2).sqrt_()
