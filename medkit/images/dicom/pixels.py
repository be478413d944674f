"""The pixels of a DICOM file: from its bytes, or where they are compressed by itk's GDCM; then slopes and tables."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from medkit.errors import InputError
from medkit.images.dicom.places import in_memory, on_disk, open_file
from medkit.images.dicom.types import DEFLATED, DicomFile, DicomSlice, PixelLayout
from medkit.images.itk import silence

RUN_LENGTH = "1.2.840.10008.1.2.5"


def stored_values(file: DicomFile) -> np.ndarray:
    """(I, J, slices) values as they are stored, low values dark. Raises InputError."""
    layout = file.pixels
    frames = _native(file) if layout.length is not None else _decoded(file)
    if layout.inverted:
        frames = (-1 - frames) if layout.signed else ((1 << layout.used) - 1 - frames)
    if file.kind == "mosaic":
        frames = _tiles(frames[0], len(file.slices))
    return frames.transpose(2, 1, 0)


def real_values(stored: np.ndarray, slices: Sequence[DicomSlice]) -> np.ndarray:
    """(I, J, K) stored values -> real ones, each slice by its own slope and intercept or table.

    Whole numbers stay integers where every slope and intercept is whole.
    """
    if any(one.lut for one in slices):
        return np.stack([_looked_up(stored[..., k], one) for k, one in enumerate(slices)], axis=-1)
    scalings = [one.scaling or (1.0, 0.0) for one in slices]
    if all(scaling == (1.0, 0.0) for scaling in scalings):
        return stored if stored.dtype.kind in "iu" else stored.astype(np.float32)
    if stored.dtype.kind in "iu" and all(float(v).is_integer() for scaling in scalings for v in scaling):
        slopes, intercepts = np.array(scalings).astype(np.int64).T
        return _narrow(stored.astype(np.int64) * slopes + intercepts)
    values = np.empty(stored.shape, np.float32, order="F")
    for k, (slope, intercept) in enumerate(scalings):  # by slices: the product is in double, and need not be held whole
        values[..., k] = stored[..., k] * np.float64(slope) + intercept
    return values


def _looked_up(values: np.ndarray, one: DicomSlice) -> np.ndarray:
    if one.lut is None:
        return values.astype(np.uint16)
    return one.lut.values[np.clip(values.astype(np.int64) - one.lut.first, 0, len(one.lut.values) - 1)]


def _narrow(values: np.ndarray) -> np.ndarray:
    """In the smallest of int16, uint16 and int32 that holds them; int16 first, as CT has it."""
    low, high = int(values.min()), int(values.max())
    for kind in (np.int16, np.uint16, np.int32):
        if np.iinfo(kind).min <= low and high <= np.iinfo(kind).max:
            return values.astype(kind)
    return values.astype(np.float32)


def _native(file: DicomFile) -> np.ndarray:
    """(frames, rows, columns) of uncompressed pixels, bits above the used ones cleared."""
    layout = file.pixels
    content = _content(file.path, layout)
    count = layout.frames * layout.rows * layout.columns
    if layout.allocated == 1:
        bits = np.unpackbits(np.frombuffer(content, np.uint8), count=count, bitorder="little")
        return bits.reshape(layout.frames, layout.rows, layout.columns)
    values = np.frombuffer(content, layout.dtype, count).astype(layout.dtype.newbyteorder("="))
    values = values.reshape(layout.frames, layout.rows, layout.columns)
    if layout.floating or layout.used == layout.allocated:
        return values
    up, down = layout.allocated - 1 - layout.high, layout.allocated - layout.used
    return (values << up) >> down  # of a signed type the second shift repeats the sign


def _content(path: Path, layout: PixelLayout) -> bytes:
    if layout.syntax == DEFLATED:
        import pydicom

        return bytes(pydicom.dcmread(in_memory(path), force=True).PixelData)
    # a member of a zip is read to its end, where its checksum is compared
    with open_file(path) if path.exists() else in_memory(path) as stream:
        stream.seek(layout.start)
        content = stream.read(layout.promised)
    if len(content) < layout.promised:
        raise InputError(f"{path}: truncated while it was read")
    return content


def _decoded(file: DicomFile) -> np.ndarray:
    """(frames, rows, columns) of compressed pixels.

    Run-length encoded ones by pydicom, others by itk's GDCM. itk applies the slope and intercept of the first frame,
    which is undone: each frame has its own.
    """
    layout = file.pixels
    shape = (layout.frames, layout.rows, layout.columns)
    if layout.syntax == RUN_LENGTH:
        return _run_length(file.path).reshape(shape)
    import itk

    silence()
    reader = itk.GDCMImageIO.New()
    try:
        with on_disk(file.path) as place:
            reader.SetFileName(str(place))
            reader.ReadImageInformation()
            if reader.GetNumberOfComponents() > 1:
                raise InputError(f"{file.path}: expected one value per voxel, got colours")
            slope, intercept = reader.GetRescaleSlope(), reader.GetRescaleIntercept()
            voxels = itk.array_from_image(itk.imread(str(place), imageio=reader))
    except RuntimeError as error:
        raise InputError(
            f"{file.path}: its compressed pixels ({_name(layout.syntax)}) are damaged, or of a kind that medkit cannot "
            "read; dcmtk's dcmdjpeg and dcmdjpls, or gdcmconv --raw, may make an uncompressed copy"
        ) from error
    if voxels.size != math.prod(shape):
        raise InputError(f"{file.path}: expected {math.prod(shape)} pixels, its compressed data holds {voxels.size}")
    if (slope, intercept) != (1.0, 0.0):
        voxels = np.rint((voxels.astype(np.float64) - intercept) / slope)
    voxels = voxels.reshape(shape).astype(layout.dtype.newbyteorder("="))
    if layout.inverted:  # itk's GDCM returns 2^bits - 1 minus the stored value (measured with itk 5.4)
        voxels = (-1 - voxels) if layout.signed else ((1 << layout.used) - 1 - voxels)
    return voxels


def _name(syntax: str) -> str:
    """Return the name of a transfer syntax, such as `JPEG 2000 Image Compression`, or its UID."""
    from pydicom.uid import UID

    return str(UID(syntax).name)


def _run_length(path: Path) -> np.ndarray:
    import pydicom

    try:
        return np.asarray(pydicom.dcmread(in_memory(path), force=True).pixel_array)
    except Exception as error:  # pydicom raises errors of many types for damaged data
        raise InputError(f"{path}: its run-length encoded pixels are damaged: {error}") from error


def _tiles(plane: np.ndarray, count: int) -> np.ndarray:
    """A mosaic (rows, columns) as its tiles (count, rows, columns), row by row."""
    side = math.ceil(math.sqrt(count))
    rows, columns = plane.shape[0] // side, plane.shape[1] // side
    tiles = plane.reshape(side, rows, side, columns).transpose(0, 2, 1, 3)
    return tiles.reshape(side * side, rows, columns)[:count]
