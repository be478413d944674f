"""DICOM: a folder with one series, one series of several, or one file, as one volume.

pydicom reads the headers (`header`); the order of the slices and the place of the volume come from their positions
(`volumes`), since file names and slice thickness tell neither; compressed pixels go through itk's GDCM (`pixels`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from medkit.errors import InputError
from medkit.images.dicom.header import header_of, looks_like_dicom, read_header
from medkit.images.dicom.pixels import real_values, stored_values
from medkit.images.dicom.places import exists, files_in, holds_files, size_of
from medkit.images.dicom.segments import label_grid, label_values
from medkit.images.dicom.series import as_number, series_at
from medkit.images.dicom.types import DicomFile
from medkit.images.dicom.volumes import Stack, at_even_steps, grid_of, stacks_of
from medkit.images.stored import Stored, checked_frame, guessed_orientation
from medkit.space import Grid

SEGMENTATIONS = ("segments", "labels")


def is_dicom(path: Path) -> bool:
    """A folder, a zip, one series of these, or a file that starts as DICOM does."""
    return holds_files(path) or (not path.exists() and exists(path)) or looks_like_dicom(path)


def files_of(path: Path) -> list[Path]:
    """Return the files that a path stands for: those of the series it names, or those directly in a folder or a zip.

    Files that are no DICOM images may be among them. Raises InputError.
    """
    named = series_at(path)
    return named.files if named else files_in(path)


def series_uid(path: Path) -> tuple[str, str] | None:
    """Return UID and number of the series of a DICOM path, by its first image; None if there is none that can be read.

    No pixels are read.
    """
    try:
        headers = (header_of(file) for file in files_of(path) if looks_like_dicom(file))
        return next((header.series[:2] for header in headers if header.image), None)
    except (InputError, OSError):
        return None


def stated_modality(path: Path) -> str | None:
    """Return the modality that the first DICOM file of a path states; None for a path without any."""
    found = next((file for file in files_of(path) if looks_like_dicom(file)), None)
    return (header_of(found).modality or None) if found else None


def read_grid(path: Path, series: str | None) -> Grid:
    """Read the grid from the headers alone. Raises InputError."""
    files, _ = _series(path, series)
    if files[0].kind in SEGMENTATIONS:
        return label_grid(path, files)[0]
    return grid_of(path, stacks_of(path, files)[0], files[0].slice_step)[0]


def read_stored(path: Path, frame: int | None, series: str | None) -> Stored:
    """Read one volume of a series, in real values: Hounsfield units, Gy, labels.

    Integers where slopes and intercepts are whole numbers, else float32. Raises InputError.
    """
    files, warnings = _series(path, series)
    if files[0].kind in SEGMENTATIONS:
        voxels, grid, found = label_values(path, files)
        return Stored(voxels[None], grid, tuple(warnings + found))
    stacks = stacks_of(path, files)
    stack = stacks[checked_frame(path, len(stacks), frame)]
    grid, found = grid_of(path, stack, files[0].slice_step)
    voxels = at_even_steps(stack_values(files, stack), stack.heights, grid.shape[2])
    stated = stack.slices[0].origin is not None and stack.slices[0].directions is not None
    doubts = guessed_orientation(grid, stated)
    return Stored(voxels[None], grid, tuple(warnings + found + _notes(files[0], stack)), doubts=doubts)


def read_stack(path: Path, series: str | None, frame: int) -> tuple[Stack, Grid, str]:
    """Read from the headers alone which files one volume consists of, its grid, and the kind of the files.

    `kind`: see `DicomFile`. Raises InputError, also for a series without this frame.
    """
    files, _ = _series(path, series)
    stacks = stacks_of(path, files)
    stack = stacks[checked_frame(path, len(stacks), frame if len(stacks) > 1 else None)]
    return stack, grid_of(path, stack, files[0].slice_step)[0], files[0].kind


def stack_values(files: Sequence[DicomFile], stack: Stack) -> np.ndarray:
    """(I, J, K) real values of a stack's slices, each file read once."""
    by_path = {file.path: file for file in files}
    read: tuple[Path | None, np.ndarray] = (None, np.empty(0))
    planes = []
    for one in stack.slices:
        if read[0] != one.path:
            read = (one.path, stored_values(by_path[one.path]))
        planes.append(read[1][:, :, one.index])
    stored = np.empty((*stack.shape, len(planes)), np.result_type(*planes), order="F")
    for k, plane in enumerate(planes):
        stored[:, :, k] = plane
    return real_values(stored, stack.slices)


