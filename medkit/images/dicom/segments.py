"""DICOM segmentations as label images: the number of each segment where it is, 0 elsewhere."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from medkit.errors import InputError
from medkit.images.dicom.pixels import stored_values
from medkit.images.dicom.places import open_file
from medkit.images.dicom.types import DicomFile, DicomSlice
from medkit.images.dicom.volumes import TILT_TOLERANCE
from medkit.space import Grid, lps_affine

_PROGRAM = "medkit"
"""Manufacturer's model in the segmentations that medkit writes."""
_NOTE = re.compile(r"label (\d+)")


def label_note(label: int) -> str:
    """Return the description of a segment that medkit writes, by which `label_values` reads the label back."""
    return f"label {label}"


def _stated_labels(path: Path) -> Mapping[int, int]:
    """Return segment -> label of a segmentation that medkit wrote; empty for others.

    Segments are numbered without gaps, and labels need not be.
    """
    import pydicom

    with open_file(path) as stream, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tags = ["SegmentSequence", "ManufacturerModelName"]
        dataset = pydicom.dcmread(stream, stop_before_pixels=True, force=True, specific_tags=tags)
    if dataset.get("ManufacturerModelName") != _PROGRAM:
        return {}
    notes = {int(one.SegmentNumber): str(one.get("SegmentDescription") or "") for one in dataset.SegmentSequence}
    found = {number: int(match[1]) for number, note in notes.items() if (match := _NOTE.fullmatch(note))}
    return found if len(found) == len(notes) == len(set(found.values())) else {}


def label_grid(path: Path, files: Sequence[DicomFile]) -> tuple[Grid, np.ndarray]:
    """The grid of a segmentation, and (frames,) the slice of it that each frame belongs to.

    Segmentations leave out slices in which nothing is marked, so the step between slices is the one that the file
    states, or the shortest one. Raises InputError.
    """
    if len(files) > 1:
        raise InputError(f"{path}: expected one segmentation, got {len(files)} of one series; name one of the files")
    file = files[0]
    first = file.slices[0]
    origins = [one.origin for one in file.slices]
    if first.directions is None or first.spacing is None or any(origin is None for origin in origins):
        raise InputError(f"{path}: expected a segmentation whose frames have a position, orientation and spacing")
    normal = first.directions[:, 2]
    heights = np.array([origin @ normal for origin in origins if origin is not None])
    apart = np.diff(np.unique(np.round(heights, 2)))
    step = file.slice_step or (float(apart.min()) if len(apart) else first.thickness or 1.0)
    numbers = (heights - heights.min()) / step
    if np.abs(numbers - np.rint(numbers)).max() > 0.1:
        raise InputError(f"{path}: expected frames at steps of {step:.3g} mm, got some between them")
    numbers = np.rint(numbers).astype(int)
    lowest: DicomSlice = file.slices[int(heights.argmin())]
    assert lowest.origin is not None
    shape = (file.pixels.columns, file.pixels.rows, int(numbers.max()) + 1)
    between = step * normal
    if numbers.any():  # frames of a tilted gantry are not above each other
        ways = np.array([origin - lowest.origin for origin in origins if origin is not None])
        found = numbers @ ways / (numbers @ numbers)
        between = found if _tilt(found, normal) > TILT_TOLERANCE else between
    directions = np.column_stack([first.directions[:, :2], between / np.linalg.norm(between)])
    affine = lps_affine(directions, np.array([*first.spacing, np.linalg.norm(between)]), lowest.origin)
    return Grid(shape, affine), numbers


def _tilt(way: np.ndarray, normal: np.ndarray) -> float:
    """Return degrees between the way from slice to slice and the slices' normal."""
    return float(np.degrees(np.arccos(np.clip(way @ normal / np.linalg.norm(way), -1, 1))))


def label_values(path: Path, files: Sequence[DicomFile]) -> tuple[np.ndarray, Grid, list[str]]:
    """(I, J, K) labels, their grid, and a warning where segments overlap. Raises InputError."""
    grid, numbers = label_grid(path, files)
    file, stored = files[0], stored_values(files[0])
    stated = _stated_labels(file.path) if file.kind == "segments" else {}
    own = [stated.get(one.segment, one.segment) for one in file.slices]
    largest = max(int(stored.max()), *own)
    labels = np.zeros(grid.shape, np.min_scalar_type(largest), order="F")
    doubled = 0
    for one, label, k in zip(file.slices, own, numbers, strict=True):
        plane = stored[:, :, one.index]
        marked = plane > 0
        doubled += int((marked & (labels[:, :, k] > 0)).sum())
        labels[:, :, k][marked] = label if file.kind == "segments" else plane[marked]
    note = f"{doubled} voxels belong to more than one segment: the segment with the higher number counts"
    return labels, grid, [note] if doubled else []
