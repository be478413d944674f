"""Slices of a DICOM series as a stack: their order, their grid, and even steps between them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from medkit.errors import InputError
from medkit.images.dicom_headers import DicomHeader, DicomSlice
from medkit.space import Grid, lps_affine

TILT_TOLERANCE = 0.5
"""Degrees between the stack and the normal of the slices; smaller angles are rounding errors, not a gantry tilt."""
SPACING_TOLERANCE = 0.05
"""Share of the usual step by which an even step between slices may differ from it."""
MOST_NEW_SLICES = 4
"""An uneven stack gets at most this many times as many slices when it is made even."""


def volumes_of(path: Path, headers: Sequence[DicomHeader]) -> list[list[DicomSlice]]:
    """Return the slices in the order of their positions, a list for each frame (time point, echo) of the series.

    Raises InputError for slices that do not fit together.
    """
    first = headers[0]
    for header in headers:
        same = header.shape == first.shape and np.allclose(header.spacing[:2], first.spacing[:2], rtol=1e-3)
        if not same or not np.allclose(header.directions, first.directions, atol=1e-3):
            raise InputError(f"{path}: expected slices of one size and orientation, but {header.path.name} differs")
    slices = [part for header in headers for part in header.slices]
    if len(slices) > 1 and not all(part.has_position for part in slices):
        if len(headers) == 1:
            return [[part] for part in slices]
        raise InputError(f"{path}: expected slices with a position, got some without Image Position (Patient)")
    return _by_position(path, slices, first.directions[:, 2])


def _by_position(path: Path, slices: Sequence[DicomSlice], normal: np.ndarray) -> list[list[DicomSlice]]:
    """Return the slices as volumes: the n-th slice at each position, in file order, belongs to volume n."""
    heights = [float(part.origin @ normal) for part in slices]
    order = sorted(range(len(slices)), key=lambda number: heights[number])  # stable: file order at equal heights
    positions: list[list[DicomSlice]] = []
    last = -np.inf
    for number in order:
        if heights[number] - last > 1e-2:
            positions.append([])
        positions[-1].append(slices[number])
        last = heights[number]
    counts = sorted({len(position) for position in positions})
    if len(counts) > 1:
        raise InputError(
            f"{path}: expected as many slices at each position, got {counts[0]} at some and {counts[-1]} at others: "
            "a slice is missing, or there is one too many"
        )
    in_file_order = [sorted(position, key=lambda part: (str(part.path), part.index)) for position in positions]
    return [list(volume) for volume in zip(*in_file_order, strict=True)]


def grid_of(path: Path, header: DicomHeader, slices: Sequence[DicomSlice]) -> tuple[Grid, list[str]]:
    """Return the grid of one volume, sheared if the gantry was tilted, and warnings. Raises InputError."""
    origins = np.array([part.origin for part in slices])
    count = len(slices)
    directions, spacing, warnings = header.directions.copy(), header.spacing.copy(), []
    if not slices[0].has_position:
        warnings.append("the file does not state the position of the image: orientation and left/right are a guess")
    if len(slices) > 1:
        normal = directions[:, 2]
        count, uneven = _even_count(path, heights_of(header, slices))
        warnings += uneven
        step = (origins[-1] - origins[0]) / (count - 1)
        tilt = float(np.degrees(np.arccos(np.clip(step @ normal / np.linalg.norm(step), -1, 1))))
        if tilt > TILT_TOLERANCE:
            warnings.append(f"gantry tilt of {tilt:.1f} degrees: the grid is sheared")
            spacing[2] = np.linalg.norm(step)
            directions[:, 2] = step / spacing[2]
        else:
            spacing[2] = step @ normal
    return Grid((*header.shape, count), lps_affine(directions, spacing, origins[0])), warnings


def heights_of(header: DicomHeader, slices: Sequence[DicomSlice]) -> np.ndarray:
    """Return the positions (K,) mm of slices along their normal."""
    return np.array([part.origin @ header.directions[:, 2] for part in slices])


def _even_count(path: Path, heights: np.ndarray) -> tuple[int, list[str]]:
    """Return the number of slices of an even stack with the extent of this one, and a warning if this one is uneven.

    Raises InputError if a slice is missing.
    """
    even = _even(heights)
    if even.all():
        return len(heights), []
    steps = np.diff(heights)
    times = steps / np.median(steps)
    hole = ~even & (np.rint(times) >= 2) & (np.abs(times - np.rint(times)) <= SPACING_TOLERANCE * times)
    if (hole | even).all() and hole.sum() < len(steps) / 4:
        at = int(np.flatnonzero(hole)[0])
        raise InputError(
            f"{path}: a slice is missing: expected a step of {np.median(steps):.3g} mm between slices, "
            f"got {steps[at]:.3g} mm between slices {at} and {at + 1}"
        )
    extent = float(heights[-1] - heights[0])
    count = min(round(extent / float(steps.min())), MOST_NEW_SLICES * len(steps)) + 1
    return count, [
        f"uneven slice spacing ({steps.min():.3g} to {steps.max():.3g} mm): "
        f"interpolated to {count} slices {extent / (count - 1):.3g} mm apart"
    ]


def _even(heights: np.ndarray) -> np.ndarray:
    """Return, (K - 1,) bool, which steps between the heights (K,) are the usual step."""
    steps = np.diff(heights)
    usual = np.median(steps) if len(steps) else 0.0
    return np.abs(steps - usual) <= SPACING_TOLERANCE * usual


def at_even_steps(voxels: np.ndarray, heights: np.ndarray, count: int) -> np.ndarray:
    """Return slices (I, J, K) at `heights`, interpolated linearly at `count` even heights if their steps are uneven."""
    if _even(heights).all():
        return voxels
    wanted = np.linspace(heights[0], heights[-1], count)
    below = np.clip(np.searchsorted(heights, wanted, side="right") - 1, 0, len(heights) - 2)
    share = ((wanted - heights[below]) / (heights[below + 1] - heights[below])).astype(np.float32)
    values = voxels[:, :, below] * (1 - share) + voxels[:, :, below + 1] * share
    return np.rint(values).astype(voxels.dtype) if voxels.dtype.kind in "iu" else values
