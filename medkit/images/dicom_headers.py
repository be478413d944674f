"""Headers of DICOM files: what medkit needs of them to build a volume.

itk's GDCM reads the files, with all transfer syntaxes. Names, dates and identifiers of the patient are not read.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from medkit.errors import InputError
from medkit.images.itk import COMPONENTS, last_line
from medkit.images.nifti import opened

_SERIES_UID, _SERIES_NUMBER, _DESCRIPTION = "0020|000e", "0020|0011", "0008|103e"
_POSITION, _ORIENTATION, _PHOTOMETRIC = "0020|0032", "0020|0037", "0028|0004"
_TEXTS = (_SERIES_UID, _SERIES_NUMBER, _DESCRIPTION, _POSITION, _ORIENTATION, _PHOTOMETRIC)
_PLANE_POSITION = re.compile(
    rb"\x20\x00\x13\x91(?:SQ\x00\x00)?....\xfe\xff\x00\xe0...."  # Plane Position Sequence and its item
    rb"\x20\x00\x32\x00(?:DS..|..\x00\x00)([-+0-9.eE \\]{5,60})",  # Image Position (Patient)
    re.DOTALL,
)
_ROWS = b"\x28\x00\x10\x00US"
_PIXEL_MEASURES = re.compile(
    rb"\x28\x00\x10\x91(?:SQ\x00\x00)?....\xfe\xff\x00\xe0....[^\xfe]{0,80}?"  # Pixel Measures Sequence and its item
    rb"\x28\x00\x30\x00(?:DS..|..\x00\x00)([-+0-9.eE \\]{3,40})",  # Pixel Spacing: between rows, between columns
    re.DOTALL,
)


SeriesName = tuple[str, str, str]
"""UID, number and description of a series."""


@dataclass(frozen=True, eq=False)
class DicomSlice:
    """A slice: its position in space, and where its voxels are stored."""

    path: Path
    """The file."""
    index: int
    """Its index in the file, 0 in a file of one slice."""
    origin: np.ndarray
    """(3,) LPS mm, the centre of its first voxel."""
    has_position: bool
    """Whether the file states the position; else `origin` is a guess."""


@dataclass(frozen=True, eq=False)
class DicomHeader:
    """The part of a file's header that medkit needs."""

    path: Path
    """The file."""
    series: SeriesName
    """Series UID, number and description."""
    shape: tuple[int, int]
    """Columns and rows, which are the voxels along I and J."""
    directions: np.ndarray
    """(3, 3) LPS, in its columns the directions of I, of J and of the slices' normal."""
    spacing: np.ndarray
    """(3,) mm from itk; the third value is the slice thickness or gap, which is only used for a single slice."""
    dtype: np.dtype
    """Type of the voxels after rescaling."""
    inverted: bool
    """Whether low values are bright (MONOCHROME1)."""
    slices: tuple[DicomSlice, ...] = field(repr=False)
    """The slices in the file."""


def is_dicom(path: Path) -> bool:
    """Return whether a path is a folder, or a file with DICOM's preamble. Raises InputError if it cannot be read."""
    if path.is_dir():
        return True
    with opened(path) as stream:
        return stream.read(132)[128:] == b"DICM"


def read_header(path: Path, *, only_file: bool) -> DicomHeader | None:
    """Return the header of a file; None if it holds no image. Raises InputError for a damaged image.

    `only_file`: there is no other file, so this one has to be an image.
    """
    import itk

    reader = itk.GDCMImageIO.New()
    try:
        # old files have no preamble; CanReadFile recognises them, but reads the whole file
        if is_dicom(path) or reader.CanReadFile(str(path)):
            reader.SetFileName(str(path))
            reader.ReadImageInformation()
            return _parsed(path, reader)
    except RuntimeError as error:
        if only_file or _ROWS in path.read_bytes():  # a file without rows is a report or the like, not a damaged image
            raise InputError(f"{path}: a DICOM image that cannot be read, or no image: {last_line(error)}") from error
        return None
    if only_file:
        raise InputError(f"{path}: expected a DICOM image, got something else")
    return None


def _parsed(path: Path, reader: Any) -> DicomHeader:
    """Return the header of a file whose information itk's `reader` has read. Raises InputError for colours."""
    if reader.GetNumberOfComponents() > 1:
        raise InputError(f"{path}: expected one value per voxel, got colours ({reader.GetNumberOfComponents()} values)")
    uid, number, text, position, orientation, photometric = _texts(reader)
    columns, rows, frames = (
        reader.GetDimensions(axis) if axis < reader.GetNumberOfDimensions() else 1 for axis in range(3)
    )
    origin = np.array([reader.GetOrigin(axis) for axis in range(3)])
    slices = _slices(path, frames, origin, has_position=bool(position and orientation))
    spacing = np.array([reader.GetSpacing(axis) for axis in range(3)])
    if frames > 1 and slices[0].has_position:
        spacing[:2] = _spacing(path, spacing[:2])
    return DicomHeader(
        path=path,
        series=(uid, number, text),
        shape=(columns, rows),
        directions=np.array([reader.GetDirection(axis) for axis in range(3)]).T,
        spacing=spacing,
        dtype=np.dtype(COMPONENTS[reader.GetComponentTypeAsString(reader.GetComponentType())]),
        inverted=photometric == "MONOCHROME1",
        slices=slices,
    )


def _texts(reader: Any) -> list[str]:
    """Return the values of the tags `_TEXTS`, empty where a tag is missing."""
    tags = reader.GetMetaDataDictionary()
    return [tags[key].strip("\0 ") if tags.HasKey(key) and isinstance(tags[key], str) else "" for key in _TEXTS]


def _slices(path: Path, frames: int, origin: np.ndarray, *, has_position: bool) -> tuple[DicomSlice, ...]:
    """Return the slices of a file of so many frames; `has_position`: its header states the position of one slice."""
    if frames == 1:
        return (DicomSlice(path, 0, origin, has_position or len(_positions(path)) == 1),)
    origins = _positions(path)
    known = len(origins) == frames
    return tuple(DicomSlice(path, index, origins[index] if known else origin, known) for index in range(frames))


def _spacing(path: Path, otherwise: np.ndarray) -> np.ndarray:
    """Return the spacing (2,) mm along I and J of an enhanced file; GDCM returns 1 mm if frames are out of order."""
    found = _PIXEL_MEASURES.search(path.read_bytes())
    words = found.group(1).strip(b" ").split(b"\\") if found else []
    return np.array([float(words[1]), float(words[0])]) if len(words) == 2 else otherwise


def _positions(path: Path) -> np.ndarray:
    """Return Image Position (Patient), (N, 3) LPS mm, of each frame of an enhanced file, in the order of the frames.

    The positions are in the sequences of the per-frame groups, which itk does not return, so the bytes of the file are
    searched (DICOM PS3.3 C.7.6.16.2.3). Private sequences, which hold other positions, do not match.
    """
    found = (text.strip(b" ").split(b"\\") for text in _PLANE_POSITION.findall(path.read_bytes()))
    return np.array([[float(value) for value in words] for words in found if len(words) == 3]).reshape(-1, 3)


def read_pixels(path: Path) -> np.ndarray:
    """Return the voxels (I, J, frames) of one file, after slope and intercept. Raises InputError."""
    import itk

    try:
        voxels = itk.array_from_image(itk.imread(str(path), imageio=itk.GDCMImageIO.New()))
    except RuntimeError as error:
        raise InputError(f"{path}: its pixels cannot be read: {last_line(error)}") from error
    return voxels.reshape(-1, *voxels.shape[-2:]).transpose(2, 1, 0)
