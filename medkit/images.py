"""Images: reading with the sanity checks that come before any work, and writing on an exact grid.

One frame (RAS+, mm) and one layout, (C, I, J, K), whatever the format of the file. NIfTI and MGH go through nibabel,
NRRD, MetaImage and DICOM through itk, PNG and JPEG through Pillow.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from medkit import itk_files, nifti, pictures
from medkit.dicom import is_dicom, read_dicom, read_dicom_grid
from medkit.errors import InputError, OutputError
from medkit.names import GREY_PICTURES
from medkit.space import Grid, three_axes

IMAGE_SUFFIXES = (".nii.gz", ".nii", ".mgz", ".mgh", ".nrrd", ".nhdr", ".mha", ".mhd", ".dcm")
"""What `read_image` takes, beside a folder with one DICOM series and grey pictures (`GREY_PICTURES`)."""
ITK_SUFFIXES = (".nrrd", ".nhdr", ".mha", ".mhd")
MGH_DATA_OFFSET = 284
SPACING_RANGE = (1e-3, 1e3)
"""mm; a voxel outside it is a mistake of units or a torn header."""
ANISOTROPY = 3.0
"""Largest to smallest spacing beyond which a warning is due: 1 x 1 x 3 mm is still read as a volume."""
SMALL_FIELD_OF_VIEW = 64.0
"""mm; the longest side of an image below it suggests that the anatomy is cut off."""


@dataclass(frozen=True, eq=False)
class Image:
    """An image in memory: finite voxels on a grid."""

    data: np.ndarray
    """(C, I, J, K), channel first: the stored integer type where the file has no scaling, else float32."""
    grid: Grid
    """Where the voxels are."""
    path: Path | None = None
    """The file or DICOM folder it was read from."""
    dtype: Any = None
    """Type of an output made from it by interpolation: the file's integer type where unscaled, else float32."""
    warnings: tuple[str, ...] = ()
    """What the sanity check found but did not refuse, in plain sentences."""

    def __post_init__(self) -> None:
        if self.data.ndim != 4 or self.data.shape[1:] != self.grid.shape:
            raise ValueError(f"expected data of shape (C, {self.grid.shape}), got {self.data.shape}")
        integer = self.data.dtype.kind in "iu"
        object.__setattr__(self, "dtype", np.dtype(self.dtype or (self.data.dtype if integer else np.float32)))

    def with_data(self, data: np.ndarray, grid: Grid | None = None) -> Image:
        """Other voxels, (C, I, J, K), on the same grid or on `grid`; the output type follows the new voxels."""
        return Image(data, grid or self.grid, self.path, warnings=self.warnings)

    def like(self, values: np.ndarray, grid: Grid | None = None) -> Image:
        """Values, (C, I, J, K), computed from this image, in its type: whole numbers are rounded and stay in its range.

        Nothing is below 0 where nothing was.
        """
        values = np.maximum(values, 0) if self.data.min() >= 0 else values
        if self.dtype.kind in "iu":
            limits = np.iinfo(self.dtype)
            values = np.clip(np.rint(values), limits.min, limits.max)
        return self.with_data(values.astype(self.dtype), grid)

    def write(self, path: Path) -> None:
        """Write the whole file in the format of its suffix, voxels unscaled and as they are typed in `data`."""
        path = Path(path)
        data = _storable(self.data)
        if path.name.endswith((".nii", ".nii.gz")):
            spacing = self.grid.spacing
            nifti.write(
                path, _file_axes(data, self.grid), nifti.header_for(self.grid.header, self.grid.affine, spacing)
            )
        elif path.suffix in (".mgh", ".mgz"):
            _write_mgh(path, data, self.grid)
        elif path.suffix in (".nrrd", ".nhdr", ".mha", ".mhd"):
            itk_files.write_image(path, data, self.grid)
        elif _is_picture(path):
            pictures.write_picture(path, data, self.grid)
        else:
            known = (*IMAGE_SUFFIXES[:-1], *GREY_PICTURES)
            raise OutputError(f"{path}: expected a name that ends in {', '.join(known)}")


