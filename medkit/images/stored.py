"""What a format's reader returns: voxels as they are stored, their grid, and what was odd about the file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from medkit.errors import InputError
from medkit.space import Grid


@dataclass(frozen=True, eq=False)
class Stored:
    """Voxels as a file holds them, before the checks of their values."""

    data: np.ndarray
    """(1, I, J, K); integers where the file has no scaling, else float32."""
    grid: Grid
    """Where they are."""
    warnings: tuple[str, ...] = ()
    """What the reader noticed."""


def pick_frame(path: Path, voxels: np.ndarray, frame: int | None) -> np.ndarray:
    """(I, J, K, T) -> (I, J, K): the only frame, or the one asked for."""
    count = voxels.shape[3]
    if frame is None and count > 1:
        raise InputError(f"{path}: expected one frame, got {count}; pick one with --frame N (0 to {count - 1})")
    if frame is not None and not 0 <= frame < count:
        raise InputError(f"{path}: there is no frame {frame}: it holds the frames 0 to {count - 1}")
    return voxels[..., frame or 0]


def as_values(path: Path, voxels: np.ndarray, scaling: tuple[float, float] | None) -> np.ndarray:
    """Stored voxels as values: unscaled integers as they are, everything else as float32."""
    if voxels.dtype.names is not None:
        raise InputError(f"{path}: expected one value per voxel, got colours (RGB)")
    if voxels.dtype.kind == "c":
        raise InputError(f"{path}: expected real voxels, got complex ones")
    if scaling is None:
        return voxels if voxels.dtype.kind in "iu" else voxels.astype(np.float32, copy=False)
    values = np.empty_like(voxels, np.float32)
    for k in range(voxels.shape[2]):  # by slices: the product is in double, and need not be held whole
        values[..., k] = voxels[..., k] * np.float64(scaling[0]) + scaling[1]
    return values
