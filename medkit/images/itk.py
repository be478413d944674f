"""NRRD and MetaImage files through itk, which knows their encodings and header variants."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np

from medkit.errors import InputError, OutputError
from medkit.images.stored import Stored, guessed_orientation, pick_frame
from medkit.space import Grid, lps_affine, lps_parts, three_axes

COMPONENTS = {
    "unsigned_char": "uint8",
    "char": "int8",
    "unsigned_short": "uint16",
    "short": "int16",
    "unsigned_int": "uint32",
    "int": "int32",
    "unsigned_long": "uint64",
    "long": "int64",
    "unsigned_long_long": "uint64",
    "long_long": "int64",
    "float": "float32",
    "double": "float64",
}
"""itk's names of component types."""
_MILLIMETRES = {"nm": 1e-6, "um": 1e-3, "mm": 1.0, "cm": 10.0, "dm": 100.0, "m": 1e3, "in": 25.4}
"""Millimetres in the units of length that headers name."""
_UNIT_NAMES = {"micron": "um", "nanometer": "nm", "micrometer": "um", "millimeter": "mm", "centimeter": "cm"}
_UNIT_NAMES |= {"meter": "m", "inch": "in", "\u00b5m": "um", "\u03bcm": "um"}
"""Other names of these units, in the singular and with American spelling."""
_NRRD_HEADER = 1 << 16
"""Bytes at the start of an NRRD file in which its header is looked for."""
_HELD_AS = {"int8": "SS", "int64": "D", "uint64": "D"}
"""Types that itk's wheels do not wrap, and a type that holds their values (whole numbers up to 2^53 in a double)."""


def silence() -> None:
    """Keep itk's C++ warnings off stderr, since medkit reports what matters itself."""
    import itk

    itk.Object.SetGlobalWarningDisplay(False)


def last_line(error: Exception) -> str:
    """Return the last line of itk's long message, which states what is wrong."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[-1] if lines else type(error).__name__
    return text.rpartition("): ")[2]


def _reading_error(error: Exception) -> str:
    """Return what is wrong with a file whose header was read.

    MetaImage's reader ends with the system's last error, which is none if the file is only too short.
    """
    text = last_line(error)
    return "its voxels are fewer than the header promises (truncated?)" if text.endswith("Success") else text


def read_header(path: Path) -> Any:
    """Return itk's ImageIO after it has read the header of a file. Raises InputError."""
    import itk

    silence()
    reader = itk.ImageIOFactory.CreateImageIO(str(path), itk.CommonEnums.IOFileMode_ReadMode)
    if reader is None or reader.GetNameOfClass() not in ("NrrdImageIO", "MetaImageIO"):
        raise InputError(f"{path}: expected an image in the format of its name, got something else")
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        raise InputError(f"{path}: damaged header: {last_line(error)}") from error
    return reader


def grid_of(path: Path, reader: Any) -> Grid:
    """Return the grid in an ImageIO's header; a fourth axis is frames. Raises InputError."""
    axes = reader.GetNumberOfDimensions()
    if axes not in (2, 3, 4):
        raise InputError(f"{path}: expected 2 or 3 axes, got {axes}")
    dims = min(axes, 3)
    shape = tuple(reader.GetDimensions(axis) for axis in range(dims))
    if min(shape) < 1:
        raise InputError(f"{path}: no voxels: expected axes of one voxel or more, got the shape {shape}")
    directions = np.array([reader.GetDirection(axis)[:dims] for axis in range(dims)]).T
    spacing = np.array([reader.GetSpacing(axis) for axis in range(dims)])
    origin = np.array([reader.GetOrigin(axis) for axis in range(dims)])
    affine = lps_affine(directions, spacing, origin)
    affine[:dims] *= unit_of(path, reader)
    return Grid(three_axes(shape), affine, dims)


def unit_of(path: Path, reader: Any) -> float:
    """Return the millimetres in the unit of length of a file; 1 if it names none, or one that is no length.

    itk leaves units to its callers, and does not pass on those of NRRD. Raises InputError for axes of unlike units.
    """
    if reader.GetNameOfClass() == "MetaImageIO":
        return _millimetres(_noted(reader, "ITK_VoxelUnits")) or 1.0
    found = {_millimetres(name) for name in re.findall(r'"([^"]*)"', _nrrd_units(path))} - {None}
    if len(found) > 1:
        raise InputError(f"{path}: expected axes of one unit of length, got {_nrrd_units(path)}")
    return found.pop() or 1.0 if found else 1.0


def _millimetres(name: str) -> float | None:
    """Return the millimetres in a unit of length; None for another unit."""
    plain = name.strip().lower().replace("metre", "meter").removesuffix("s")
    return _MILLIMETRES.get(_UNIT_NAMES.get(plain, plain))


def _nrrd_units(path: Path) -> str:
    """Return the field `space units` of an NRRD header, or without it the field `units`; may be empty."""
    fields = _nrrd_fields(path)
    return fields.get("space units") or fields.get("units") or ""


def _nrrd_fields(path: Path) -> dict[str, str]:
    """Return the fields of an NRRD header."""
    with open(path, "rb") as stream:
        head = re.split(rb"\r?\n\r?\n", stream.read(_NRRD_HEADER), maxsplit=1)[0]
    return dict(re.findall(r"^([a-z ]+): *(.*)$", head.decode("utf-8", "replace"), re.MULTILINE))