def read_image(path: Path, *, frame: int | None = None, series: str | None = None, labels: bool = False) -> Image:
    """Read one image and check it; InputError names the file, what was expected and what came.

    `frame` picks one frame (0-based) of a file with several; `series` one DICOM series of a folder by UID or number.
    With `labels` the voxels must be whole numbers from 0 on and come back as integers; a constant image is allowed.
    """
    path = _existing(path)
    stored = _read_stored(path, frame, series)
    warnings = list(stored.warnings) + check_grid(path, stored.grid)
    data = _label_values(path, stored.data) if labels else _finite_values(path, stored.data, warnings)
    own = stored.data.dtype if stored.data.dtype.kind in "iu" else None
    return Image(data, stored.grid, path, None if labels else own, tuple(warnings))


def read_grid(path: Path, *, series: str | None = None) -> Grid:
    """The grid of an image from its header alone, checked as in `read_image`."""
    path = _existing(path)
    if _is_nifti(path):
        header = nifti.read_header(path)
        grid = _nifti_grid(path, header, nifti.promised_shape(path, header))[0]
    elif path.suffix in (".mgh", ".mgz"):
        grid = _mgh_grid(path, _mgh_header(path, nifti.read_head(path)))
    elif path.name.endswith(ITK_SUFFIXES):
        grid = itk_files.grid_of(path, itk_files.read_header(path))
    elif _is_picture(path):
        grid = pictures.read_picture_grid(path)
    elif path.suffix == ".dcm" or is_dicom(path):
        grid = read_dicom_grid(path, series)
    else:
        raise _unknown(path)
    check_grid(path, grid)
    return grid


def check_grid(path: Path, grid: Grid) -> list[str]:
    """Refuse a grid that cannot be (InputError); warnings for one that is unusual."""
    spacing = grid.spacing
    if not np.isfinite(grid.affine).all() or not ((spacing > SPACING_RANGE[0]) & (spacing < SPACING_RANGE[1])).all():
        came = " x ".join(f"{size:g}" for size in spacing)
        raise InputError(f"{path}: expected a spacing between 0.001 and 1000 mm, got {came} mm")
    if abs(np.linalg.det(grid.affine[:3, :3] / spacing)) < 1e-3:
        raise InputError(f"{path}: singular affine: its axes do not span the space")
    warnings = []
    axes = spacing[: grid.dims]
    if axes.max() > ANISOTROPY * axes.min():
        warnings.append(f"strongly anisotropic spacing: {' x '.join(f'{size:.3g}' for size in axes)} mm")
    longest = float((spacing * grid.shape).max())
    if longest < SMALL_FIELD_OF_VIEW:
        warnings.append(f"field of view of {longest:.0f} mm: the anatomy may be cropped")
    return warnings


@dataclass(frozen=True, eq=False)
class Stored:
    """Voxels as a file holds them, before the checks of their values."""

    data: np.ndarray
    """(1, I, J, K); integers where the file has no scaling, else float32."""
    grid: Grid
    """Where they are."""
    warnings: tuple[str, ...] = ()
    """What the reader noticed."""


def _read_stored(path: Path, frame: int | None, series: str | None) -> Stored:
    if _is_nifti(path):
        return _read_nifti(path, frame)
    if path.suffix in (".mgh", ".mgz"):
        return _read_mgh(path, frame)
    if path.name.endswith(ITK_SUFFIXES) and not path.is_dir():
        return _read_itk(path, frame)
    if _is_picture(path):
        return _read_picture(path, frame)
    if path.suffix == ".dcm" or is_dicom(path):
        return _read_dicom(path, frame, series)
    raise _unknown(path)


def _unknown(path: Path) -> InputError:
    known = ", ".join((*IMAGE_SUFFIXES, *GREY_PICTURES))
    return InputError(f"{path}: expected a DICOM folder or a file that ends in {known}")


def _existing(path: Path) -> Path:
    if not Path(path).exists():
        raise InputError(f"{path}: no such file or folder")
    return Path(path)


def _is_nifti(path: Path) -> bool:
    return path.name.endswith((".nii", ".nii.gz")) and not path.is_dir()


def _is_picture(path: Path) -> bool:
    return path.name.lower().endswith(GREY_PICTURES) and not path.is_dir()


def _read_picture(path: Path, frame: int | None) -> Stored:
    voxels, grid, warnings = pictures.read_picture(path)
    return Stored(pick_frame(path, voxels[0, ..., None], frame)[None], grid, tuple(warnings))


