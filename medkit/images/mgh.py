"""MGH and MGZ, FreeSurfer's volumes: read and written through nibabel's header."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from medkit.errors import InputError, OutputError
from medkit.images import nifti
from medkit.images.stored import Stored, guessed_orientation, pick_frame
from medkit.space import Grid, three_axes

DATA_OFFSET = 284
"""Bytes of the header, after which the voxels start."""
_STATES_ORIENTATION = slice(28, 30)
"""Place of the header's `goodRASFlag`, 0 if it states neither spacing nor orientation; nibabel sets it to 1."""


def read_stored(path: Path, frame: int | None, series: str | None) -> Stored:
    """Read one frame; `series` has no meaning for this format. Raises InputError."""
    content = nifti.read_bytes(path)
    header = _header(path, content)
    grid = _grid(path, header)
    shape, dtype = header.get_data_shape(), header.get_data_dtype()
    count = int(np.prod(shape, dtype=object))
    if len(content) < DATA_OFFSET + count * dtype.itemsize:
        raise InputError(f"{path}: truncated: the header promises {count} voxels, the file holds {len(content)} bytes")
    voxels: np.ndarray = np.frombuffer(content, dtype, count, DATA_OFFSET).astype(dtype.newbyteorder("="))
    frames = voxels.reshape(*grid.shape, -1, order="F")
    doubts = guessed_orientation(grid, any(content[_STATES_ORIENTATION]))
    return Stored(pick_frame(path, frames, frame)[None], grid, doubts=doubts)


def read_grid(path: Path, series: str | None) -> Grid:
    """Read the grid from the header only; `series` has no meaning for this format. Raises InputError."""
    return _grid(path, _header(path, nifti.read_head(path)))


def _header(path: Path, content: bytes | bytearray) -> Any:
    from nibabel.freesurfer.mghformat import MGHHeader

    try:
        header = MGHHeader(bytes(content[: MGHHeader.template_dtype.itemsize]), check=True)
        header.get_data_dtype()
    except Exception as error:  # nibabel raises several types of error for bytes that are not a header
        raise InputError(f"{path}: expected an MGH file, got something else") from error
    return header


def _grid(path: Path, header: Any) -> Grid:
    shape = three_axes(header.get_data_shape())
    if min(shape) < 1:
        raise InputError(f"{path}: no voxels: expected axes of one voxel or more, got the shape {shape}")
    return Grid(shape, header.get_affine())


def write_image(path: Path, data: np.ndarray, grid: Grid) -> None:
    """Write (C, I, J, K) with nibabel's header and medkit's gzip stream; equal images make equal bytes.

    Raises OutputError for numbers that the format cannot hold.
    """
    from nibabel.freesurfer.mghformat import MGHImage

    voxels = data[0] if len(data) == 1 else np.moveaxis(data, 0, -1)
    content = MGHImage(_typed(path, voxels), grid.affine).to_bytes()
    with open(path, "wb") as stream:
        if path.suffix.lower() == ".mgz":
            nifti.write_gzip(stream, [content])
        else:
            stream.write(content)


def _typed(path: Path, voxels: np.ndarray) -> np.ndarray:
    """Return voxels in one of MGH's four types: uint8, int16, int32, float32. Raises OutputError."""
    if voxels.dtype.kind == "f":
        return voxels.astype(np.float32, copy=False)
    for kind in (np.uint8, np.int16, np.int32):
        if np.can_cast(voxels.dtype, kind):
            return voxels.astype(kind, copy=False)
    if voxels.max() > np.iinfo(np.int32).max or voxels.min() < np.iinfo(np.int32).min:
        raise OutputError(f"{path}: mgh files hold whole numbers up to {np.iinfo(np.int32).max}, got {voxels.max()}")
    return voxels.astype(np.int32)
