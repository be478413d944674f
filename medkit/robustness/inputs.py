"""The files of a case, and corrupted copies of them, which a bundle reads like any other files."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from medkit.bundles.contract import NO_IMAGES, Contract
from medkit.errors import InputError
from medkit.images.image import read_image
from medkit.inference.inputs import is_picture
from medkit.pipe.names import stem
from medkit.pipe.records import Record
from medkit.robustness.corruptions import Corruption, corrupted

_LOSSLESS = (".png", ".bmp", ".tif", ".tiff")
"""Suffixes of pictures that are written in their own format; others become PNG."""


@dataclass(frozen=True, eq=False)
class Channels:
    """An image to corrupt, and how to write it."""

    data: np.ndarray
    """(C, I, J, K) in the file's own type."""
    spacing: np.ndarray
    """(3,) mm; 1 for pictures."""
    suffix: str
    """Suffix of the files that are written."""
    write: Callable[[np.ndarray, Path], None]
    """Write an array like `data` to a file with that suffix."""


def files_of_case(record: Record, contract: Contract) -> dict[str, Path]:
    """Return role -> file of a case, its own input first."""
    main = contract.keys[0]
    others = {role: path for role, path in record.inputs.items() if role in contract.accepts}
    return {main: record.inputs.get(main, record.path)} | others


class FileCorrupter:
    """Writes corrupted files of one case at a time into a folder; each replaces the one before it."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder, self.seed = folder, seed
        self._read: dict[Path, Channels] = {}

    def read(self, files: Mapping[str, Path]) -> None:
        """Read the images of the next case. Raises InputError."""
        self._read = {path: read_channels(path) for role, path in files.items() if role not in NO_IMAGES}

    def corrupted(self, files: Mapping[str, Path], corruption: Corruption, strength: float) -> dict[str, Path]:
        """Return the files of the case with its images corrupted; the same pattern at every strength."""
        out = dict(files)
        for number, (role, path) in enumerate(files.items()):
            if path not in self._read:
                continue
            image = self._read[path]
            seed = zlib.crc32(f"{self.seed} {corruption.name} {number} {path.name}".encode(errors="surrogateescape"))
            out[role] = self.folder / str(number) / (stem(path) + image.suffix)
            out[role].parent.mkdir(exist_ok=True)
            image.write(corrupted(corruption, strength, image.data, image.spacing, seed % 2**31), out[role])
        return out


def read_channels(path: Path) -> Channels:
    """Read an image or a picture. Raises InputError."""
    if is_picture(path):
        return _picture(path)
    image = read_image(path)

    def write(data: np.ndarray, target: Path) -> None:
        image.with_data(data).write(target)

    return Channels(image.data, image.grid.spacing, ".nii", write)


def _picture(path: Path) -> Channels:
    """Read a picture of grey values or three colours; rows and columns become the first two spatial axes."""
    from PIL import Image as Picture
    from PIL import ImageOps

    try:
        with Picture.open(path) as opened:
            mode, pixels = opened.mode, np.asarray(ImageOps.exif_transpose(opened))
    except (OSError, SyntaxError, ValueError) as error:
        raise InputError(f"{path}: cannot be read as a picture: {error}") from None
    if mode not in ("L", "RGB") and not mode.startswith("I"):
        raise InputError(f"{path}: expected a picture of grey values or three colours, got the mode {mode}")
    grey = pixels.ndim == 2
    kept: Any = pixels.astype(np.uint16) if mode.startswith("I") else pixels

    def write(data: np.ndarray, target: Path) -> None:
        plane = data[0, ..., 0] if grey else np.moveaxis(data[..., 0], 0, -1)
        Picture.fromarray(np.ascontiguousarray(plane)).save(target)

    suffix = path.suffix.lower() if path.suffix.lower() in _LOSSLESS else ".png"
    channels = kept[None, ..., None] if grey else np.moveaxis(kept, -1, 0)[..., None]
    return Channels(channels, np.ones(3), suffix, write)
