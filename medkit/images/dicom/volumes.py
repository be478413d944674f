"""From the slices of a DICOM series to volumes: which slices belong together, in which order, on which grid."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np

from medkit.errors import InputError
from medkit.images.dicom.types import DicomFile, DicomSlice
from medkit.space import Grid, lps_affine

TILT_TOLERANCE = 0.5
"""Degrees between the stack and the slices' normal below which positions are taken as rounded, not as tilted."""
SPACING_TOLERANCE = 0.05
"""Share of the usual step by which a step between slices may differ before it is called uneven."""
MOST_NEW_SLICES = 4
"""An uneven stack becomes at most this many times as many even ones."""
SAME_PLACE = 1e-2
"""mm between slices that are at one place."""
COVERED = 0.75
"""Share of a double step that the slices beside it must be thick for nothing to be missing between them."""


@dataclass(frozen=True, eq=False)
class Stack:
    """The slices of one volume in the order of their places, and what was odd about them."""

    shape: tuple[int, int]
    """Columns and rows: voxels along I and J."""
    slices: tuple[DicomSlice, ...]
    warnings: tuple[str, ...] = ()

    @property
    def directions(self) -> np.ndarray:
        """(3, 3) LPS, columns I, J and normal; the identity where the file does not say."""
        found = self.slices[0].directions
        return np.eye(3) if found is None else found

    @property
    def heights(self) -> np.ndarray:
        """(K,) mm: where the slices are along their normal."""
        return np.array([_origin(one) @ self.directions[:, 2] for one in self.slices])


def stacks_of(path: Path, files: Sequence[DicomFile]) -> list[Stack]:
    """One stack for each frame (time point, echo, ...) of a series. Raises InputError."""
    slices = [one for file in files for one in file.slices]
    shape = _shape(files[0])
    _check_alike(path, files, slices)
    if not all(one.origin is not None and one.directions is not None for one in slices):
        if len(files) > 1:
            raise InputError(f"{path}: expected slices with a position, got some without Image Position (Patient)")
        return [Stack(shape, (one,)) for one in slices]
    places = _places(slices)
    counts = sorted({len(place) for place in places})
    if len(counts) > 1:
        raise InputError(
            f"{path}: expected as many slices at each position, got {counts[0]} at some and {counts[-1]} at others: "
            "a slice is missing, or there is one too many"
        )
    volumes, warnings = _frames(places)
    return [Stack(shape, tuple(volume), tuple(warnings)) for volume in volumes]


def grid_of(path: Path, stack: Stack, step: float | None) -> tuple[Grid, list[str]]:
    """The grid of one volume, sheared where the gantry was tilted; `step` is used for a single slice, mm."""
    first, directions, warnings = stack.slices[0], stack.directions.copy(), list(stack.warnings)
    pair = np.ones(2) if first.spacing is None else first.spacing
    depth = first.thickness or step or 1.0
    spacing = np.array([*pair, depth if depth > 0 else 1.0])
    count = len(stack.slices)
    if first.origin is None or first.directions is None:
        warnings.append("the file does not state the position of the image: orientation and left/right are a guess")
    if count > 1:
        origins = np.array([_origin(one) for one in stack.slices])
        normal = directions[:, 2]
        count, uneven = _even_count(path, stack)
        warnings += uneven
        between = (origins[-1] - origins[0]) / (count - 1)
        tilt = float(np.degrees(np.arccos(np.clip(between @ normal / np.linalg.norm(between), -1, 1))))
        if tilt > TILT_TOLERANCE:
            warnings.append(f"gantry tilt of {tilt:.1f} degrees: the grid is sheared")
            spacing[2] = np.linalg.norm(between)
            directions[:, 2] = between / spacing[2]
        else:
            spacing[2] = between @ normal
    return Grid((*stack.shape, count), lps_affine(directions, spacing, _origin(first))), warnings


def at_even_steps(voxels: np.ndarray, heights: np.ndarray, count: int) -> np.ndarray:
    """The slices (I, J, K) at `heights`, interpolated linearly to `count` even steps where they are uneven."""
    if _even(heights).all():
        return voxels
    wanted = np.linspace(heights[0], heights[-1], count)
    below = np.clip(np.searchsorted(heights, wanted, side="right") - 1, 0, len(heights) - 2)
    share = ((wanted - heights[below]) / (heights[below + 1] - heights[below])).astype(np.float32)
    values = voxels[:, :, below] * (1 - share) + voxels[:, :, below + 1] * share
    return np.rint(values).astype(voxels.dtype) if voxels.dtype.kind in "iu" else values


def _shape(file: DicomFile) -> tuple[int, int]:
    side = int(np.ceil(np.sqrt(len(file.slices)))) if file.kind == "mosaic" else 1
    return file.pixels.columns // side, file.pixels.rows // side


def _origin(one: DicomSlice) -> np.ndarray:
    return np.zeros(3) if one.origin is None else one.origin


