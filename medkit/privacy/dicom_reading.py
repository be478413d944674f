"""Reading one DICOM object whole, and refusing what medkit cannot look into."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from medkit.errors import InputError
from medkit.images.dicom.places import read_file

STANDARD = "1.2.840.10008."
"""Root of the UIDs that the standard itself defines."""
_REFUSED = ("Encapsulated", "Video")
"""Words in the names of classes whose content cannot be looked into."""


class _Watched(io.BytesIO):
    """A file's content that notes where a reader wanted more of it than there is: pydicom passes over that."""

    ended_early = False
    _reads_at_the_end = 0

    def read(self, size: int | None = -1, /) -> bytes:
        found = super().read(size)
        wanted = size or 0
        if wanted > len(found):
            self._reads_at_the_end += 1
            # one read finds the end of a whole file, where it looks for another element
            self.ended_early |= len(found) > 0 or self._reads_at_the_end > 1
        return found


@contextlib.contextmanager
def lenient() -> Iterator[None]:
    """Let pydicom read and write values as they are within the block: what is odd in a file is no reason to stop."""
    import pydicom

    settings, ignore = pydicom.config.settings, pydicom.config.IGNORE
    before = settings.reading_validation_mode, settings.writing_validation_mode
    log = logging.getLogger("pydicom")  # medkit reports what matters itself
    level = log.level
    log.setLevel(logging.CRITICAL)
    settings.reading_validation_mode = settings.writing_validation_mode = ignore
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        settings.reading_validation_mode, settings.writing_validation_mode = before
        log.setLevel(level)


def check_private_geometry(path: Path, dataset: Any) -> None:
    """Raise InputError for a mosaic that has lost the private attributes that place its slices."""
    if "MOSAIC" in list(dataset.get("ImageType") or ()) and (0x0029, 0x1010) not in dataset:
        raise InputError(
            f"{path.name}: a Siemens mosaic, whose slices only private attributes tell apart; "
            "--keep-safe-private keeps these numbers"
        )


def read_object(path: Path) -> Any:
    """Return the pydicom data set of a file, pixels too. Raises InputError for a damaged file or a refused class."""
    import pydicom

    content = _Watched(read_file(path))
    try:
        dataset = pydicom.dcmread(content, force=True)
        for _ in dataset.iterall():  # a value that cannot be read is found here, not half-way
            pass
    except Exception as error:  # pydicom raises errors of many types for torn files
        raise InputError(f"{path.name}: a DICOM file that cannot be read: {type(error).__name__}") from error
    if content.ended_early:
        raise InputError(f"{path.name}: truncated: its last element ends after the end of the file")
    _check_class(path, dataset)
    _check_length(path, dataset)
    return dataset


def _check_class(path: Path, dataset: Any) -> None:
    from pydicom.uid import UID

    uid = UID(str(dataset.get("SOPClassUID", "")))
    if not uid or not dataset.get("SOPInstanceUID"):
        raise InputError(f"{path.name}: expected a DICOM object with its class and UID, got none")
    if not uid.startswith(STANDARD):
        raise InputError(f"{path.name}: an object of a maker's own class, whose content nobody else knows")
    if any(word in uid.name for word in _REFUSED) or uid.name.startswith("Raw Data"):
        raise InputError(f"{path.name}: {uid.name}: medkit cannot look into it, and does not pass it on")


def _check_length(path: Path, dataset: Any) -> None:
    """Raise InputError for an image that ends early."""
    from pydicom.pixels.utils import get_expected_length

    pixels = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
    if "Image" in dataset.SOPClassUID.name and not any(keyword in dataset for keyword in pixels):
        raise InputError(f"{path.name}: truncated: an image without its pixels")
    if "PixelData" not in dataset or is_compressed(dataset):
        return
    try:
        promised = get_expected_length(dataset)
        enough = len(dataset.PixelData) >= promised
    except (AttributeError, TypeError) as error:
        raise InputError(f"{path.name}: an image without its size") from error
    if not enough:
        raise InputError(f"{path.name}: truncated: {promised} bytes of pixels expected, got {len(dataset.PixelData)}")


def is_compressed(dataset: Any) -> bool:
    """Return whether the pixels of a data set are compressed."""
    meta = getattr(dataset, "file_meta", None)
    syntax = None if meta is None else meta.get("TransferSyntaxUID")
    return bool(syntax is not None and syntax.is_transfer_syntax and syntax.is_compressed and syntax.is_encapsulated)