def _read_nifti(path: Path, frame: int | None) -> Stored:
    header, voxels = nifti.read(path)
    grid, warnings = _nifti_grid(path, header, voxels.shape)
    if int(header["intent_code"]) in nifti.VECTOR_INTENTS and voxels.ndim == 5:
        raise InputError(f"{path}: expected an image, got a displacement field or another image of vectors")
    voxels = pick_frame(path, voxels.reshape(*grid.shape, -1, order="F"), frame)
    scaling = nifti.scaling(path, header)
    return Stored(as_values(path, voxels, scaling)[None], grid, tuple(warnings))


def _nifti_grid(path: Path, header: Any, shape: tuple[int, ...]) -> tuple[Grid, list[str]]:
    if len(shape) == 1:
        raise InputError(f"{path}: expected 2 or 3 axes, got one")
    affine, warnings = nifti.affine_of(path, header)
    return Grid(three_axes(shape), affine, min(len(shape), 3), nifti.geometry_fields(header)), warnings


def pick_frame(path: Path, voxels: np.ndarray, frame: int | None) -> np.ndarray:
    """(I, J, K, T) -> (I, J, K): the only frame, or the one asked for."""
    count = voxels.shape[3]
    if frame is None and count > 1:
        raise InputError(f"{path}: expected one frame, got {count}; pick one with --frame N (0 to {count - 1})")
    if frame is not None and not 0 <= frame < count:
        raise InputError(f"{path}: there is no frame {frame}: it holds the frames 0 to {count - 1}")
    return voxels[..., frame or 0]


def as_values(path: Path, voxels: np.ndarray, scaling: tuple[float, float] | None) -> np.ndarray:
    """Stored voxels as values: unscaled integers as they are, everything else as float32."""
    if voxels.dtype.names is not None:
        raise InputError(f"{path}: expected one value per voxel, got colours (RGB)")
    if voxels.dtype.kind == "c":
        raise InputError(f"{path}: expected real voxels, got complex ones")
    if scaling is None:
        return voxels if voxels.dtype.kind in "iu" else voxels.astype(np.float32, copy=False)
    values = np.empty_like(voxels, np.float32)
    for k in range(voxels.shape[2]):  # by slices: the product is in double, and need not be held whole
        values[..., k] = voxels[..., k] * np.float64(scaling[0]) + scaling[1]
    return values


def _finite_values(path: Path, data: np.ndarray, warnings: list[str]) -> np.ndarray:
    """Voxels without NaN and infinity; refuses an image without contrast."""
    low, high = data.min(), data.max()
    if not np.isfinite(high - low if data.dtype.kind == "f" else 0.0):
        data = _replace_non_finite(path, data, warnings)
        low, high = data.min(), data.max()
    if low == high:
        raise InputError(f"{path}: expected an image, got the value {low:g} in every voxel")
    return data


def _replace_non_finite(path: Path, data: np.ndarray, warnings: list[str]) -> np.ndarray:
    finite = np.isfinite(data)
    if not finite.any():
        raise InputError(f"{path}: no finite voxel: every one is NaN or infinite")
    if finite.all():
        return data
    low, high = float(data[finite].min()), float(data[finite].max())
    warnings.append(f"{int((~finite).sum())} voxels are NaN or infinite: replaced by 0 or the nearest finite value")
    return np.nan_to_num(data, nan=0.0, posinf=high, neginf=low)


def _label_values(path: Path, data: np.ndarray) -> np.ndarray:
    """Labels as integers of the file's own type, or of the smallest that holds them where the file has floats."""
    low, high = data.min(), data.max()
    if data.dtype.kind == "f" and not (np.isfinite(low) and np.isfinite(high) and (data == np.rint(data)).all()):
        raise InputError(f"{path}: expected labels (whole numbers), got fractions, NaN or infinity")
    if low < 0:
        raise InputError(f"{path}: expected labels (0 or more), got {low:g}")
    return data if data.dtype.kind in "iu" else data.astype(np.min_scalar_type(int(high)))


def _storable(data: np.ndarray) -> np.ndarray:
    narrow = {"b": np.uint8, "f": np.float32}
    return (
        data
        if data.dtype.kind in "iu" or data.dtype == np.float64
        else data.astype(narrow[data.dtype.kind], copy=False)
    )


