"""NIfTI files: the header, parsed by nibabel, the voxels, and the geometry as it is stored.

medkit reads the bytes itself, because a result must come from a complete file: the CRC of the gzip stream is checked to
its end, and the size that the header promises is compared with the file before memory is allocated.
"""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import numpy as np
from isal import igzip_threaded, isal_zlib

from medkit.errors import InputError
from medkit.images.nifti_forms import MILLIMETRES, geometry_fields, header_for
from medkit.images.stored import Stored, check_real, guessed_orientation, pick_frame
from medkit.space import Grid, three_axes

VECTOR_INTENTS = (1006, 1007)
"""NIFTI_INTENT_DISPVECT and NIFTI_INTENT_VECTOR."""
_DATA_OFFSET = {348: 352, 540: 544}
"""First byte of the voxels at the earliest, by the size of the header (NIfTI-1 and NIfTI-2)."""
_ROUNDING = 1e-3
"""How much longer than 1 the stored quaternion of a rotation may be; it is scaled to 1 then, as ITK does it."""
_HALF_TURN = 1 - 3 * 2.0**-23
"""Square of the stored quaternion's length above which its fourth number counts as 0: 1 in single precision."""
_LONGEST_AXIS = 32767
"""Largest number of voxels along an axis that NIfTI-1 can state (int16); longer ones are written as NIfTI-2."""
_TILT = 1e-4
"""Largest cosine between the normal of a plane and the x or y axis with which it counts as axial."""
_BEST_DEFLATE = 1032
"""Largest factor by which a deflate stream grows (zlib's technical notes); a file that promises more is damaged."""


def read_header(path: Path) -> Any:
    """Return a file's `nibabel.Nifti1Header` or `Nifti2Header`, in the byte order of the file. Raises InputError.

    Gzip is recognised by the content, not by the name.
    """
    return _parse_header(path, read_head(path))


def read_head(path: Path) -> bytes:
    """Return the first kilobyte of a file or more, unpacked if it is gzip. Raises InputError."""
    with opened(path) as stream:
        head = stream.read(1 << 16)
    return _inflate_head(path, head) if head[:2] == b"\x1f\x8b" else head


def read(path: Path) -> tuple[Any, np.ndarray]:
    """Return header and unscaled voxels, in the shape of the header, Fortran order (axis I fastest), native byte order.

    Raises InputError for a file that is damaged, truncated or not NIfTI.
    """
    with opened(path) as stream:
        raw = stream.read()
    header = _parse_header(path, _inflate_head(path, raw[: 1 << 16]) if raw[:2] == b"\x1f\x8b" else raw)
    if not np.isfinite(float(header["vox_offset"])):
        raise InputError(f"{path}: expected the place of the voxels (vox_offset) in it, got {header['vox_offset']}")
    shape, dtype, start = promised_shape(path, header), stored_dtype(path, header), _data_start(header)
    promised = start + dtype.itemsize * int(np.prod(shape, dtype=object))
    content = _inflate(path, raw, promised) if raw[:2] == b"\x1f\x8b" else bytearray(raw)
    if len(content) < promised:
        raise InputError(f"{path}: truncated: the header promises {promised} bytes, the file holds {len(content)}")
    voxels: np.ndarray = np.frombuffer(content, dtype, count=int(np.prod(shape)), offset=start)
    return header, voxels.astype(dtype.newbyteorder("="), copy=False).reshape(shape, order="F")


def read_bytes(path: Path) -> bytearray:
    """Return the content of a file; gzip is unpacked and its checksum verified. Raises InputError if it is damaged."""
    with opened(path) as stream:
        raw = stream.read()
    return _inflate(path, raw, len(raw) * _BEST_DEFLATE) if raw[:2] == b"\x1f\x8b" else bytearray(raw)


