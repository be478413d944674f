"""The DICOM series that a result belongs to: its headers, where its slices lie, and how results find it.

A header holds the patient's name. It may go into DICOM objects, which archives file by it, and nowhere else.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from medkit.dicom_objects.dicom_frame import from_dicom
from medkit.dicom_objects.identity import uid_of
from medkit.errors import InputError, MedkitError
from medkit.images.dicom.header import Header, header_of
from medkit.images.dicom.places import exists, files_in, open_file
from medkit.images.dicom.reader import is_dicom, read_stack
from medkit.images.dicom.series import is_candidate, series_at
from medkit.images.dicom.volumes import Stack
from medkit.pipe.records import Record, record_of
from medkit.run.existing import file_digest
from medkit.space import Grid, apply_affine

SERIES_ROLE = "dicom_image"
"""Role of a derived DICOM series among the outputs of a result."""
_PER_FRAME = "PerFrameFunctionalGroupsSequence"
_SAME = 1e-3
"""mm between planes that are one."""
_APART = 0.02
"""Share of the distance between slices, or of a voxel, by which two places may differ and still be the same."""
_REQUIRED = ("SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID")
"""Without these nothing can refer to an image."""
_AGE = re.compile(r"\d{3}[DWMY]")
"""How ages are written; other forms are left out, since objects with them are not valid."""
_NEVER_EMPTY = ("DeidentificationMethod", "DeidentificationMethodCodeSequence", "PatientIdentityRemoved")
"""What must not be there without a value, though some files have it."""
_MAY_BE_EMPTY = (
    *("PatientID", "PatientName", "PatientBirthDate", "PatientSex", "AccessionNumber", "StudyID", "StudyDate"),
    *("StudyTime", "ReferringPhysicianName", "PositionReferenceIndicator"),
)
"""What every object has, empty if nothing is known."""


@dataclass(frozen=True, eq=False)
class SourceImage:
    """One image (or frame) of a series, which is a slice of a volume."""

    header: Any
    """pydicom data set of its file, without pixels."""
    frame: int | None
    """Number of the frame from 1; None for a file of one image."""
    origin: np.ndarray
    """(3,) RAS+ mm, the centre of its first pixel; zeros where the file does not say."""

    @property
    def sop_class(self) -> str:
        """UID of the class of the file's object."""
        return str(self.header.SOPClassUID)

    @property
    def sop_instance(self) -> str:
        """UID of the file's object."""
        return str(self.header.SOPInstanceUID)


@dataclass(frozen=True, eq=False)
class Series:
    """The images of one volume of a DICOM series, in the order of their places."""

    path: Path
    """The folder or file."""
    images: tuple[SourceImage, ...]
    stack: Stack
    """Their places, as the files state them."""
    grid: Grid
    """The grid that the volume is read on; it has other slices than the series where those are unevenly far apart."""

    @property
    def header(self) -> Any:
        """pydicom data set of the first file, without pixels."""
        return self.images[0].header

    @cached_property
    def headers(self) -> tuple[Any, ...]:
        """One data set for each file."""
        return tuple({one.sop_instance: one.header for one in self.images}.values())

    @cached_property
    def varying(self) -> frozenset[Any]:
        """Tags of the elements that differ from file to file, or that some files lack."""
        first, *others = self.headers
        return frozenset(e.tag for e in first if any(e.tag not in other or other[e.tag] != e for other in others))

    @property
    def has_position(self) -> bool:
        """Whether the files say where in the body the images lie: X-rays do not."""
        return self.stack.slices[0].origin is not None and self.stack.slices[0].directions is not None

    @property
    def is_single_frames(self) -> bool:
        """Whether each file holds one image."""
        return all(one.frame is None for one in self.images)

    @cached_property
    def normal(self) -> np.ndarray:
        """(3,) RAS+, unit vector across the images."""
        return from_dicom(self.stack.directions[:, 2][None])[0]

    @cached_property
    def steps(self) -> np.ndarray:
        """(N - 1,) mm between the planes of neighbouring images."""
        steps: np.ndarray = np.diff(self.stack.heights)
        return steps

    @property
    def is_even(self) -> bool:
        """Whether all images are equally far apart, so that a label map may have their slices."""
        return len(self.steps) < 2 or float(np.ptp(self.steps)) <= tolerance(float(self.steps.mean()))

    @property
    def step(self) -> float | None:
        """mm between the planes of neighbouring images; None where they are unevenly far apart."""
        if self.grid.shape[2] != len(self.images) or len(self.images) < 2:
            return None
        return abs(float(self.steps.mean()))

    @property
    def spacing(self) -> tuple[float, float]:
        """mm between rows and between columns."""
        stated = self.stack.slices[0].spacing
        return (1.0, 1.0) if stated is None else (float(stated[1]), float(stated[0]))

    @property
    def thickness(self) -> float:
        """mm, how thick the images are; the distance between them where the files do not say."""
        return float(self.stack.slices[0].thickness or self.grid.spacing[2])

    @property
    def frame_of_reference(self) -> str:
        """UID of the frame of reference; made from that of the series where the files state none."""
        stated = self.header.get("FrameOfReferenceUID")
        return str(stated or uid_of("frame", str(self.header.SeriesInstanceUID)))

    def planes(self, data: np.ndarray, grid: Grid) -> np.ndarray | None:
        """Return voxels (I, J, K) on `grid` as the pixels (images, rows, columns) of the images; None if it cannot be.

        It can be if both grids have the same voxels, in whatever order. Of uneven images each gets the nearest slice.
        """
        found = in_order(data, grid, self.grid)
        if found is None:
            return None
        if found.shape[2] != len(self.images):
            heights = self.stack.heights
            step = (heights[-1] - heights[0]) / (found.shape[2] - 1)
            found = found[:, :, np.rint((heights - heights[0]) / step).astype(int)]
        return np.ascontiguousarray(found.transpose(2, 1, 0))

    def has_grid(self, grid: Grid) -> bool:
        """Return whether a grid has the voxels of this volume, in whatever order."""
        return _order(grid, self.grid) is not None


