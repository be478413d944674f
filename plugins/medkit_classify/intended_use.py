"""What a bundle is for: age and projection of its training images, and whether an image's header states others."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medkit.errors import BundleError
from medkit.inference import Bundle

_YEARS = {"Y": 1.0, "M": 1 / 12, "W": 7 / 365.25, "D": 1 / 365.25}
"""Unit of DICOM's ages -> years."""
_AGE_TAGS, _VIEW_TAGS = ("PatientAge", "age", "Age"), ("ViewPosition", "view", "projection")
"""Keys of headers and sidecars that state the age of a person, and the projection."""


@dataclass(frozen=True)
class IntendedUse:
    """What a bundle is for, as its metadata state under `medkit.use`; empty if they do not."""

    words: str = ""
    """The images and people that it is for, in words."""
    age: tuple[float, float] | None = None
    """Youngest and oldest person, in years."""
    projections: tuple[str, ...] = ()
    """Values of DICOM's View Position that occurred."""
    tested: str = ""
    """What its figures were measured on, such as a size, in words."""

    @classmethod
    def of(cls, bundle: Bundle) -> IntendedUse:
        """Read it from a bundle's metadata. Raises BundleError if it is not as expected."""
        stated = bundle.block.get("use") or {}
        try:
            age = stated.get("age")
            return cls(
                str(stated.get("for", "")),
                (float(age[0]), float(age[1])) if age else None,
                tuple(map(str, stated.get("projections", ()))),
                str(stated.get("tested", "")),
            )
        except (AttributeError, TypeError, ValueError, IndexError):
            raise BundleError(
                f"bundle {bundle.name}: expected medkit.use with for, age, projections, tested; got {stated}"
            ) from None

    def in_words(self) -> str:
        """Return it as a line of a report; empty if nothing is stated."""
        parts = [f"for {self.words}" if self.words else "", f"tested on {self.tested}" if self.tested else ""]
        return "; ".join(part for part in parts if part)

    def misfit(self, path: Path) -> str:
        """Return why an image is not what the bundle is for, by its DICOM header or its sidecar; empty if it may be.

        What neither states is not checked.
        """
        if self.age is None and not self.projections:
            return ""
        stated = {**_header(path), **_sidecar(path)}
        years = next((age for key in _AGE_TAGS if (age := _years(stated.get(key))) is not None), None)
        view = next((str(stated[key]).strip().upper() for key in _VIEW_TAGS if stated.get(key)), "")
        found = []
        # a child of five years is five until its sixth birthday
        if self.age and years is not None and not self.age[0] <= years < self.age[1] + 1:
            # the age itself is a person's, and is written nowhere
            than = "younger" if years < self.age[0] else "older"
            found.append(f"the person is {than} than those of the training, {self.age[0]:g} to {self.age[1]:g} years")
        if self.projections and view and view not in self.projections:
            found.append(f"the projection is {view}, expected {' or '.join(self.projections)}")
        return "; ".join(found)


def _years(value: Any) -> float | None:
    """Return an age in years, from DICOM's form (`034Y`) or a number of years; None if it is neither."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if match := re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([YMWD]?)\s*", str(value or ""), re.IGNORECASE):
        return float(match[1]) * _YEARS[match[2].upper() or "Y"]
    return None


def _header(path: Path) -> dict[str, Any]:
    """Return age and projection of a DICOM file; empty for others. They are compared, and written nowhere."""
    from medkit.images import files_of, is_dicom_path, open_file

    if not is_dicom_path(path):
        return {}
    import pydicom
    from pydicom.errors import InvalidDicomError

    try:
        with open_file(files_of(path)[0]) as file:
            header = pydicom.dcmread(file, stop_before_pixels=True, specific_tags=["PatientAge", "ViewPosition"])
    except (InvalidDicomError, OSError, IndexError):
        return {}
    return {name: str(header.get(name) or "") for name in ("PatientAge", "ViewPosition")}


def _sidecar(path: Path) -> Mapping[str, Any]:
    from medkit.task import stem

    file = path.with_name(f"{stem(path)}.json")
    try:
        found = json.loads(file.read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
