"""Images: reading with sanity checks, and writing on an exact grid.

Every format is read into one frame, RAS+ mm, and one layout, (C, I, J, K). NIfTI and MGH are read through nibabel;
NRRD, MetaImage and DICOM through itk; PNG and JPEG through Pillow.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from medkit.errors import InputError, OutputError
from medkit.images import itk, mgh, nifti, pictures
from medkit.images.dicom import places
from medkit.images.dicom import reader as dicom
from medkit.images.stored import FramesError, Stored
from medkit.images.strange_values import strange_values
from medkit.pipe.names import GREY_PICTURES, IMAGE_SUFFIXES, WRITABLE_IMAGES
from medkit.pipe.records import refuse_stream
from medkit.space import Grid, check_grid, strange_size


class ImageReader(Protocol):
    """The functions that the module of a format has."""

    def read_stored(self, path: Path, frame: int | None, series: str | None) -> Stored:
        """Read one frame of one series. Raises InputError."""

    def read_grid(self, path: Path, series: str | None) -> Grid:
        """Read the grid from the header only. Raises InputError."""


class ImageFormat(ImageReader, Protocol):
    """The functions that the module of a format has if medkit also writes the format."""

    def write_image(self, path: Path, data: np.ndarray, grid: Grid) -> None:
        """Write voxels (C, I, J, K). Raises OutputError."""


FORMATS: tuple[tuple[tuple[str, ...], ImageFormat], ...] = (
    ((".nii.gz", ".nii"), nifti),
    ((".mgz", ".mgh"), mgh),
    ((".nrrd", ".nhdr", ".mha", ".mhd"), itk),
    (GREY_PICTURES, pictures),
)
"""Endings of file names, and the module that reads and writes such files; DICOM is recognised by its content."""


_EXACT_FLOAT32 = 1 << 24
"""Largest whole number up to which 32-bit floats hold all others."""
_FEW_LOST = 0.1
"""Share of voxels that may be NaN or infinite, as quotients of noise are, without a doubt about the image."""
_LABEL_SLOPE = 0.25
"""Largest slope of scaled labels: with a larger one, labels may have been merged, or the values may be intensities."""


@dataclass(frozen=True, eq=False)
class Image:
    """An image in memory: finite voxels on a grid."""

    data: np.ndarray
    """(C, I, J, K), in the integer type of the file if it has no scaling, else float32."""
    grid: Grid
    """Grid of the voxels."""
    path: Path | None = None
    """File or DICOM folder from which the image was read."""
    dtype: Any = None
    """Type of outputs that are interpolated from this image: the type of the file's unscaled integers, else float32."""
    warnings: tuple[str, ...] = ()
    """Unusual things that the sanity check found and did not refuse, in plain sentences."""
    doubts: tuple[str, ...] = ()
    """What makes every result of this image doubtful, in plain sentences: a person should look at it."""

    def __post_init__(self) -> None:
        if self.data.ndim != 4 or self.data.shape[1:] != self.grid.shape:
            raise ValueError(f"expected data of shape (C, {self.grid.shape}), got {self.data.shape}")
        integer = self.data.dtype.kind in "iu"
        object.__setattr__(self, "dtype", np.dtype(self.dtype or (self.data.dtype if integer else np.float32)))

    def with_data(self, data: np.ndarray, grid: Grid | None = None) -> Image:
        """Return an image of other voxels, (C, I, J, K), on the same grid or on `grid`; its `dtype` is theirs."""
        return Image(data, grid or self.grid, self.path, warnings=self.warnings, doubts=self.doubts)

    def like(self, values: np.ndarray, grid: Grid | None = None) -> Image:
        """Return values (C, I, J, K), computed from this image, as an image of the type `dtype`.

        For integer types they are rounded and clipped to the range. If this image has no values below 0, the result has
        none either.
        """
        values = np.maximum(values, 0) if self.data.min() >= 0 else values
        if self.dtype.kind in "iu":
            limits = np.iinfo(self.dtype)
            values = np.clip(np.rint(values), limits.min, limits.max)
        return self.with_data(values.astype(self.dtype), grid)

    def write(self, path: Path) -> None:
        """Write a file in the format of its name, with voxels of the type of `data`, unscaled. Raises OutputError."""
        path = Path(path)
        found = _format_of_name(path)
        if found is None:
            raise OutputError(f"{path}: expected a name that ends in {', '.join(WRITABLE_IMAGES)}")
        found.write_image(path, _storable(self.data), self.grid)


def read_image(
    path: Path,
    *,
    frame: int | None = None,
    series: str | None = None,
    labels: bool = False,
    frame_if_several: bool = False,
) -> Image:
    """Read one image and check it. Raises InputError, which names the file, what was expected and what came.

    `frame` is the index of one frame in a file of several; with `frame_if_several` files of one frame are read without
    it. `series` is the UID or number of one DICOM series in a folder. With `labels` the voxels must be whole numbers of
    0 or more, are returned as integers, and may be constant.
    """
    path = _existing(path)
    try:
        stored = _reader_of(path).read_stored(path, frame, series)
    except FramesError as error:
        if error.count > 1 or not frame_if_several:
            raise
        stored = _reader_of(path).read_stored(path, None, series)
    warnings, doubts = list(stored.warnings) + check_grid(path, stored.grid), list(stored.doubts)
    if labels:
        data = _label_values(path, stored, warnings)
    else:
        data, lost = _finite_values(path, stored.values())
        if lost:
            text = f"{lost} voxels are NaN or infinite: replaced by 0 or the nearest finite value"
            share = lost / data.size
            doubts += [f"{share:.0%} of the voxels are NaN or infinite"] if share > _FEW_LOST else []
            warnings.append(text)
        doubts += [text for text in (strange_size(stored.grid), strange_values(data)) if text]
    own = stored.data.dtype if stored.holds_integers else None
    return Image(data, stored.grid, path, None if labels else own, tuple(warnings), tuple(doubts))