def write(path: Path, voxels: np.ndarray, header: Any) -> None:
    """Write `voxels`, unscaled, with the geometry and intent of `header`; with gzip if the name ends in `.gz`.

    An axis that is too long for NIfTI-1 makes the file NIfTI-2. Equal arrays and headers make equal bytes, because the
    gzip header has neither a time nor a name.
    """
    header = _as_nifti2(header) if max(voxels.shape) > _LONGEST_AXIS else header.copy()
    header.set_data_dtype(voxels.dtype.newbyteorder("="))
    zooms = np.array(header["pixdim"])
    header.set_data_shape(voxels.shape)
    header["pixdim"] = zooms  # set_data_shape clears the entries beyond the shape
    header["magic"] = b"n+1" if header["sizeof_hdr"] == 348 else b"n+2"
    header["vox_offset"] = start = _data_start(header)
    header["scl_slope"], header["scl_inter"] = 1, 0
    body = np.ascontiguousarray(voxels.T, voxels.dtype.newbyteorder("="))
    head = header.binaryblock
    content = [head, bytes(start - len(head)), body.reshape(-1).view(np.uint8).data]
    with open(path, "wb") as stream:
        if path.name.lower().endswith(".gz"):
            write_gzip(stream, content)
        else:
            stream.writelines(content)


def write_gzip(stream: Any, content: list[Any]) -> None:
    """Compress the parts of `content` in order into `stream`, fast (level 1), with the same bytes each time.

    Intel's ISA-L takes a fifth of zlib's time for a smaller file, and reading takes less than half. Two threads
    compress blocks at once; the bytes do not depend on the number of threads.
    """
    from medkit.machine.threads import granted_threads

    with igzip_threaded.open(stream, "wb", compresslevel=1, threads=min(2, granted_threads())) as packed:
        for part in content:
            packed.write(part)


def affine_of(path: Path, header: Any) -> tuple[np.ndarray, list[str]]:
    """Return the affine (4, 4), voxel -> RAS+ mm, and warnings about it.

    The sform is preferred to the qform, as in ITK and nibabel. Without both the affine only comes from the spacing. A
    single plane whose third axis has no length (a 2D file need not state it) gets a normal of 1 mm. Raises InputError
    if a qform is the only form and holds no rotation.
    """
    warnings: list[str] = []
    usable = _usable(header)
    sform, qform = _forms(usable)
    if sform is not None and qform is not None and not _agree(sform, qform, header):
        warnings.append("sform and qform disagree; the sform is used")
    affine = sform if sform is not None else qform
    if affine is None and header["qform_code"] > 0:
        raise InputError(f"{path}: expected a rotation in the qform, got the quaternion {_quaternion(header)}")
    if affine is None:
        affine = usable.get_base_affine()
        warnings.append("neither sform nor qform is set: orientation and left/right are a guess")
    affine = np.array(affine, np.float64)
    affine[:3] *= MILLIMETRES.get(int(header["xyzt_units"]) & 7, 1.0)
    if three_axes(promised_shape(path, header))[2] == 1 and not affine[:3, 2].any():
        affine[:3, 2] = _normal(affine)
        if int(header["dim"][0]) > 2:
            warnings.append("the size of the voxels along the third axis is 0; 1 mm is used")
    return affine, warnings


def doubts_of(header: Any, grid: Grid) -> tuple[str, ...]:
    """Return what makes every result of a file with this grid doubtful, in phrases."""
    sform, qform = _forms(_usable(header))
    if sform is None or qform is None:
        return guessed_orientation(grid, sform is not None or qform is not None)
    with np.errstate(invalid="ignore"):  # the grid with NaN is refused later
        mirrored = np.linalg.det(sform[:3, :3]) * np.linalg.det(qform[:3, :3]) < 0
    if not mirrored:
        return ()
    return ("left and right are uncertain: the qform is a mirror image of the sform, which is used",)


def _usable(header: Any) -> Any:
    """Return a copy of a header whose spacing has no signs but the standard's one: 0 or more means 1."""
    usable = header.copy()
    usable["pixdim"][0] = -1 if header["pixdim"][0] < 0 else 1
    usable["pixdim"][1:4] = np.abs(header["pixdim"][1:4])
    return usable


def _forms(usable: Any) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Return sform and qform, (4, 4) in the header's units; None for one that is not set, or is no rotation."""
    sform = usable.get_sform() if usable["sform_code"] > 0 else None
    return sform, _qform(usable) if usable["qform_code"] > 0 else None


def promised_shape(path: Path, header: Any) -> tuple[int, ...]:
    """Return the shape in the header, with all axes. Raises InputError if an axis has no voxels."""
    axes = int(header["dim"][0])
    shape = tuple(int(n) for n in header["dim"][1 : axes + 1])
    if not 1 <= axes <= 7 or min(shape) < 1:
        raise InputError(f"{path}: no voxels: expected axes of one voxel or more, got the shape {shape}")
    return shape


