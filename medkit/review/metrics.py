"""The numbers in records: flat, with names; and those that lie far from the others."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

FEWEST = 5
"""Numbers below which none of them is called an outlier."""
FAR = 3.5
"""Smallest modified z-score of an outlier (Iglewicz and Hoaglin, How to detect and handle outliers, 1993)."""


def numbers_in(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Return name -> number of nested metrics; names are joined by dots. Of lists, entries with a name are taken.

    >>> numbers_in({"after": {"ncc": 0.7}, "look": True, "volumes_mm3": {"left caudate": 4623}})
    {'after.ncc': 0.7, 'volumes_mm3.left caudate': 4623.0}
    """
    return dict(_flat(metrics, ""))


def _flat(value: Any, name: str) -> Iterator[tuple[str, float]]:
    if isinstance(value, Mapping):
        for key, entry in value.items():
            yield from _flat(entry, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list):
        for entry in value:
            own = entry.get("name") or entry.get("candidate") if isinstance(entry, Mapping) else None
            if own:
                yield from _flat(entry, f"{name}.{own}")
    elif isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        yield name, float(value)


def outliers(values: Sequence[float]) -> list[int]:
    """Return the positions of numbers that are far from the median, in units of the median absolute deviation.

    If more than half of the numbers are equal, the mean absolute deviation takes its place.
    """
    if len(values) < FEWEST:
        return []
    middle = statistics.median(values)
    distances = [abs(value - middle) for value in values]
    # 0.6745 and 0.7979: these deviations of a normal distribution, in standard deviations
    scale = statistics.median(distances) / 0.6745 or statistics.fmean(distances) / 0.7979
    return [n for n, distance in enumerate(distances) if scale and distance > FAR * scale]