def read_voxels(path: Path, reader: Any) -> np.ndarray:
    """Return voxels (I, J, K, T, components) in the stored type, axis I fastest in memory. Raises InputError."""
    import itk

    stored = np.dtype(COMPONENTS[reader.GetComponentTypeAsString(reader.GetComponentType())])
    axes, components = reader.GetNumberOfDimensions(), reader.GetNumberOfComponents()
    if reader.GetPixelTypeAsString(reader.GetPixelType()) == "complex":
        raise InputError(f"{path}: expected real voxels, got complex ones")
    try:
        if components > 1:
            kind = itk.VectorImage[itk.F if stored.itemsize < 4 or stored == np.float32 else itk.D, axes]
            source = itk.ImageFileReader[kind].New(FileName=str(path), ImageIO=reader)
            source.Update()
            voxels = itk.array_from_image(source.GetOutput())
        else:
            pixel = getattr(itk, _HELD_AS[stored.name]) if stored.name in _HELD_AS else None
            voxels = itk.array_from_image(itk.imread(str(path), pixel, imageio=reader))[..., None]
    except RuntimeError as error:
        raise InputError(f"{path}: cannot be read completely: {_reading_error(error)}") from error
    shape = (*(reader.GetDimensions(axis) for axis in range(axes)), 1, 1)[:4]
    voxels = voxels.astype(stored, copy=False).reshape(*shape[::-1], components)
    return voxels.transpose(3, 2, 1, 0, 4)


def write_image(path: Path, data: np.ndarray, grid: Grid) -> None:
    """Write (C, I, J, K) as compressed NRRD or MetaImage; several channels as an image of vectors.

    Raises OutputError for numbers that these formats cannot hold.
    """
    import itk

    data = _wrapped_type(path, data)
    voxels = data.transpose(3, 2, 1, 0)  # itk's arrays: K, J, I, components
    voxels = voxels[0] if grid.dims == 2 else voxels
    voxels = np.ascontiguousarray(voxels if len(data) > 1 else voxels[..., 0])
    image = itk.image_from_array(voxels, is_vector=len(data) > 1)
    directions, spacing, origin = lps_parts(grid.affine, grid.dims)
    image.SetOrigin([float(value) for value in origin])
    image.SetSpacing([float(value) for value in spacing])
    image.SetDirection(np.ascontiguousarray(directions))
    try:
        itk.imwrite(image, str(path), compression=True)
    except RuntimeError as error:
        raise OutputError(f"{path.name}: cannot be written: {last_line(error)}") from error
    _check_written(path, voxels)


def _check_written(path: Path, voxels: np.ndarray) -> None:
    """Raise OutputError unless a file holds these voxels: itk ignores a disk that is full when it closes a file."""
    try:
        written = read_voxels(path, read_header(path))
    except InputError as error:
        raise OutputError(f"{path.name}: was not written completely, is the disk full? ({error})") from error
    if written.size != voxels.size or not np.array_equal(written.ravel("K"), voxels.ravel(), equal_nan=True):
        raise OutputError(f"{path.name}: was not written completely, is the disk full? Its voxels differ")


def _wrapped_type(path: Path, data: np.ndarray) -> np.ndarray:
    """Return voxels in a type that itk's wheels can write, which excludes int8, int64 and uint64."""
    wider: dict[str, Any] = {"int8": np.int16, "uint64": np.uint32, "int64": np.int32}
    if data.dtype.name not in wider:
        return data
    limits = np.iinfo(wider[data.dtype.name])
    if data.max() > limits.max or data.min() < limits.min:
        raise OutputError(f"{path}: {path.suffix[1:]} files hold whole numbers up to {limits.max}, got {data.max()}")
    return data.astype(wider[data.dtype.name])


def read_stored(path: Path, frame: int | None, series: str | None) -> Stored:
    """Read one frame; `series` has no meaning for this format. Raises InputError."""
    reader = read_header(path)
    grid = grid_of(path, reader)
    voxels = read_voxels(path, reader)
    components = voxels.shape[4]
    if (components == 3 and voxels.dtype.kind == "f") or (components > 1 and voxels.shape[3] > 1):
        raise InputError(f"{path}: expected an image, got a displacement field or another image of vectors")
    if components in (3, 4) and voxels.dtype == np.uint8 and not _holds_list(reader):
        raise InputError(f"{path}: expected one value per voxel, got colours (RGB)")
    frames = voxels.reshape(*voxels.shape[:3], -1, order="F")
    stated = reader.GetNameOfClass() != "NrrdImageIO" or "space directions" in _nrrd_fields(path)
    return Stored(pick_frame(path, frames, frame)[None], grid, doubts=guessed_orientation(grid, stated))


def _holds_list(reader: Any) -> bool:
    """Return whether an NRRD file calls its values per voxel a list, as 3D Slicer's layers of segments are."""
    return _noted(reader, "NRRD_kinds[pixel]") == "list"


def _noted(reader: Any, key: str) -> str:
    """Return an entry of the dictionary in which itk keeps what it does not use itself; empty if there is none."""
    notes = reader.GetMetaDataDictionary()
    return str(notes[key]) if notes.HasKey(key) else ""


def read_grid(path: Path, series: str | None) -> Grid:
    """Read the grid from the header only; `series` has no meaning for this format. Raises InputError."""
    return grid_of(path, read_header(path))
