"""Volumes of the structures in a bundle's labels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from medkit.images.image import Image

MOST = 1000
"""Numbers above which labels are no structures but counted objects, whose volumes are not listed."""


def volumes_of(labels: Image, names: Mapping[str, str]) -> dict[str, Any]:
    """Return `volumes_mm3`, a structure's name (or its number) -> mm3, for the sidecar; empty for 2D images.

    labels: (C, I, J, K); several channels are regions that may overlap, numbered from 1.
    names: number -> name; those that do not occur have a volume of 0.
    """
    if labels.grid.dims == 2:
        return {}
    if len(labels.data) > 1:
        counts = {str(n): int(np.count_nonzero(channel)) for n, channel in enumerate(labels.data, start=1)}
    else:
        numbers, found = _counted(labels.data[0])
        counts = {str(n): int(count) for n, count in zip(numbers, found, strict=True) if n}
    if len(counts) > MOST:
        return {}
    counts = dict.fromkeys(names, 0) | counts
    return {"volumes_mm3": {names.get(n, n): round(count * labels.grid.voxel_volume, 1) for n, count in counts.items()}}


def _counted(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the numbers that occur in labels and how often."""
    if labels.dtype.itemsize > 2:
        return np.unique(labels, return_counts=True)
    counts = np.bincount(labels.ravel())
    numbers = np.flatnonzero(counts)
    return numbers, counts[numbers]
