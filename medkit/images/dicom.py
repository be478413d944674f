"""DICOM: a folder with one series, or one file, as one volume.

itk's GDCM reads each file (all transfer syntaxes, rescale slope and intercept); the order of the slices and the place
of the volume come from their positions, since file names and slice thickness tell neither. Names, dates and
identifiers of the patient are read by nothing here.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from medkit.errors import InputError
from medkit.images.itk import COMPONENTS, last_line, silence
from medkit.images.nifti import opened
from medkit.images.stored import Stored
from medkit.space import Grid, lps_affine

TILT_TOLERANCE = 0.5
"""Degrees between the stack and the slices' normal below which positions are taken as rounded, not as tilted."""
SPACING_TOLERANCE = 0.05
"""Share of the usual step by which a step between slices may differ before it is called uneven."""
MOST_NEW_SLICES = 4
"""An uneven stack becomes at most this many times as many even ones."""
_SERIES_UID, _SERIES_NUMBER, _DESCRIPTION = "0020|000e", "0020|0011", "0008|103e"
_POSITION, _ORIENTATION, _PHOTOMETRIC = "0020|0032", "0020|0037", "0028|0004"
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


@dataclass(frozen=True, eq=False)
class DicomSlice:
    """One slice: where it is, and where its voxels are."""

    path: Path
    """The file."""
    index: int
    """Its number in the file, 0 in a file of one slice."""
    origin: np.ndarray
    """(3,) LPS mm, the centre of its first voxel."""
    placed: bool
    """The file says where it is."""


@dataclass(frozen=True, eq=False)
class Header:
    """What is needed of one file's header."""

    path: Path
    """The file."""
    series: tuple[str, str, str]
    """Series UID, number and description."""
    shape: tuple[int, int]
    """Columns and rows: voxels along I and J."""
    directions: np.ndarray
    """(3, 3) LPS; its columns are the directions of I, J and the slices' normal."""
    spacing: np.ndarray
    """(3,) mm as itk tells it; the third is the slice thickness or gap, used for a single slice only."""
    dtype: np.dtype
    """Type of the voxels after rescaling."""
    inverted: bool
    """MONOCHROME1: low values are bright."""
    planes: tuple[DicomSlice, ...] = field(repr=False)
    """Its slices."""


def is_dicom(path: Path) -> bool:
    """A folder, or a file with DICOM's preamble."""
    if path.is_dir():
        return True
    with opened(path) as stream:
        return stream.read(132)[128:] == b"DICM"


def read_grid(path: Path, series: str | None) -> Grid:
    """Read the grid from the headers alone. Raises InputError."""
    headers, _ = _series(path, series)
    return _grid(path, headers[0], _volumes(path, headers)[0])[0]


def read_stored(path: Path, frame: int | None, series: str | None) -> Stored:
    """Read one volume of a series, after slope and intercept.

    Integers where slope and intercept are whole numbers, else float32. Raises InputError.
    """
    headers, warnings = _series(path, series)
    volumes = _volumes(path, headers)
    if frame is None and len(volumes) > 1:
        raise InputError(
            f"{path}: expected one frame, got {len(volumes)}; pick one with --frame N (0 to {len(volumes) - 1})"
        )
    if frame is not None and not 0 <= frame < len(volumes):
        raise InputError(f"{path}: there is no frame {frame}: it holds the frames 0 to {len(volumes) - 1}")
    planes = volumes[frame or 0]
    grid, found = _grid(path, headers[0], planes)
    if headers[0].inverted:
        # GDCM gives 2^bits - 1 minus the stored value (measured: GDCM of itk 5.4)
        found.append("MONOCHROME1: stored with low values bright; turned round, so that high values are bright")
    dtype = np.result_type(*{header.dtype for header in headers})
    stack = (*grid.shape[:2], len(planes))
    voxels = np.empty(stack, dtype if dtype.kind in "iu" else np.float32, order="F")
    pixels: tuple[Path | None, np.ndarray] = (None, voxels)
    for k, plane in enumerate(planes):
        if pixels[0] != plane.path:
            pixels = (plane.path, _pixels(plane.path))
        voxels[:, :, k] = pixels[1][:, :, plane.index]
    voxels = _narrow(_at_even_steps(voxels, _heights(headers[0], planes), grid.shape[2]))
    return Stored(voxels[None], grid, tuple(warnings + found))


def _narrow(voxels: np.ndarray) -> np.ndarray:
    """As int16 where int32 came of an intercept below the range of stored 16 bits, but no voxel needs it."""
    if voxels.dtype == np.int32 and voxels.min() >= -(2**15) and voxels.max() < 2**15:
        return voxels.astype(np.int16)
    return voxels


