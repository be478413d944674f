"""Who made a DICOM object, and its UIDs.

UIDs are made from those of the source and the content: the same result made again has the same UIDs, so that an archive
keeps one of it, and another result never has them.
"""

from __future__ import annotations

import datetime
import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from medkit.errors import UsageError
from medkit.options import PROGRAM

MANUFACTURER = PROGRAM["Name"]
VERSION = PROGRAM["Version"]
PRIVATE_SCHEME = "99MEDKIT"
"""Coding scheme of what has no code of a standard."""
_LONGEST = 64
"""Characters of a description (value representations LO and, for labels, SH holds 16)."""
_LONGEST_DECIMAL = 16
"""Characters of a decimal string."""
_SERIES_NUMBERS = {"seg": 1, "image": 2, "rtstruct": 3, "sr": 4}
"""Kind of object -> what its series number ends in."""


@dataclass(frozen=True, eq=False)
class DicomObject:
    """A DICOM object as an output of a task."""

    dataset: Any
    """pydicom data set with its file meta information."""

    def write(self, path: Path) -> None:
        """Write the file."""
        self.dataset.save_as(path, enforce_file_format=True)


def uid_of(*parts: str) -> str:
    """Return the UID that is made from texts, the same whenever they are."""
    from pydicom.uid import generate_uid

    return str(generate_uid(entropy_srcs=[f"{MANUFACTURER} {VERSION}", *parts]))


def digest_of(*arrays: np.ndarray) -> str:
    """Return the sha256 of voxels, their type and their shape."""
    made = hashlib.sha256()
    for array in arrays:
        made.update(f"{array.dtype.str} {array.shape} ".encode())
        made.update(np.ascontiguousarray(array).data)
    return made.hexdigest()


def series_number(source: Any, kind: str) -> int:
    """Return the number of a derived series: 302 for an `image` of the series 3."""
    text = str(source.get("SeriesNumber") or "0")
    number = int(text) if text.lstrip("-").isdigit() else 0
    return abs(number) % 10**7 * 100 + _SERIES_NUMBERS[kind]


def item(**values: Any) -> Any:
    """Return a pydicom data set with these elements."""
    from pydicom.dataset import Dataset

    out = Dataset()
    for keyword, value in values.items():
        setattr(out, keyword, value)
    return out


def decimal(value: float) -> Any:
    """Return a number as DICOM's decimal string, of 16 characters."""
    from pydicom.valuerep import DSfloat

    return DSfloat(float(value), auto_format=True)


def decimals(values: Iterable[Any]) -> list[Any]:
    """Return numbers of a header as decimal strings: digit by digit, but for those of more than 16 characters."""
    return [value if len(str(value)) <= _LONGEST_DECIMAL else decimal(value) for value in values]


def now() -> tuple[str, str]:
    """Return date and time as DICOM writes them."""
    moment = datetime.datetime.now()
    return moment.strftime("%Y%m%d"), moment.strftime("%H%M%S")


def highdicom() -> Any:
    """Return the library highdicom. Raises UsageError if it is not installed."""
    try:
        import highdicom
    except ImportError as error:
        raise UsageError(f"--dicom: needs highdicom: pip install 'medkit[dicom]' ({error})") from None
    return highdicom


def one_line(text: str, longest: int = _LONGEST) -> str:
    """Return a text as a DICOM description can hold it: a backslash would separate values."""
    return " ".join(text.replace("\\", "/").split())[:longest]


def described(names: Iterable[str]) -> str:
    """Return names as one text for a UID."""
    return "\0".join(names)
