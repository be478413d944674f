"""Similarity of two sets of samples: its value, its slope in the moving samples and how strongly it curves.

Each measure takes the fixed samples f, the moving samples m and weights w, all (N,), and returns a `Fit`, from which a
Gauss-Newton step follows. Costs fall as the images become more similar.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from medkit_register.axis_sampling import smooth

BINS = 32
"""Bins of each scan's intensities for mutual information."""
LOW, RANGE = -0.1, 1.3
"""Intensities that are binned: from LOW on, RANGE wide. Levels run from 0 to 1."""


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


Measure = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], Fit]


def correlation(f: torch.Tensor, m: torch.Tensor, w: torch.Tensor) -> Fit:
    """Return one minus the squared correlation coefficient, which ignores brightness, contrast and its sign."""
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
    """Return the mean squared difference, in units of the fixed samples' variance."""
    residual = m - f
    f0 = f - float(w @ f) / float(w.sum())
    scale = 1 / max(float((w * f0) @ f0), 1e-12)
    wr = w * residual
    return Fit(float(wr @ residual) * scale, 2 * scale * wr, 2 * scale, ())


def mutual_information(f: torch.Tensor, m: torch.Tensor, w: torch.Tensor, bins: int = BINS) -> Fit:
    """Return minus the mutual information, in nats (Viola 1997; Mattes 2003).

    The fixed samples have hard bins, the moving samples a cubic Parzen window. Samples are binned from -0.1 to 1.2;
    samples outside count in the first or last bin.
    """
    total = float(w.sum())
    row = to_bins(f, bins).round_().long()
    position = to_bins(m, bins)
    left = position.floor()
    part = position - left
    column = left.long() + 1
    width = bins + 3
    values, slopes = cubic_weights(part)
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


def to_bins(values: torch.Tensor, bins: int) -> torch.Tensor:
    """Return samples as positions 0 .. bins - 1."""
    return ((values - LOW) * ((bins - 1) / RANGE)).clamp_(0, bins - 1 - 1e-3)


def cubic_weights(part: torch.Tensor) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Return cubic B-spline weights of a point's four neighbours, and their slopes.

    `part` is the point's position between the middle two, 0 .. 1.
    """
    t, u = part, 1 - part
    t2, u2 = t * t, u * u
    values = [u2 * u / 6, (3 * t2 * t - 6 * t2 + 4) / 6, (3 * u2 * u - 6 * u2 + 4) / 6, t2 * t / 6]
    slopes = [-u2 / 2, (3 * t2 - 4 * t) / 2, (4 * u - 3 * u2) / 2, t2 / 2]
    return values, slopes


def normalised(image: torch.Tensor, sigma: float, floor: float) -> torch.Tensor:
    """Return `image` minus its local mean, over its local standard deviation (Gaussian windows of `sigma` points).

    The correlation of two such images is local correlation (LNCC) with windows that travel with the image. `floor` is
    added to the deviation, so that noise in flat background stays small.
    """
    mean = smooth(image, sigma)
    variance = smooth(image * image, sigma) - mean * mean
    return (image - mean) / (variance.clamp_min_(0) + floor**2).sqrt_()


MEASURES: dict[str, Measure] = {
    "lncc": correlation,  # of images that `normalised` returns
    "mi": mutual_information,
    "mse": mean_squares,
}
"""Metric -> its measure."""