def tolerance(step: float) -> float:
    """Return how far, in mm, a slice may lie from an image and still be the same."""
    return _APART * step + _SAME


def in_order(data: np.ndarray, grid: Grid, wanted: Grid) -> np.ndarray | None:
    """Return voxels (I, J, K) on `grid` in the order of the grid `wanted`; None if that has other voxels."""
    order = _order(grid, wanted)
    if order is None:
        return None
    axes, flipped = order
    return data.transpose(axes)[tuple(slice(None, None, -1 if flip else 1) for flip in flipped)]


def _order(grid: Grid, wanted: Grid) -> tuple[tuple[int, int, int], tuple[bool, bool, bool]] | None:
    """Return which axis of `grid` is each axis of `wanted`, and which run backwards; None for other voxels."""
    to_wanted = np.linalg.inv(wanted.affine) @ grid.affine
    whole = np.rint(to_wanted[:3, :3])
    if (np.abs(whole).sum(axis=0) != 1).any() or (np.abs(whole).sum(axis=1) != 1).any():
        return None
    axes = tuple(int(n) for n in np.abs(whole).argmax(axis=1))
    signs = whole.sum(axis=1)
    if tuple(grid.shape[n] for n in axes) != wanted.shape:
        return None
    last = np.array(grid.shape) - 1
    corners = np.array([(i, j, k) for i in (0, last[0]) for j in (0, last[1]) for k in (0, last[2])], float)
    there = apply_affine(to_wanted, corners)
    expected = corners[:, axes] * signs + np.where(signs < 0, np.array(wanted.shape) - 1, 0)
    if np.abs(there - expected).max() > _APART:
        return None
    return axes, tuple(bool(sign < 0) for sign in signs)  # type: ignore[return-value]


def read_series(path: Path, series: str | None = None, frame: int | None = None) -> Series:
    """Read the headers of a folder or file with one DICOM series, or the one named `series`; no pixels are read.

    frame: which volume of a series that holds several; None: the first. Raises InputError for what is not an image of
    slices, and for files without the UIDs by which others refer to them.
    """
    if not is_dicom(path):
        raise InputError(f"{path}: expected the folder or file of a DICOM series")
    stack, grid, kind = read_stack(path, series, frame or 0)
    if kind != "image":
        what = {"dose": "a dose", "mosaic": "a Siemens mosaic, whose slices are no images of their own"}
        got = what.get(kind, "a segmentation" if kind in ("segments", "labels") else f"a {kind}")
        raise InputError(f"{path}: expected a DICOM series of images that results can refer to, got {got}")
    headers = {name: _header(name) for name in dict.fromkeys(one.path for one in stack.slices)}
    origins = from_dicom(np.array([np.zeros(3) if one.origin is None else one.origin for one in stack.slices]))
    images = (
        SourceImage(headers[one.path], one.index + 1 if _is_multiframe(headers[one.path]) else None, origin)
        for one, origin in zip(stack.slices, origins, strict=True)
    )
    return Series(path, tuple(images), stack, grid)


def _is_multiframe(header: Any) -> bool:
    return _PER_FRAME in header or int(header.get("NumberOfFrames") or 1) > 1