def _file_axes(data: np.ndarray, grid: Grid) -> np.ndarray:
    """(C, I, J, K) -> (I, J), (I, J, K) or with several channels (I, J, K, C)."""
    if len(data) > 1:
        return np.moveaxis(data, 0, -1)
    return data[0, ..., 0] if grid.dims == 2 else data[0]


def _read_itk(path: Path, frame: int | None) -> Stored:
    reader = itk_files.read_header(path)
    grid = itk_files.grid_of(path, reader)
    voxels = itk_files.read_voxels(path, reader)
    components = voxels.shape[4]
    if (components == 3 and voxels.dtype.kind == "f") or (components > 1 and voxels.shape[3] > 1):
        raise InputError(f"{path}: expected an image, got a displacement field or another image of vectors")
    if components in (3, 4) and voxels.dtype == np.uint8:
        raise InputError(f"{path}: expected one value per voxel, got colours (RGB)")
    frames = voxels.reshape(*voxels.shape[:3], -1, order="F")
    return Stored(as_values(path, pick_frame(path, frames, frame), None)[None], grid)


def _read_dicom(path: Path, frame: int | None, series: str | None) -> Stored:
    voxels, grid, warnings = read_dicom(path, frame, series)
    return Stored(voxels.transpose(3, 0, 1, 2), grid, tuple(warnings))


def _read_mgh(path: Path, frame: int | None) -> Stored:
    content = nifti.read_bytes(path)
    header = _mgh_header(path, content)
    grid = _mgh_grid(path, header)
    shape, dtype = header.get_data_shape(), header.get_data_dtype()
    count = int(np.prod(shape, dtype=object))
    if len(content) < MGH_DATA_OFFSET + count * dtype.itemsize:
        raise InputError(f"{path}: truncated: the header promises {count} voxels, the file holds {len(content)} bytes")
    voxels: np.ndarray = np.frombuffer(content, dtype, count, MGH_DATA_OFFSET).astype(dtype.newbyteorder("="))
    frames = voxels.reshape(*grid.shape, -1, order="F")
    return Stored(as_values(path, pick_frame(path, frames, frame), None)[None], grid)


def _mgh_header(path: Path, content: bytes | bytearray) -> Any:
    from nibabel.freesurfer.mghformat import MGHHeader

    try:
        header = MGHHeader(bytes(content[: MGHHeader.template_dtype.itemsize]), check=True)
        header.get_data_dtype()
    except Exception as error:  # nibabel raises several types of error for bytes that are no header
        raise InputError(f"{path}: expected an MGH file, got something else") from error
    return header


def _mgh_grid(path: Path, header: Any) -> Grid:
    shape = three_axes(header.get_data_shape())
    if min(shape) < 1:
        raise InputError(f"{path}: no voxels: expected axes of one voxel or more, got the shape {shape}")
    return Grid(shape, header.get_affine())


def _write_mgh(path: Path, data: np.ndarray, grid: Grid) -> None:
    """Write with nibabel's header; the gzip stream is ours, so that equal images give equal bytes."""
    from nibabel.freesurfer.mghformat import MGHImage

    voxels = data[0] if len(data) == 1 else np.moveaxis(data, 0, -1)
    content = MGHImage(_mgh_typed(path, voxels), grid.affine).to_bytes()
    with open(path, "wb") as stream:
        if path.suffix == ".mgz":
            nifti.write_gzip(stream, [content])
        else:
            stream.write(content)


def _mgh_typed(path: Path, voxels: np.ndarray) -> np.ndarray:
    """In one of MGH's four types: uint8, int16, int32, float32."""
    if voxels.dtype.kind == "f":
        return voxels.astype(np.float32, copy=False)
    for kind in (np.uint8, np.int16, np.int32):
        if np.can_cast(voxels.dtype, kind):
            return voxels.astype(kind, copy=False)
    if voxels.max() > np.iinfo(np.int32).max or voxels.min() < np.iinfo(np.int32).min:
        raise OutputError(f"{path}: mgh files hold whole numbers up to {np.iinfo(np.int32).max}, got {voxels.max()}")
    return voxels.astype(np.int32)