def stored_dtype(path: Path, header: Any) -> np.dtype:
    """Return the type of the voxels in the file, in the byte order of the file. Raises InputError."""
    try:
        dtype = header.get_data_dtype()
    except Exception as error:  # nibabel's HeaderDataError, without importing nibabel for its name
        raise InputError(f"{path}: voxels of NIfTI type {int(header['datatype'])}, which medkit cannot read") from error
    if dtype.itemsize == 0:
        raise InputError(f"{path}: voxels of NIfTI type {int(header['datatype'])}, which medkit cannot read")
    return dtype


def scaling(path: Path, header: Any) -> tuple[float, float] | None:
    """Return slope and intercept of the voxels; None without scaling (slope 0 or not a number, or 1 and 0).

    Raises InputError for an intercept that is not finite.
    """
    slope, intercept = float(header["scl_slope"]), float(header["scl_inter"])
    if slope == 0 or not np.isfinite(slope) or (slope, intercept) == (1.0, 0.0):
        return None
    if not np.isfinite(intercept):
        raise InputError(f"{path}: expected a finite intercept of the voxels (scl_inter), got {intercept}")
    return slope, intercept


def opened(path: Path) -> io.BufferedReader:
    """Open a file for reading bytes. Raises InputError."""
    try:
        return open(path, "rb")
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {os.strerror(error.errno or 0)}") from error


def _parse_header(path: Path, head: bytes) -> Any:
    from nibabel import Nifti1Header, Nifti2Header

    sizes = {348: Nifti1Header, 540: Nifti2Header}
    kind = sizes.get(int.from_bytes(head[:4], "little"), sizes.get(int.from_bytes(head[:4], "big")))
    if kind is None:
        raise InputError(f"{path}: expected a NIfTI file, got something else (no NIfTI header at its start)")
    size = kind.sizeof_hdr
    if len(head) < size:
        raise InputError(f"{path}: truncated: {len(head)} bytes, less than a NIfTI header")
    header = kind(head[:size], check=False)
    if bytes(header["magic"])[:3] not in (b"n+1", b"n+2"):
        raise InputError(f"{path}: expected header and voxels in one file (NIfTI n+1), got a header only or Analyze")
    return header


def _data_start(header: Any) -> int:
    """Return the first byte of the voxels."""
    return max(int(header["vox_offset"]), _DATA_OFFSET[int(header["sizeof_hdr"])])


def _quaternion(header: Any) -> np.ndarray:
    """Return the three stored numbers of the qform's rotation."""
    return np.array([header[f"quatern_{part}"] for part in "bcd"], np.float64)


def _qform(header: Any) -> np.ndarray | None:
    """Return the affine (4, 4) of the qform, in the header's units; None if its numbers are not a rotation.

    The fourth number of the quaternion follows from its length, which is 1. If the three that are stored have this
    length, or by rounding a larger one, it is 0, in NIfTI-2 as in NIfTI-1.
    """
    from nibabel.quaternions import quat2mat

    quaternion = _quaternion(header)
    square = float(quaternion @ quaternion)
    if not square < (1 + _ROUNDING) ** 2:
        return None
    real = 0.0 if square > _HALF_TURN else np.sqrt(1 - square)
    affine = np.eye(4)
    spacing = header["pixdim"][1:4] * np.array([1.0, 1.0, header["pixdim"][0]])
    affine[:3, :3] = quat2mat([real, *quaternion]) * spacing
    affine[:3, 3] = [header[f"qoffset_{axis}"] for axis in "xyz"]
    return affine


def _normal(affine: np.ndarray) -> np.ndarray:
    """Return a vector (3,) of length 1 across the first two axes of an affine (4, 4); zeros if they are parallel."""
    across = np.cross(affine[:3, 0], affine[:3, 1])
    length = np.linalg.norm(across)
    return across / length if length > 0 else across


