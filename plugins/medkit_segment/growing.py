"""Region growing from seeds."""

from __future__ import annotations

import numpy as np
from scipy import ndimage


def connected(values: np.ndarray, seeds: np.ndarray, limits: tuple[float, float]) -> np.ndarray:
    """Return the voxels (I, J, K) within `limits` that hang together with a seed by shared faces.

    seeds: (N, 3) voxel indices; those outside of `limits` grow nothing.
    """
    pieces, count = ndimage.label((values >= limits[0]) & (values <= limits[1]))
    grown = np.zeros(count + 1, bool)
    grown[pieces[tuple(seeds.T)]] = True
    grown[0] = False
    out: np.ndarray = grown[pieces]
    return out