def _header(path: Path) -> Any:
    """Return a header in UTF-8, with all that each object needs. Raises InputError."""
    import pydicom

    with open_file(path) as stream, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about values that are not used here
        found = pydicom.dcmread(stream, stop_before_pixels=True, force=True)
        found.decode()
    if missing := [keyword for keyword in _REQUIRED if not found.get(keyword)]:
        raise InputError(f"{path}: expected a DICOM file with {missing[0]}, got none")
    found.SpecificCharacterSet = "ISO_IR 192"
    for keyword in _NEVER_EMPTY:
        if keyword in found and not found.get(keyword):
            delattr(found, keyword)
    methods = ("DeidentificationMethod", "DeidentificationMethodCodeSequence")
    if found.get("PatientIdentityRemoved") == "YES" and not any(keyword in found for keyword in methods):
        found.DeidentificationMethod = "not stated"
    if not _AGE.fullmatch(str(found.get("PatientAge") or "000Y")):
        del found.PatientAge
    for keyword in _MAY_BE_EMPTY:
        if keyword not in found:
            setattr(found, keyword, "")
    return found


# ---- which series a result belongs to


@dataclass(frozen=True)
class Lead:
    """A place where a result's series may be, or another DICOM object that states its person."""

    path: Path
    digest: str | None = None
    """sha256 that it had when the result was made; None if nobody wrote it down."""
    series: str | None = None
    frame: int | None = None

    @property
    def is_series(self) -> bool:
        """Whether there are images, and not only a segmentation or contours of some."""
        return self._first is None or (self._first.image is not None and self._first.modality != "SEG")

    @property
    def _first(self) -> Header | None:
        """What the first file says; None if there is no file."""
        if found := series_at(self.path):
            return found.first
        files = (path for path in files_in(self.path) if exists(path) and is_candidate(path))
        return next(map(header_of, files), None)

    def header(self) -> Any:
        """Return the header of one of its files. Raises InputError as `read` does."""
        self._check()
        assert self._first is not None, "what exists and is DICOM has a file"
        return _header(self._first.path)

    def read(self) -> Series:
        """Read the series. Raises InputError, also if it is gone, or has changed since the result was made."""
        self._check()
        return read_series(self.path, self.series, self.frame)

    def _check(self) -> None:
        if not exists(self.path):
            raise InputError(f"{self.path}: no such file or folder, though a result names it as its source")
        if self.digest is not None and file_digest(self.path) != self.digest:
            raise InputError(f"{self.path}: has changed since a result was made from it")


def leads_of(record: Record, own: Lead | None = None, *, space: bool) -> Iterator[Lead]:
    """Yield where the DICOM series of a result may be, the nearest first, by the sidecars of its sources.

    `space`: series of the space that the result lies in, where a registration leads to the fixed image; else those of
    the person, where it leads to the moving image. `own`: how the record's own file was read.
    """
    visited = set()
    lead = own or Lead(record.path)
    while record.path not in visited:
        visited.add(record.path)
        made = record.medkit.get("outputs", {}).get(SERIES_ROLE)
        if made is not None:
            yield Lead(Path(made["path"]), made.get("sha256"))
        if _is_dicom(record.path):
            yield lead
        following = _before(record, space=space)
        if following is None:
            return
        lead = _lead_to(following, record)
        record = record_of(following)


def _before(record: Record, *, space: bool) -> Path | None:
    """Return the file that a result has its space, or its person, from."""
    arguments = record.medkit.get("arguments", {})
    if not record.sources or (space and isinstance(arguments, dict) and arguments.get("midpoint")):
        return None
    if space and record.spatial_reference is not None:
        return record.spatial_reference
    return record.sources[0]


def _lead_to(path: Path, record: Record) -> Lead:
    """Return the lead to a source of a result, with the digest and the options by which it was read."""
    block = record.medkit
    entries = block.get("inputs", {}).values()
    digest = next((entry.get("sha256") for entry in entries if Path(entry["path"]) == path), None)
    arguments = block.get("arguments", {})
    own = record.sources[:1] == (path,) and isinstance(arguments, dict)
    return Lead(path, digest, *((arguments.get("series"), arguments.get("frame")) if own else ()))


def _is_dicom(path: Path) -> bool:
    try:
        return is_dicom(path) if exists(path) else path.suffix.lower() in (".dcm", ".ima") or not path.suffix
    except (MedkitError, OSError):
        return False


def series_on_grid(leads: Iterator[Lead], grid: Grid) -> tuple[Series | None, list[Series]]:
    """Return the first series with the voxels of a grid, and those before it that have others."""
    others: list[Series] = []
    for lead in leads:
        if not lead.is_series:
            continue
        found = lead.read()
        if found.has_grid(grid):
            return found, others
        others.append(found)
    return None, others


def is_same_person(one: Any, other: Any) -> bool:
    """Return whether two headers state the same patient: identifiers that are equal and not empty, or one study."""
    if one.StudyInstanceUID == other.StudyInstanceUID:
        return True
    known = str(one.PatientID).strip()
    return bool(known) and known == str(other.PatientID).strip()