def _series(path: Path, series: str | None) -> tuple[list[Header], list[str]]:
    """The headers of the one series, or of the one asked for."""
    silence()
    files = sorted(entry for entry in path.iterdir() if entry.is_file()) if path.is_dir() else [path]
    files = [entry for entry in files if not entry.name.startswith(".") and entry.name != "DICOMDIR"]
    found = [(entry, _header(entry, alone=len(files) == 1)) for entry in files]
    headers = [header for _, header in found if header is not None]
    if not headers:
        raise InputError(f"{path}: expected a folder with DICOM images, found none among its {len(files)} files")
    names = sorted({header.series for header in headers}, key=lambda name: (_as_number(name[1]), name))
    if series is not None:
        names = [name for name in names if series in name[:2]]
    if len(names) != 1:
        raise InputError(_choice(path, headers, series, names))
    skipped = sum(1 for entry, header in found if header is None and is_dicom(entry))
    warnings = [f"{skipped} DICOM files hold no image that can be read; they were left out"] if skipped else []
    return [header for header in headers if header.series == names[0]], warnings


def _as_number(text: str) -> float:
    return float(text) if text.isdigit() else float("inf")


def _choice(path: Path, headers: Sequence[Header], series: str | None, names: Sequence[Any]) -> str:
    names = names or sorted({header.series for header in headers})
    counts = {name: sum(len(header.planes) for header in headers if header.series == name) for name in names}
    lines = [
        f"  {uid}  number {number}  {text or '-'}  {counts[uid, number, text]} slices" for uid, number, text in names
    ]
    wanted = (
        f"has no series {series}, but"
        if series is not None and series not in {n for m in names for n in m[:2]}
        else "holds"
    )
    return "\n".join([f"{path}: {wanted} {len(names)} series; pick one with --series UID|NUMBER:", *lines])


def _header(path: Path, alone: bool) -> Header | None:
    """The header of one file; None where it holds no image."""
    import itk

    reader = itk.GDCMImageIO.New()
    try:
        if is_dicom(path) or reader.CanReadFile(str(path)):  # the second reads the whole file: old ones lack a preamble
            reader.SetFileName(str(path))
            reader.ReadImageInformation()
            return _parsed(path, reader)
    except RuntimeError as error:
        if alone or _ROWS in path.read_bytes():  # reports and the like have no rows: they are no damaged images
            raise InputError(f"{path}: a DICOM image that cannot be read, or no image: {last_line(error)}") from error
        return None
    if alone:
        raise InputError(f"{path}: expected a DICOM image, got something else")
    return None


def _parsed(path: Path, reader: Any) -> Header:
    if reader.GetNumberOfComponents() > 1:
        raise InputError(f"{path}: expected one value per voxel, got colours ({reader.GetNumberOfComponents()} values)")
    tags = reader.GetMetaDataDictionary()
    uid, number, text, position, orientation, photometric = (
        tags[key].strip("\0 ") if tags.HasKey(key) and isinstance(tags[key], str) else ""
        for key in (_SERIES_UID, _SERIES_NUMBER, _DESCRIPTION, _POSITION, _ORIENTATION, _PHOTOMETRIC)
    )
    columns, rows, frames = (
        reader.GetDimensions(axis) if axis < reader.GetNumberOfDimensions() else 1 for axis in range(3)
    )
    directions = np.array([reader.GetDirection(axis) for axis in range(3)]).T
    origin = np.array([reader.GetOrigin(axis) for axis in range(3)])
    if frames == 1:
        planes = [DicomSlice(path, 0, origin, bool(position and orientation) or _positions(path).shape[0] == 1)]
    else:
        origins = _positions(path)
        placed = len(origins) == frames
        planes = [DicomSlice(path, at, origins[at] if placed else origin, placed) for at in range(frames)]
    spacing = np.array([reader.GetSpacing(axis) for axis in range(3)])
    if frames > 1 and planes[0].placed:
        spacing[:2] = _spacing(path, spacing[:2])
    dtype = np.dtype(COMPONENTS[reader.GetComponentTypeAsString(reader.GetComponentType())])
    return Header(
        path,
        (uid, number, text),
        (columns, rows),
        directions,
        spacing,
        dtype,
        photometric == "MONOCHROME1",
        tuple(planes),
    )


def _spacing(path: Path, otherwise: np.ndarray) -> np.ndarray:
    """(2,) mm along I and J of an enhanced file; GDCM gives 1 mm where the frames do not come in order."""
    found = _PIXEL_MEASURES.search(path.read_bytes())
    words = found.group(1).strip(b" ").split(b"\\") if found else []
    return np.array([float(words[1]), float(words[0])]) if len(words) == 2 else otherwise


