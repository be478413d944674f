"""Bootstrap intervals (Efron 1979), for measures that are not means over the cases, such as an AUC."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

import numpy as np

from medkit.evaluation.results import RESAMPLES

_CELLS = 4_000_000
"""Number of weights in memory at once: 32 MB of them."""

Measure = Callable[[np.ndarray], Mapping[str, np.ndarray]]
"""Function of weights (R, N) of N cases that returns name -> values (R, ...), one for each of R weightings."""


@dataclass(frozen=True)
class Estimate:
    """A measure over all cases, with its 95 % interval."""

    value: float
    """NaN if it is not defined."""
    low: float
    """2.5th percentile over bootstrap samples of the cases; NaN for one case."""
    high: float
    """97.5th percentile over bootstrap samples of the cases; NaN for one case."""


def estimates(measure: Measure, count: int, seed: int = 0, inflated: Collection[str] = ()) -> dict[str, Estimate]:
    """Return measures over `count` cases with their intervals; each has to be one number for each weighting.

    `inflated` names errors that resampling makes larger, as it does with a mean of absolute values: their samples are
    shifted so that their mean equals the measure itself, but not below 0.
    """
    values = {name: float(value[0]) for name, value in measure(np.ones((1, count))).items()}
    if count < 2:
        return {name: Estimate(value, float("nan"), float("nan")) for name, value in values.items()}
    drawn = resampled(measure, count, seed)
    for name in inflated:
        drawn[name] = np.maximum(drawn[name] - drawn[name].mean() + values[name], 0)
    return {name: Estimate(value, *interval(drawn[name])) for name, value in values.items()}


def resampled(measure: Measure, count: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Return measures over `RESAMPLES` bootstrap samples of `count` cases; the same seed draws the same samples."""
    rng = np.random.default_rng(seed)
    size = max(1, _CELLS // count)
    parts = []
    for first in range(0, RESAMPLES, size):
        rows = min(size, RESAMPLES - first)
        picks = rng.integers(count, size=(rows, count)) + count * np.arange(rows)[:, None]
        parts.append(measure(np.bincount(picks.ravel(), minlength=rows * count).reshape(rows, count).astype(float)))
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def interval(drawn: np.ndarray) -> tuple[float, float]:
    """Return the 2.5th and 97.5th percentile of the finite values among (R,); NaN if there are none."""
    finite = drawn[np.isfinite(drawn)]
    if not len(finite):
        return float("nan"), float("nan")
    low, high = np.percentile(finite, (2.5, 97.5))
    return float(low), float(high)
