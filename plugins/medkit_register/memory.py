"""The memory that a registration needs; imports nothing heavy, since it is asked before the work starts."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from medkit.space import Grid

LARGEST_LATTICE = 8_000_000
"""Most points of a warp's finest lattice, which bounds the memory. A brain has four million at 1 mm."""
_PROGRAM_BYTES = 400 * 2**20
"""Memory of Python and its libraries, torch included."""
_BYTES_PER_VOXEL = 75
"""Memory per voxel of the fixed and of the moving scan."""
_BYTES_PER_POINT = {"fast": 50, "default": 70, "best": 350}
"""Memory per point of the finest lattice, by quality."""


def memory_needed(fixed: Path, moving: Grid, *, quality: str | None) -> int:
    """Return the bytes that aligning a series of images takes at its peak.

    The images lie on grids like `moving`; `quality` is that of the warp, None where there is no warp. Measured on
    brains of 5.5 million voxels (peak_rss_mb of the last of four): 1.1 GB for affine maps, 1.4 GB with a warp, 3.0 GB
    with a warp of quality `best`.
    """
    from medkit.images import read_grid

    voxels = [int(np.prod(grid.shape)) for grid in (read_grid(fixed), moving)]
    needed = _PROGRAM_BYTES + _BYTES_PER_VOXEL * sum(voxels)
    if quality is not None:
        needed += _BYTES_PER_POINT[quality] * min(voxels[0], LARGEST_LATTICE)
    return needed