def _check_alike(path: Path, files: Sequence[DicomFile], slices: Sequence[DicomSlice]) -> None:
    """Raises InputError for slices that cannot be one volume: other sizes, orientations, spacings, or scalings."""
    first = slices[0]
    for file in files:
        if _shape(file) != _shape(files[0]):
            raise InputError(f"{path}: expected slices of one size and orientation, but {file.path.name} differs")
    for one in slices:
        if not _close(one.spacing, first.spacing, rtol=1e-3) or not _close(one.directions, first.directions, atol=1e-3):
            name = one.path.name if len(files) > 1 else f"frame {one.index + 1}"
            raise InputError(f"{path}: expected slices of one size and orientation, but {name} differs")
        if (one.scaling is None) != (first.scaling is None):
            lacking = one if one.scaling is None else first
            raise InputError(
                f"{path}: expected a Rescale Slope in every slice or in none, but {lacking.path.name} has none"
            )


def _close(one: np.ndarray | None, other: np.ndarray | None, rtol: float = 0.0, atol: float = 0.0) -> bool:
    if one is None or other is None:
        return one is other
    return np.allclose(one, other, rtol=rtol, atol=atol)


def _places(slices: Sequence[DicomSlice]) -> list[list[DicomSlice]]:
    """The slices by their place along the normal, those at one place in the order in which they came."""
    assert slices[0].directions is not None
    normal = slices[0].directions[:, 2]
    heights = [float(_origin(one) @ normal) for one in slices]
    places: list[list[DicomSlice]] = []
    last = -np.inf
    for number in sorted(range(len(slices)), key=lambda n: heights[n]):  # stable: equal ones in file order
        if heights[number] - last > SAME_PLACE:
            places.append([])
        places[-1].append(slices[number])
        last = heights[number]
    return places


def _frames(places: Sequence[list[DicomSlice]]) -> tuple[list[list[DicomSlice]], list[str]]:
    """One list of slices per frame, and a warning where the headers do not tell the frames apart.

    Frames are told apart by whatever has the same different values at every place: the time point, the echo, the b
    value, the type of image, or several of them together; else by acquisition time or number, place by place.
    """
    if len(places[0]) == 1:
        return [[place[0] for place in places]], []
    for names in _candidates(places):
        keyed = [{tuple(one.order[name] for name in names): one for one in place} for place in places]
        if all(len(found) == len(place) for found, place in zip(keyed, places, strict=True)) and all(
            found.keys() == keyed[0].keys() for found in keyed
        ):
            return [[found[key] for found in keyed] for key in sorted(keyed[0])], []
    for name in ("time", "number"):
        if all(name in one.order for place in places for one in place):
            ordered = [sorted(place, key=lambda one: one.order[name]) for place in places]
            if all(len({one.order[name] for one in place}) == len(place) for place in ordered):
                return [list(volume) for volume in zip(*ordered, strict=True)], []
    in_file_order = [sorted(place, key=lambda one: (str(one.path), one.index)) for place in places]
    note = "nothing in the headers tells the frames apart: they are in the order of their files' names"
    return [list(volume) for volume in zip(*in_file_order, strict=True)], [note]


def _candidates(places: Sequence[list[DicomSlice]]) -> Iterator[tuple[str, ...]]:
    """Names in the slices' `order` that may tell frames apart: one, then several together."""
    common = [
        name for name in places[0][0].order
        if name not in ("time", "number") and all(name in one.order for place in places for one in place)
        and len({one.order[name] for one in places[0]}) > 1
    ]  # fmt: skip
    for count in range(1, len(common) + 1):
        yield from combinations(common, count)


def _even_count(path: Path, stack: Stack) -> tuple[int, list[str]]:
    """How many slices an even stack has in place of this one, and a warning where this one is uneven.

    Raises InputError for a stack in which slices are missing.
    """
    heights = stack.heights
    even = _even(heights)
    if even.all():
        return len(heights), []
    steps = np.diff(heights)
    _check_complete(path, stack, steps)
    extent = float(heights[-1] - heights[0])
    count = min(round(extent / float(steps.min())), MOST_NEW_SLICES * len(steps)) + 1
    return count, [
        f"uneven slice spacing ({steps.min():.3g} to {steps.max():.3g} mm): "
        f"interpolated to {count} slices {extent / (count - 1):.3g} mm apart"
    ]


def _check_complete(path: Path, stack: Stack, steps: np.ndarray) -> None:
    """Raises InputError where every longer step is a multiple of the shortest: slices are missing there.

    Unless the slices beside it are thick enough to meet: some scans have thicker slices in one part.
    """
    times = steps / steps.min()
    whole = np.abs(times - np.rint(times)) <= SPACING_TOLERANCE * times
    if not whole.all():
        return
    for number in np.flatnonzero(np.rint(times) >= 2):
        thickness = [one.thickness for one in stack.slices[number : number + 2] if one.thickness is not None]
        if not thickness or max(thickness) < COVERED * steps[number]:
            raise InputError(
                f"{path}: a slice is missing: expected a step of {steps.min():.3g} mm between slices, "
                f"got {steps[number]:.3g} mm between slices {number} and {number + 1}"
            )


def _even(heights: np.ndarray) -> np.ndarray:
    """(K - 1,) bool: which steps between slices are as long as the usual one."""
    steps = np.diff(heights)
    usual = np.median(steps) if len(steps) else 0.0
    return np.abs(steps - usual) <= SPACING_TOLERANCE * usual
