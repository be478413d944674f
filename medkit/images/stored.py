"""What the reader of a format returns: voxels as they are stored, their grid, and warnings about the file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from medkit.errors import InputError
from medkit.space import Grid


@dataclass(frozen=True, eq=False)
class Stored:
    """Voxels as they are in a file, before their values are checked."""

    data: np.ndarray
    """(1, I, J, K); integers if the file has integers without scaling, else float32."""
    grid: Grid
    """Grid of the voxels."""
    warnings: tuple[str, ...] = ()
    """Unusual things about the file."""


def checked_frame(path: Path, count: int, frame: int | None) -> int:
    """Return the index of the only frame of `count`, or `frame` if it is given. Raises InputError."""
    if frame is None and count > 1:
        raise InputError(f"{path}: expected one frame, got {count}; pick one with --frame N (0 to {count - 1})")
    if frame is not None and not 0 <= frame < count:
        raise InputError(f"{path}: there is no frame {frame}: the file has the frames 0 to {count - 1}")
    return frame or 0


def pick_frame(path: Path, voxels: np.ndarray, frame: int | None) -> np.ndarray:
    """Return (I, J, K) of (I, J, K, T): the only frame, or the one that is asked for. Raises InputError."""
    return voxels[..., checked_frame(path, voxels.shape[3], frame)]


def as_values(path: Path, voxels: np.ndarray, scaling: tuple[float, float] | None) -> np.ndarray:
    """Return stored voxels as values: integers without scaling as they are, all others as float32.

    `scaling` is slope and intercept. Raises InputError for colours and complex voxels.
    """
    if voxels.dtype.names is not None:
        raise InputError(f"{path}: expected one value per voxel, got colours (RGB)")
    if voxels.dtype.kind == "c":
        raise InputError(f"{path}: expected real voxels, got complex ones")
    if scaling is None:
        return voxels if voxels.dtype.kind in "iu" else voxels.astype(np.float32, copy=False)
    values = np.empty_like(voxels, np.float32)
    for k in range(voxels.shape[2]):  # slice by slice, because the product takes double precision
        values[..., k] = voxels[..., k] * np.float64(scaling[0]) + scaling[1]
    return values
