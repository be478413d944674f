"""DICOM: a folder with one series, or one file, as one volume.

The order of the slices and the position of the volume come from the positions in the headers, because file names and
slice thickness do not tell them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from medkit.errors import InputError
from medkit.images.dicom_headers import DicomHeader, DicomSlice, SeriesName, is_dicom, read_header, read_pixels
from medkit.images.dicom_stack import at_even_steps, grid_of, heights_of, volumes_of
from medkit.images.itk import silence
from medkit.images.stored import Stored, checked_frame
from medkit.space import Grid


def read_grid(path: Path, series: str | None) -> Grid:
    """Read the grid from the headers only. Raises InputError."""
    headers, _ = _series(path, series)
    return grid_of(path, headers[0], volumes_of(path, headers)[0])[0]


def read_stored(path: Path, frame: int | None, series: str | None) -> Stored:
    """Read one volume of a series, after slope and intercept. Raises InputError.

    Voxels are integers if slope and intercept are whole numbers, else float32.
    """
    headers, warnings = _series(path, series)
    volumes = volumes_of(path, headers)
    slices = volumes[checked_frame(path, len(volumes), frame)]
    grid, found = grid_of(path, headers[0], slices)
    if headers[0].inverted:
        # GDCM returns 2^bits - 1 minus the stored value (measured: GDCM of itk 5.4)
        found.append("MONOCHROME1: low stored values are bright; inverted, so that high values are bright")
    dtype = np.result_type(*{header.dtype for header in headers})
    voxels = _voxels(slices, grid.shape[:2], dtype if dtype.kind in "iu" else np.dtype(np.float32))
    voxels = _narrow(at_even_steps(voxels, heights_of(headers[0], slices), grid.shape[2]))
    return Stored(voxels[None], grid, tuple(warnings + found))


def _voxels(slices: Sequence[DicomSlice], shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Return the voxels (I, J, K) of slices (I, J); a file of several slices is read once for neighbours in it."""
    voxels = np.empty((*shape, len(slices)), dtype, order="F")
    pixels: tuple[Path | None, np.ndarray] = (None, voxels)
    for k, part in enumerate(slices):
        if pixels[0] != part.path:
            pixels = (part.path, read_pixels(part.path))
        voxels[:, :, k] = pixels[1][:, :, part.index]
    return voxels


def _narrow(voxels: np.ndarray) -> np.ndarray:
    """Return int32 voxels as int16 if it holds them all: an intercept makes GDCM choose the larger type."""
    if voxels.dtype == np.int32 and voxels.min() >= -(2**15) and voxels.max() < 2**15:
        return voxels.astype(np.int16)
    return voxels


def _series(path: Path, series: str | None) -> tuple[list[DicomHeader], list[str]]:
    """Return the headers of the only series, or of the one that is asked for, and warnings. Raises InputError."""
    silence()
    files = sorted(entry for entry in path.iterdir() if entry.is_file()) if path.is_dir() else [path]
    files = [entry for entry in files if not entry.name.startswith(".") and entry.name != "DICOMDIR"]
    found = [(entry, read_header(entry, only_file=len(files) == 1)) for entry in files]
    headers = [header for _, header in found if header is not None]
    if not headers:
        raise InputError(f"{path}: expected a folder with DICOM images, found none among its {len(files)} files")
    names = sorted({header.series for header in headers}, key=lambda name: (_as_number(name[1]), name))
    if series is not None:
        names = [name for name in names if series in name[:2]]
    if len(names) != 1:
        raise InputError(_series_to_choose(path, headers, series, names))
    skipped = sum(1 for entry, header in found if header is None and is_dicom(entry))
    warnings = [f"{skipped} DICOM files without a readable image were left out"] if skipped else []
    return [header for header in headers if header.series == names[0]], warnings


def _as_number(text: str) -> float:
    """Return a series number for sorting; other texts come last."""
    return float(text) if text.isdigit() else float("inf")


def _series_to_choose(
    path: Path, headers: Sequence[DicomHeader], series: str | None, names: Sequence[SeriesName]
) -> str:
    """Return the message of an error that lists the series `names`, or if there are none all series."""
    names = names or sorted({header.series for header in headers})
    counts = {name: sum(len(header.slices) for header in headers if header.series == name) for name in names}
    lines = [
        f"  {uid}  number {number}  {text or '-'}  {counts[uid, number, text]} slices" for uid, number, text in names
    ]
    wanted = (
        f"has no series {series}, but"
        if series is not None and series not in {n for m in names for n in m[:2]}
        else "holds"
    )
    return "\n".join([f"{path}: {wanted} {len(names)} series; pick one with --series UID|NUMBER:", *lines])