def holds_several_frames(path: Path, *, series: str | None = None) -> bool:
    """Return whether a file or folder is an image of several frames, in any format."""
    try:
        read_image(path, series=series)
    except FramesError as error:
        return error.count > 1
    except InputError:
        return False
    return False


def count_frames(path: Path) -> int:
    """Return the number of frames in a NIfTI file; 1 for other formats. Raises InputError."""
    if path.is_dir() or _format_of_name(path) is not nifti:
        return 1
    return int(np.prod(nifti.promised_shape(path, nifti.read_header(path))[3:]))


def read_grid(path: Path, *, series: str | None = None) -> Grid:
    """Return the grid of an image from its header only, checked as in `read_image`. Raises InputError."""
    path = _existing(path)
    grid = _reader_of(path).read_grid(path, series)
    check_grid(path, grid)
    return grid


def _format_of_name(path: Path) -> ImageFormat | None:
    """Return the format with the ending of a file's name; None for DICOM and other names."""
    name = path.name.lower()
    return next((found for suffixes, found in FORMATS if name.endswith(suffixes)), None)


def _reader_of(path: Path) -> ImageReader:
    """Return the format of a file or folder. Raises InputError for a format that medkit does not read."""
    found = None if path.is_dir() else _format_of_name(path)
    if found is not None:
        return found
    if path.suffix.lower() == ".dcm" or dicom.is_dicom(path):
        return dicom
    known = ", ".join((*IMAGE_SUFFIXES, *GREY_PICTURES))
    raise InputError(f"{path}: expected a DICOM folder or a file that ends in {known}")


def _existing(path: Path) -> Path:
    if not places.exists(Path(path)):
        raise InputError(f"{path}: no such file or folder")
    refuse_stream(Path(path))
    return Path(path)


def _finite_values(path: Path, data: np.ndarray) -> tuple[np.ndarray, int]:
    """Return voxels without NaN and infinity, and how many were. Raises InputError for an image without contrast."""
    low, high = data.min(), data.max()
    lost = 0
    if not np.isfinite(high - low if data.dtype.kind == "f" else 0.0):
        data, lost = _replace_non_finite(path, data)
        low, high = data.min(), data.max()
    if low == high:
        raise InputError(f"{path}: expected an image, got the value {low:g} in every voxel")
    return data, lost


def _replace_non_finite(path: Path, data: np.ndarray) -> tuple[np.ndarray, int]:
    """Return finite voxels, and how many were replaced. Raises InputError if none are finite."""
    finite = np.isfinite(data)
    if not finite.any():
        raise InputError(f"{path}: no finite voxel: every one is NaN or infinite")
    lost = int(data.size - np.count_nonzero(finite))
    if not lost:
        return data, 0
    low, high = float(data[finite].min()), float(data[finite].max())
    return np.nan_to_num(data, nan=0.0, posinf=high, neginf=low), lost


def _label_values(path: Path, stored: Stored, warnings: list[str]) -> np.ndarray:
    """Return labels in the integer type of the file, or if it has floats in the smallest type that holds them."""
    data = stored.values(np.float64)
    if not stored.holds_integers:
        data = _whole_numbers(path, data, stored.scaling, warnings)
    low, high = data.min(), data.max()
    if low < 0:
        raise InputError(f"{path}: expected labels (0 or more), got {low:g}")
    if stored.data.dtype == np.float32 and high > _EXACT_FLOAT32:
        warnings.append(f"labels above {_EXACT_FLOAT32} as 32-bit floats: their last digits may have been rounded")
    return data if stored.holds_integers else data.astype(np.min_scalar_type(int(high)))


def _whole_numbers(
    path: Path, data: np.ndarray, scaling: tuple[float, float] | None, warnings: list[str]
) -> np.ndarray:
    """Return labels (1, I, J, K) float64 as whole numbers. Raises InputError for other numbers.

    Programs that store labels as scaled integers round them to a multiple of the slope: 2 becomes 2.0002. Such values
    are at most half a slope away from their label.
    """
    if not np.isfinite([data.min(), data.max()]).all():
        raise InputError(f"{path}: expected labels (whole numbers), got NaN or infinity")
    whole = np.rint(data)
    apart = np.abs(data - whole)
    if not apart.any():
        return data
    worst = data.flat[int(apart.argmax())]
    slope = abs(scaling[0]) if scaling else 0.0
    if slope > _LABEL_SLOPE or apart.max() > 0.51 * slope:
        raise InputError(
            f"{path}: expected labels (whole numbers), got fractions such as {worst:.7g}; if these are labels that "
            "were rounded, store them as integers"
        )
    warnings.append(f"labels are stored with a scaling ({worst:.7g} for {np.rint(worst):g}); whole numbers are used")
    return whole


def _storable(data: np.ndarray) -> np.ndarray:
    """Return voxels in a type that files can have: bool becomes uint8, half precision float32."""
    if data.dtype.kind in "iu" or data.dtype == np.float64:
        return data
    return data.astype(np.uint8 if data.dtype.kind == "b" else np.float32, copy=False)
