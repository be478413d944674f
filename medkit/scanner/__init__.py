"""How a scanner turns a body into voxels: sampling along each axis, and noise.

The face of this package for plugins.
"""

from __future__ import annotations

from medkit.scanner.acquisition import Acquisition, acquisition_of, refined
from medkit.scanner.noise import Noise, estimate, span, with_floor, without_floor

__all__ = [
    "Acquisition",
    "Noise",
    "acquisition_of",
    "estimate",
    "refined",
    "span",
    "with_floor",
    "without_floor",
]