def _as_nifti2(header: Any) -> Any:
    """Return a NIfTI-2 header with the geometry, the intent and the texts of `header`."""
    from nibabel import Nifti2Header

    wider = Nifti2Header()
    for name in set(wider.keys()) & set(header.keys()) - {"sizeof_hdr", "magic", "vox_offset", "dim"}:
        wider[name] = header[name]
    length = np.linalg.norm(_quaternion(header))
    if length**2 > _HALF_TURN:  # other readers expect a length of 1 in double precision here
        for part in "bcd":
            wider[f"quatern_{part}"] /= length
    return wider


def _agree(sform: np.ndarray, qform: np.ndarray, header: Any) -> bool:
    """Return whether sform and qform put the corners of the image at the same positions, within a tenth of a voxel."""
    corners = np.array([[0, 0, 0, 1.0], [*np.maximum(header["dim"][1:4] - 1.0, 1.0), 1.0]])
    apart = np.abs(corners @ (sform - qform).T).max()
    return bool(apart < max(0.1 * np.abs(header["pixdim"][1:4]).min(), 1e-3))


def _inflate_head(path: Path, raw: bytes) -> bytes:
    try:
        return isal_zlib.decompressobj(wbits=31).decompress(raw, 1 << 10)
    except isal_zlib.error as error:
        raise InputError(f"{path}: damaged gzip stream ({error})") from error


def _inflate(path: Path, raw: bytes, promised: int) -> bytearray:
    """Return the first `promised` bytes of the gzip streams; the checksum of every stream is verified.

    Raises InputError.
    """
    if promised > len(raw) * _BEST_DEFLATE + (1 << 16):
        raise InputError(
            f"{path}: truncated: the header promises {promised} bytes, the file has {len(raw)} compressed bytes"
        )
    content = bytearray()
    try:
        while raw[:2] == b"\x1f\x8b":  # several streams in a row are one file, as from `cat a.gz b.gz`
            engine = isal_zlib.decompressobj(wbits=31)
            content += engine.decompress(raw, max(promised - len(content), 1))
            while not engine.eof:
                rest = engine.decompress(engine.unconsumed_tail, 1 << 20)
                if not rest and not engine.eof:
                    raise InputError(f"{path}: truncated: the gzip stream ends early, after {len(content)} bytes")
                content += rest[: max(promised - len(content), 0)]
            raw = engine.unused_data
    except isal_zlib.error as error:
        raise InputError(f"{path}: damaged gzip stream ({error})") from error
    return content


def read_stored(path: Path, frame: int | None, series: str | None) -> Stored:
    """Read one frame; `series` has no meaning for this format. Raises InputError."""
    header, voxels = read(path)
    grid, warnings = _grid(path, header, voxels.shape)
    if int(header["intent_code"]) in VECTOR_INTENTS and voxels.ndim == 5:
        raise InputError(f"{path}: expected an image, got a displacement field or another image of vectors")
    voxels = pick_frame(path, voxels.reshape(*grid.shape, -1, order="F"), frame)
    check_real(path, voxels)
    return Stored(voxels[None], grid, tuple(warnings), scaling(path, header), doubts_of(header, grid))


def read_grid(path: Path, series: str | None) -> Grid:
    """Read the grid from the header only; `series` has no meaning for this format. Raises InputError."""
    header = read_header(path)
    return _grid(path, header, promised_shape(path, header))[0]


def write_image(path: Path, data: np.ndarray, grid: Grid) -> None:
    """Write (C, I, J, K) as (I, J), (I, J, K) or with several channels (I, J, K, C)."""
    voxels = np.moveaxis(data, 0, -1) if len(data) > 1 else data[0, ..., 0] if grid.dims == 2 else data[0]
    write(path, voxels, header_for(grid))


def _grid(path: Path, header: Any, shape: tuple[int, ...]) -> tuple[Grid, list[str]]:
    if len(shape) == 1:
        raise InputError(f"{path}: expected 2 or 3 axes, got one")
    affine, warnings = affine_of(path, header)
    dims = 2 if len(shape) == 2 and _is_axial(affine) else 3
    return Grid(three_axes(shape), affine, dims, geometry_fields(header)), warnings


def _is_axial(affine: np.ndarray) -> bool:
    """Return whether the plane of the first two axes is one of x and y, as ITK takes every file of two axes to be.

    Other planes are written with three axes, since ITK would lose their orientation.
    """
    return bool(np.abs(_normal(affine)[:2]).max() < _TILT)
