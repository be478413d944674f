"""What the reader of a format returns: voxels as they are stored, their grid, and warnings about the file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from medkit.errors import InputError
from medkit.space import Grid

_NO_ORIENTATION = "left and right are a guess: the header states no orientation"


@dataclass(frozen=True, eq=False)
class Stored:
    """Voxels as they are in a file, before their values are checked."""

    data: np.ndarray
    """(1, I, J, K), real numbers in the type of the file, before scaling."""
    grid: Grid
    """Grid of the voxels."""
    warnings: tuple[str, ...] = ()
    """Unusual things about the file."""
    scaling: tuple[float, float] | None = None
    """Slope and intercept that turn voxels into values; None if the voxels are the values."""
    doubts: tuple[str, ...] = ()
    """What makes every result of the file doubtful."""

    @property
    def holds_integers(self) -> bool:
        """Whether the values are the integers of the file."""
        return self.scaling is None and self.data.dtype.kind in "iu"

    def values(self, kind: Any = np.float32) -> np.ndarray:
        """Return the values (1, I, J, K): integers without scaling as they are, all others as floats of type `kind`."""
        if self.scaling is None:
            return self.data if self.holds_integers else self.data.astype(kind, copy=False)
        values = np.empty_like(self.data, kind)
        for k in range(self.data.shape[3]):  # slice by slice, because the product takes double precision
            values[..., k] = self.data[..., k] * np.float64(self.scaling[0]) + self.scaling[1]
        return values


def guessed_orientation(grid: Grid, stated: bool) -> tuple[str, ...]:
    """Return the doubt about a volume whose header does not state its orientation; planes need none."""
    return () if stated or grid.is_planar else (_NO_ORIENTATION,)


class FramesError(InputError):
    """A file holds several frames and none was picked, or it has no such frame as was picked."""

    def __init__(self, message: str, count: int = 0) -> None:
        super().__init__(message)
        self.count = count


def checked_frame(path: Path, count: int, frame: int | None) -> int:
    """Return the index of the only frame of `count`, or `frame` of several.

    Raises FramesError if `frame` is missing or the file has no such frame.
    """
    if frame is None and count == 1:
        return 0
    if frame is None:
        message = f"{path}: expected one frame, got {count}; pick one with --frame N (0 to {count - 1})"
        raise FramesError(message, count)
    if not 0 <= frame < count:
        held = "one frame, 0" if count == 1 else f"the frames 0 to {count - 1}"
        raise FramesError(f"{path}: there is no frame {frame}: the file has {held}", count)
    return frame


def pick_frame(path: Path, voxels: np.ndarray, frame: int | None) -> np.ndarray:
    """Return (I, J, K) of (I, J, K, T): the only frame, or the one that is asked for. Raises FramesError."""
    return voxels[..., checked_frame(path, voxels.shape[3], frame)]


def check_real(path: Path, voxels: np.ndarray) -> None:
    """Raise InputError for colours and complex voxels."""
    if voxels.dtype.names is not None:
        raise InputError(f"{path}: expected one value per voxel, got colours (RGB)")
    if voxels.dtype.kind == "c":
        raise InputError(f"{path}: expected real voxels, got complex ones")
