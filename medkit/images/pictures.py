"""Grey pictures, PNG and JPEG of 8 or 16 bits, as images of one plane.

The columns of a picture run to the patient's left and its rows to the back, as in ITK and as axial slices are shown.
Nothing in such a file states a direction in the body.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from medkit.errors import InputError, OutputError, size_text
from medkit.images.stored import Stored, pick_frame
from medkit.space import Grid, lps_affine

SCREENS = (72, 96)
"""Pixels per inch of screens, which programs write when they do not know the size of what is shown."""
JPEG_QUALITY = 95
"""Quality of written JPEG files, 1 to 100."""


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """Open a picture with Pillow, rotated as its EXIF block states. Raises InputError instead of Pillow's errors."""
    from PIL import Image, ImageOps

    try:
        with Image.open(path, formats=("PNG", "JPEG")) as picture:
            yield ImageOps.exif_transpose(picture)
    except (OSError, SyntaxError, ValueError) as error:  # what Pillow raises for damaged and foreign files
        raise InputError(f"{path}: expected a PNG or JPEG picture: {error}") from error


def _grid(picture: Any) -> tuple[Grid, list[str]]:
    dpi = picture.info.get("dpi")
    known = dpi is not None and min(dpi) > 0 and round(dpi[0]) not in SCREENS
    spacing = 25.4 / np.array(dpi, float) if known else np.ones(2)
    warnings = [] if known else ["the picture does not state the size of its pixels: taken as 1 mm"]
    return Grid((*picture.size, 1), lps_affine(np.eye(2), spacing, np.zeros(2)), dims=2), warnings


def _grey(path: Path, picture: Any) -> np.ndarray:
    """Return the pixels of a picture, (rows, columns). Raises InputError for colours and transparency."""
    if picture.mode in ("1", "L"):
        return np.asarray(picture.convert("L"))
    if picture.mode.startswith("I"):  # 16 bits, which some versions of Pillow return as 32
        return np.asarray(picture).astype(np.uint16)
    colours = np.asarray(picture.convert("RGBA"))
    if not (colours[..., :3] == colours[..., :1]).all():
        raise InputError(f"{path}: expected grey values, got colours")
    if not (colours[..., 3] == 255).all():
        raise InputError(f"{path}: expected grey values, got a picture that is transparent in places")
    return np.ascontiguousarray(colours[..., 0])


def is_coloured(path: Path) -> bool:
    """Return whether a picture has coloured pixels. Raises InputError for a file that is not a picture."""
    from PIL import Image

    try:
        with Image.open(path) as picture:
            if picture.mode in ("1", "L", "LA", "F") or picture.mode.startswith("I"):
                return False
            channels = np.asarray(picture.convert("RGB"))
    except (OSError, SyntaxError, ValueError) as error:
        raise InputError(f"{path}: expected a picture: {error}") from error
    return not bool((channels == channels[..., :1]).all())


def write_image(path: Path, data: np.ndarray, grid: Grid) -> None:
    """Write a plane, (1, I, J, 1) uint8 or uint16, as PNG, or for uint8 JPEG, with the size of its pixels.

    Axes are flipped so that the patient's left is on the right and the back at the bottom. Raises OutputError.
    """
    from PIL import Image

    if len(data) != 1 or grid.shape[2] != 1:
        raise OutputError(f"{path}: pictures hold one plane, got {size_text(grid.shape)} voxels")
    kinds: tuple[type, ...] = (np.uint8, np.uint16) if path.suffix.lower() == ".png" else (np.uint8,)
    if data.dtype not in kinds:
        names = " or ".join(np.dtype(kind).name for kind in kinds)
        raise OutputError(f"{path}: a picture of this type holds {names}, got {data.dtype.name}")
    plane = data[0, :, :, 0]
    for axis in (0, 1):
        direction = grid.affine[:3, axis]
        if direction[np.abs(direction).argmax()] > 0:
            plane = np.flip(plane, axis)
    dpi = tuple(float(value) for value in 25.4 / grid.spacing[:2])
    Image.fromarray(np.ascontiguousarray(plane.T)).save(path, dpi=dpi, quality=JPEG_QUALITY)


def read_stored(path: Path, frame: int | None, series: str | None) -> Stored:
    """Read a grey picture with axis I along its columns; `series` has no meaning for this format. Raises InputError."""
    with _opened(path) as picture:
        grid, warnings = _grid(picture)
        voxels = _grey(path, picture).T[..., None, None]
    return Stored(pick_frame(path, voxels, frame)[None], grid, tuple(warnings))


def read_grid(path: Path, series: str | None) -> Grid:
    """Read the grid from the header only; `series` has no meaning for this format. Raises InputError."""
    with _opened(path) as picture:
        return _grid(picture)[0]