def _notes(file: DicomFile, stack: Stack) -> list[str]:
    """What a person should know of how the values and the spacing were read."""
    found = [file.spacing_note] if file.spacing_note else []
    if file.pixels.inverted:
        found.append("MONOCHROME1: stored with low values bright; turned round, so that high values are bright")
    if file.kind == "mosaic":
        found.append(f"a Siemens mosaic: its {len(stack.slices)} tiles are the slices of one volume")
    if file.kind == "plane of a mosaic":
        found.append("a Siemens mosaic that does not say how many tiles it has: it is read as one plane")
    return found


def _series(path: Path, series: str | None) -> tuple[list[DicomFile], list[str]]:
    """The files of the one series, or of the one asked for, and warnings about others."""
    if named := series_at(path):
        return named.images, []
    names = [entry for entry in files_in(path) if entry.name != "DICOMDIR"]
    dicom = [entry for entry in names if looks_like_dicom(entry)]
    _check_no_empty_file(path, names, dicom)
    several = holds_files(path)
    if not several and not dicom:
        raise InputError(f"{path}: expected a DICOM image, got something else")
    files = [file for file in map(read_header, _possible(dicom, series)) if file is not None]
    if not files:
        if not several:
            raise InputError(f"{path}: expected a DICOM image, got a DICOM object without pixels")
        count = len(names)
        raise InputError(f"{path}: expected a folder with images or DICOM files, found none among its {count} files")
    known = sorted({file.series for file in files}, key=lambda name: (as_number(name[1]), name))
    if series is not None:
        known = [name for name in known if series in name[:2]]
    if len(known) != 1:
        raise InputError(_choice(path, files, series, known))
    skipped = len(dicom) - len(files)
    warnings = [f"{skipped} DICOM files hold no image that can be read; they were left out"] if skipped else []
    return [file for file in files if file.series == known[0]], warnings


def _possible(dicom: Sequence[Path], series: str | None) -> Iterator[Path]:
    """Yield the files without damaged ones of other series than the one asked for."""
    for path in dicom:
        header = header_of(path)
        others = series is not None and header.series[0] and series not in header.series[:2]
        if not (header.problem and others):
            yield path


def _check_no_empty_file(path: Path, names: Sequence[Path], dicom: Sequence[Path]) -> None:
    """Raises InputError for a file without a byte that is named as its neighbours are: a slice that was not copied."""
    suffixes = {entry.suffix.lower() for entry in dicom}
    for entry in names:
        if not size_of(entry) and (entry.suffix.lower() in suffixes or not holds_files(path)):
            raise InputError(f"{entry}: expected a DICOM image, got a file of 0 bytes")


def _choice(path: Path, files: Sequence[DicomFile], series: str | None, names: Sequence[Any]) -> str:
    names = names or sorted({file.series for file in files})
    counts = {name: sum(len(file.slices) for file in files if file.series == name) for name in names}
    # without the description, which may hold a name
    lines = [f"  {name[0]}  number {name[1]}  {counts[name]} slices" for name in names]
    wanted = (
        f"has no series {series}, but"
        if series is not None and series not in {n for m in names for n in m[:2]}
        else "holds"
    )
    advice = f"pick one with --series UID|NUMBER, or name it {path}#series=NUMBER"
    return "\n".join([f"{path}: {wanted} {len(names)} series; {advice}:", *lines])