def _positions(path: Path) -> np.ndarray:
    """(N, 3) LPS mm: Image Position (Patient) of each frame of an enhanced file, in the order of the frames.

    They lie in the sequences of the per-frame groups, which itk does not hand out, so they are looked for in the bytes
    of the file (DICOM PS3.3 C.7.6.16.2.3); private sequences hold other positions.
    """
    found = (text.strip(b" ").split(b"\\") for text in _PLANE_POSITION.findall(path.read_bytes()))
    return np.array([[float(value) for value in words] for words in found if len(words) == 3]).reshape(-1, 3)


def _volumes(path: Path, headers: Sequence[Header]) -> list[list[DicomSlice]]:
    """The planes in the order of their positions, one list per frame (time point, echo) of the series."""
    first = headers[0]
    for header in headers:
        same = header.shape == first.shape and np.allclose(header.spacing[:2], first.spacing[:2], rtol=1e-3)
        if not same or not np.allclose(header.directions, first.directions, atol=1e-3):
            raise InputError(f"{path}: expected slices of one size and orientation, but {header.path.name} differs")
    planes = [plane for header in headers for plane in header.planes]
    if len(planes) > 1 and not all(plane.placed for plane in planes):
        if len(headers) == 1:
            return [[plane] for plane in planes]
        raise InputError(f"{path}: expected slices with a position, got some without Image Position (Patient)")
    return _by_position(path, planes, first.directions[:, 2])


def _by_position(path: Path, planes: Sequence[DicomSlice], normal: np.ndarray) -> list[list[DicomSlice]]:
    heights = [float(plane.origin @ normal) for plane in planes]
    order = sorted(range(len(planes)), key=lambda number: heights[number])  # stable: equal ones in file order
    places: list[list[DicomSlice]] = []
    last = -np.inf
    for number in order:
        if heights[number] - last > 1e-2:
            places.append([])
        places[-1].append(planes[number])
        last = heights[number]
    counts = sorted({len(place) for place in places})
    if len(counts) > 1:
        raise InputError(
            f"{path}: expected as many slices at each position, got {counts[0]} at some and {counts[-1]} at others: "
            "a slice is missing, or there is one too many"
        )
    in_file_order = [sorted(place, key=lambda plane: (str(plane.path), plane.index)) for place in places]
    return [list(volume) for volume in zip(*in_file_order, strict=True)]


def _grid(path: Path, header: Header, planes: Sequence[DicomSlice]) -> tuple[Grid, list[str]]:
    """The grid of one volume, sheared where the gantry was tilted."""
    origins = np.array([plane.origin for plane in planes])
    count = len(planes)
    directions, spacing, warnings = header.directions.copy(), header.spacing.copy(), []
    if not planes[0].placed:
        warnings.append("the file does not say where the image is: orientation and left/right are a guess")
    if len(planes) > 1:
        normal = directions[:, 2]
        count, uneven = _even_count(path, _heights(header, planes))
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


def _heights(header: Header, planes: Sequence[DicomSlice]) -> np.ndarray:
    """(K,) mm: where the slices are along their normal."""
    return np.array([plane.origin @ header.directions[:, 2] for plane in planes])


def _even_count(path: Path, heights: np.ndarray) -> tuple[int, list[str]]:
    """How many slices an even stack has in place of this one, and a warning where this one is uneven.

    Raises InputError for a stack with a hole.
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
    """(K - 1,) bool: which steps between the heights (K,) are the usual one."""
    steps = np.diff(heights)
    usual = np.median(steps) if len(steps) else 0.0
    return np.abs(steps - usual) <= SPACING_TOLERANCE * usual


def _at_even_steps(voxels: np.ndarray, heights: np.ndarray, count: int) -> np.ndarray:
    """The slices (I, J, K) at `heights`, interpolated linearly to `count` even steps where they are uneven."""
    if _even(heights).all():
        return voxels
    wanted = np.linspace(heights[0], heights[-1], count)
    below = np.clip(np.searchsorted(heights, wanted, side="right") - 1, 0, len(heights) - 2)
    share = ((wanted - heights[below]) / (heights[below + 1] - heights[below])).astype(np.float32)
    values = voxels[:, :, below] * (1 - share) + voxels[:, :, below + 1] * share
    return np.rint(values).astype(voxels.dtype) if voxels.dtype.kind in "iu" else values


def _pixels(path: Path) -> np.ndarray:
    """(I, J, frames) voxels of one file."""
    import itk

    try:
        voxels = itk.array_from_image(itk.imread(str(path), imageio=itk.GDCMImageIO.New()))
    except RuntimeError as error:
        raise InputError(f"{path}: its pixels cannot be read: {last_line(error)}") from error
    return voxels.reshape(-1, *voxels.shape[-2:]).transpose(2, 1, 0)
