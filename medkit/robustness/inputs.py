"""The files of a case, and spoilt ones in their place, which a bundle reads as it would any other."""

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
from medkit.robustness.corruptions import Corruption, spoilt

_LOSSLESS = (".png", ".bmp", ".tif", ".tiff")
"""Pictures that are written as they were read; others become PNG."""


@dataclass(frozen=True, eq=False)
class Channels:
    """An image to be spoilt."""

    data: np.ndarray
    """(C, I, J, K) in the file's own type."""
    spacing: np.ndarray
    """(3,) mm; 1 for pictures."""
    suffix: str
    """How the name of a file of it ends."""
    write: Callable[[np.ndarray, Path], None]
    """Writes such an array as a file of that suffix."""


def files_of_case(record: Record, contract: Contract) -> dict[str, Path]:
    """Role -> file of a case, its own input first."""
    main = contract.keys[0]
    others = {role: path for role, path in record.inputs.items() if role in contract.accepts}
    return {main: record.inputs.get(main, record.path)} | others


class Spoiler:
    """Makes the spoilt files of one case after the other in a folder; each takes the place of the one before it."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder, self.seed = folder, seed
        self._read: dict[Path, Channels] = {}

    def read(self, files: Mapping[str, Path]) -> None:
        """Takes up another case. Raises InputError."""
        self._read = {path: read_channels(path) for role, path in files.items() if role not in NO_IMAGES}

    def spoilt(self, files: Mapping[str, Path], shift: Corruption, strength: float) -> dict[str, Path]:
        """The files of the case with the images among them spoilt; the same pattern at every strength."""
        out = dict(files)
        for number, (role, path) in enumerate(files.items()):
            if path not in self._read:
                continue
            image = self._read[path]
            seed = zlib.crc32(f"{self.seed} {shift.name} {number} {path.name}".encode(errors="surrogateescape"))
            out[role] = self.folder / str(number) / (stem(path) + image.suffix)
            out[role].parent.mkdir(exist_ok=True)
            image.write(spoilt(shift, strength, image.data, image.spacing, seed % 2**31), out[role])
        return out


def read_channels(path: Path) -> Channels:
    """An image or a picture. Raises InputError."""
    if is_picture(path):
        return _picture(path)
    image = read_image(path)

    def write(data: np.ndarray, target: Path) -> None:
        image.with_data(data).write(target)

    return Channels(image.data, image.grid.spacing, ".nii", write)


def _picture(path: Path) -> Channels:
    """A picture of grey values or of three colours, rows and columns as its first two spatial axes."""
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
