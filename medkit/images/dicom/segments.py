"""DICOM segmentations as label images: the number of each segment where it is, 0 elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from medkit.errors import InputError
from medkit.images.dicom.pixels import stored_values
from medkit.images.dicom.types import DicomFile, DicomSlice
from medkit.space import Grid, lps_affine


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
    lowest: DicomSlice = file.slices[int(heights.argmin())]
    assert lowest.origin is not None
    shape = (file.pixels.columns, file.pixels.rows, int(np.rint(numbers.max())) + 1)
    affine = lps_affine(first.directions, np.array([*first.spacing, step]), lowest.origin)
    return Grid(shape, affine), np.rint(numbers).astype(int)


def label_values(path: Path, files: Sequence[DicomFile]) -> tuple[np.ndarray, Grid, list[str]]:
    """(I, J, K) labels, their grid, and a warning where segments overlap. Raises InputError."""
    grid, numbers = label_grid(path, files)
    file, stored = files[0], stored_values(files[0])
    largest = max(int(stored.max()), *(one.segment for one in file.slices))
    labels = np.zeros(grid.shape, np.min_scalar_type(largest), order="F")
    doubled = 0
    for one, k in zip(file.slices, numbers, strict=True):
        plane = stored[:, :, one.index]
        marked = plane > 0
        doubled += int((marked & (labels[:, :, k] > 0)).sum())
        labels[:, :, k][marked] = one.segment if file.kind == "segments" else plane[marked]
    note = f"{doubled} voxels belong to more than one segment: the segment with the higher number counts"
    return labels, grid, [note] if doubled else []
