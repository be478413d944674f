"""Images: reading with the sanity checks that come before any work, and writing on an exact grid.

One frame (RAS+, mm) and one layout, (C, I, J, K), whatever the format of the file. NIfTI and MGH go through nibabel,
NRRD, MetaImage and DICOM through itk, PNG and JPEG through Pillow.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from medkit.errors import InputError, OutputError
from medkit.images import itk as itk_files
from medkit.images import nifti, pictures
from medkit.images.dicom import _read_dicom, is_dicom, read_dicom_grid
from medkit.images.itk import _read_itk
from medkit.images.mgh import _mgh_grid, _mgh_header, _read_mgh, _write_mgh
from medkit.images.nifti import _nifti_grid, _read_nifti
from medkit.images.pictures import _read_picture
from medkit.pipe.names import GREY_PICTURES, IMAGE_SUFFIXES, WRITABLE_IMAGES
from medkit.space import Grid, check_grid

if TYPE_CHECKING:
    from medkit.images.stored import Stored

ITK_SUFFIXES = (".nrrd", ".nhdr", ".mha", ".mhd")


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
            known = WRITABLE_IMAGES
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


def count_frames(path: Path) -> int:
    """Frames of a NIfTI file; 1 of any other. Raises InputError."""
    if path.is_dir() or not _is_nifti(path):
        return 1
    return int(np.prod(nifti.promised_shape(path, nifti.read_header(path))[3:]))


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
