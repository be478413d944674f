"""The DICOM series that contours belong to: its images, and where they lie."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from medkit.errors import InputError
from medkit.images import read_grid
from medkit.task import Record, lineage
from medkit_contours.dicom_frame import from_dicom

_SHARED, _PER_FRAME = "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"
_SAME = 1e-3
"""mm between planes that are one."""
_APART = 0.02
"""Share of the distance between slices by which a slice of the label map may lie beside an image of the series."""


@dataclass(frozen=True, eq=False)
class SeriesImage:
    """One image (or frame) of a series."""

    sop_class: str
    sop_instance: str
    """UID of the file's object."""
    frame: int | None
    """Number of the frame from 1; None for a file of one image."""
    origin: np.ndarray
    """(3,) RAS+ mm, the centre of its first pixel."""


@dataclass(frozen=True, eq=False)
class Series:
    """The images of one DICOM series, and the header of its first file."""

    path: Path
    """The folder or file."""
    header: Any
    """pydicom data set without pixels."""
    images: tuple[SeriesImage, ...]
    normal: np.ndarray
    """(3,) RAS+, unit vector across the images."""

    @cached_property
    def steps(self) -> np.ndarray:
        """(N - 1,) mm between the planes of neighbouring images."""
        heights = np.sort([one.origin @ self.normal for one in self.images])
        steps: np.ndarray = np.diff(heights[np.diff(heights, prepend=-np.inf) > _SAME])
        return steps

    @property
    def is_even(self) -> bool:
        """Whether all images are equally far apart, so that a label map may have their slices."""
        return len(self.steps) < 2 or float(np.ptp(self.steps)) <= tolerance(float(self.steps.mean()))


def series_of(record: Record, given: Path | None, series: str | None) -> Series:
    """Return the DICOM series of a label map: the folder that was given, or the first one among its sources.

    Raises InputError if none is known, or if it cannot be read.
    """
    path = given or next(filter(_is_dicom, (one.path for one in lineage(record))), None)
    if path is None:
        raise InputError(
            f"{record.path}: RTSTRUCT refers to the images of a DICOM series, and none is among the sources of this "
            "label map: name its folder with --reference FOLDER"
        )
    return read_series(path, series)


def _is_dicom(path: Path) -> bool:
    return path.suffix.lower() in (".dcm", ".ima") or path.is_dir()


def read_series(path: Path, series: str | None) -> Series:
    """Read a folder or file with one DICOM series, or the one named `series`. Raises InputError."""
    read_grid(path, series=series)  # refuses what is no series, or several
    files = [one for one in _headers(path) if _of(one, series)]
    images = [image for one in files for image in _images(one)]
    if not images:
        raise InputError(f"{path}: expected DICOM images with a position in the body, got none")
    rows, columns = from_dicom(np.array(_plane(files[0], "ImageOrientationPatient"), float).reshape(2, 3))
    return Series(path, files[0], tuple(images), np.cross(rows, columns))


def _headers(path: Path) -> Iterator[Any]:
    import pydicom

    names = sorted(p for p in path.iterdir() if p.is_file() and p.name[0] != ".") if path.is_dir() else [path]
    for name in names:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # about values that are not used here
                found = pydicom.dcmread(name, stop_before_pixels=True)
        except pydicom.errors.InvalidDicomError:
            continue
        if "Rows" in found:
            yield found


def _of(header: Any, series: str | None) -> bool:
    return series is None or series in (str(header.SeriesInstanceUID), str(header.get("SeriesNumber")))


def _images(header: Any) -> Iterator[SeriesImage]:
    names = (str(header.SOPClassUID), str(header.SOPInstanceUID))
    if _PER_FRAME in header:
        for number in range(len(header[_PER_FRAME].value)):
            yield SeriesImage(*names, number + 1, _origin(_plane(header, "ImagePositionPatient", number)))
    elif "ImagePositionPatient" in header:
        yield SeriesImage(*names, None, _origin(header.ImagePositionPatient))


def _origin(position: Any) -> np.ndarray:
    return from_dicom(np.array([position], float))[0]


def _plane(header: Any, keyword: str, frame: int = 0) -> Any:
    """Return where a frame lies, or how it is oriented, from its own place in the header. Raises InputError."""
    group = "PlanePositionSequence" if keyword == "ImagePositionPatient" else "PlaneOrientationSequence"
    frames = [header[name].value[at] for name, at in ((_PER_FRAME, frame), (_SHARED, 0)) if name in header]
    places = [one[group].value[0] for one in frames if group in one]
    found = next((place.get(keyword) for place in (*places, header) if keyword in place), None)
    if found is None:
        raise InputError(f"{header.filename}: expected DICOM images with {keyword}")
    return found


def tolerance(step: float) -> float:
    """Return how far, in mm, a slice may lie from an image and still be the same."""
    return _APART * step + _SAME
