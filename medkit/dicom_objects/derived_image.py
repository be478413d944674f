"""Images as derived DICOM series: one file for each slice, of the class of the source (CT, MR, PET, X-ray).

One file a slice, because every archive and viewer reads the classic classes; many lack the enhanced multi-frame ones.
The header is that of the source without what is no longer true: pixels, places, private tags, the equipment (which is
named as contributing), and where the voxels are others, whatever differs from slice to slice.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from medkit.dicom_objects.codes import Algorithm
from medkit.dicom_objects.dicom_frame import to_dicom
from medkit.dicom_objects.identity import (
    MANUFACTURER,
    VERSION,
    decimal,
    decimals,
    digest_of,
    item,
    now,
    one_line,
    series_number,
    uid_of,
)
from medkit.dicom_objects.kept_header import CLASSIC, CT, MR, PET, class_of, kept_header
from medkit.dicom_objects.source import Series, SourceImage
from medkit.errors import InputError
from medkit.images.image import Image
from medkit.space import Grid, apply_affine

_SPACINGS = ("PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing")
_SOURCE = ("121322", "DCM", "Source image for image processing operation")
_RESAMPLING = ("113085", "DCM", "Spatial resampling")
_ACQUISITION = ("109101", "DCM", "Acquisition Equipment")
_LIMITS = {True: (-(1 << 15), (1 << 15) - 1), False: (0, (1 << 16) - 1)}
"""Whether stored values are signed -> the smallest and the largest."""
_TAIL = 0.5
"""Percent of the values below, and above, the window of images that are not in Hounsfield units."""


@dataclass(frozen=True, eq=False)
class DicomSeries:
    """A DICOM series as an output of a task: a folder."""

    files: Sequence[Any]
    """pydicom data sets with their file meta information, one for each slice."""

    def write(self, path: Path) -> None:
        """Write the folder."""
        path.mkdir()
        for number, dataset in enumerate(self.files, start=1):
            dataset.save_as(path / f"{number:04d}.dcm", enforce_file_format=True)


@dataclass(frozen=True)
class Space:
    """The frame of reference of a derived image."""

    uid: str
    indicator: str = ""
    """Position Reference Indicator."""


def derived_series(
    image: Image, source: Series, space: Space | None, algorithm: Algorithm, parts: Sequence[Series] = ()
) -> DicomSeries:
    """Return an image as a series that is derived from a source.

    space: the frame of reference of the image's grid; None for images without a place in the body, such as X-rays.
    parts: further series that the image was made from; they are named as sources too. Raises InputError for a source
    that has no class for single slices, and for images of several channels.
    """
    where = image.path or source.path
    if len(image.data) > 1:
        raise InputError(f"{where}: a DICOM image has one value per voxel, and this one has {len(image.data)}")
    check_class(source)
    planes = source.planes(image.data[0], image.grid)
    same = planes is not None and planes.shape[0] == source.grid.shape[2]
    if planes is None or not same:
        planes, grid = as_planes(image.data[0], image.grid, has_position=source.has_position)
    else:
        grid = source.grid
    stored, slope = stored_values(planes)
    sample = stored[:: 1 + len(stored) // 50, :: 1 + stored.shape[1] // 256, :: 1 + stored.shape[2] // 256] * slope
    further = [one for part in parts for one in part.images]
    uids = ("image", str(source.header.SeriesInstanceUID), *(one.sop_instance for one in (*source.images, *further)))
    identity = [*uids, digest_of(planes, grid.affine), space.uid if space else "", algorithm.description]
    builder = _Builder(source, further, space, algorithm, grid, same, uid_of("series", *identity), identity)
    window = _window(source, sample)
    files = [builder.slice(k, stored[k], slope, window) for k in range(len(stored))]
    return DicomSeries(files)


def check_class(source: Series) -> None:
    """Raise InputError for a series whose class has no single slices."""
    kind = source.images[0].sop_class
    if not source.is_single_frames and kind not in CLASSIC:
        from pydicom.uid import UID

        known = "series of one file a slice, and enhanced CT and MR"
        raise InputError(f"{source.path}: --dicom image takes {known}; got {UID(kind).name}")


def as_planes(data: np.ndarray, grid: Grid, *, has_position: bool) -> tuple[np.ndarray, Grid]:
    """Return voxels (I, J, K) as slices (K, rows, columns) that viewers show upright, and the grid in that order.

    Rows run to the left or back, columns to the back or down, as radiologists look at slices. Without a position the
    order stays.
    """
    affine = grid.affine.copy()
    if has_position:
        directions = to_dicom(affine[:3, :3].T) / np.linalg.norm(affine[:3, :3], axis=0)[:, None]
        main = np.abs(directions).argmax(axis=1)
        first = 0 if main[0] < main[1] or main[0] == main[1] else 1
        order = (first, 1 - first, 2)
        data, affine = data.transpose(order), affine[:, [*order, 3]]
        directions = directions[list(order)]
        wanted = [1.0 if axis < 2 else -1.0 for axis in main[list(order)]]
        for axis in range(2):
            if directions[axis, main[order[axis]]] * wanted[axis] < 0:
                data = np.flip(data, axis)
                affine[:3, 3] += affine[:3, axis] * (data.shape[axis] - 1)
                affine[:3, axis] *= -1
    return np.ascontiguousarray(data.transpose(2, 1, 0)), Grid(data.shape, affine, grid.dims)


def stored_values(values: np.ndarray) -> tuple[np.ndarray, float]:
    """Return values as int16 or uint16 and the slope that takes them back, exact to half a step; 0 stays 0.

    Whole numbers that fit have the slope 1, and stay exact.
    """
    low, high = float(values.min()), float(values.max())
    signed = low < 0 or (high <= _LIMITS[True][1] and values.dtype != np.uint16)
    least, most = _LIMITS[signed]
    kind = np.int16 if signed else np.uint16
    if low >= least and high <= most and (values.dtype.kind in "iu" or np.array_equal(values, np.rint(values))):
        return values.astype(kind), 1.0
    signed = low < 0
    least, most = _LIMITS[signed]
    needed = max(high / most, low / least if least else 0.0)
    slope = float(str(decimal(needed)))  # rounded to the digits that a file holds
    if slope < needed:
        slope = float(str(decimal(needed * (1 + 1e-9))))
    stored = np.rint(values.astype(np.float64) / slope)
    return np.clip(stored, least, most).astype(np.int16 if signed else np.uint16), slope


def _window(source: Series, values: np.ndarray) -> tuple[float, float]:
    """Return the centre and width that show an image: of the source for a CT, else of most of the values."""
    if class_of(source) == CT and "WindowCenter" in source.header and "WindowWidth" in source.header:
        centre, width = (_first(source.header[k].value) for k in ("WindowCenter", "WindowWidth"))
        if centre is not None and width is not None and width >= 1:
            return centre, width
    low, high = np.percentile(values, [_TAIL, 100 - _TAIL])
    return float(low + high) / 2, max(float(high - low), 1.0)


def _first(value: Any) -> float | None:
    value = value[0] if hasattr(value, "__iter__") and not isinstance(value, str) and len(value) else value
    return None if value in (None, "") else float(value)


@dataclass(frozen=True, eq=False)
class _Builder:
    """Makes the files of a series."""

    source: Series
    further: Sequence[SourceImage]
    """Images of other series that the image was made from."""
    space: Space | None
    algorithm: Algorithm
    grid: Grid
    same: bool
    """Whether each slice is one of the source's, with its place and header."""
    series_uid: str
    identity: Sequence[str]

    def slice(self, k: int, pixels: np.ndarray, slope: float, window: tuple[float, float]) -> Any:
        """Return one file, for stored pixels (rows, columns)."""
        out = kept_header(self.source, k if self.same else None, has_place=self.space is not None)
        self._state_identity(out, k)
        self._state_derivation(out, k)
        if self.space is not None:
            self._state_place(out, k)
        self._state_spacing(out)
        _state_pixels(out, pixels, slope, window)
        return out

    def _state_identity(self, out: Any, k: int) -> None:
        header = self.source.header
        out.SOPClassUID = out.file_meta.MediaStorageSOPClassUID = class_of(self.source)
        out.SOPInstanceUID = out.file_meta.MediaStorageSOPInstanceUID = uid_of("instance", str(k), *self.identity)
        out.SeriesInstanceUID = self.series_uid
        out.SeriesNumber, out.InstanceNumber = series_number(header, "image"), k + 1
        out.SeriesDescription = one_line(self.algorithm.description)
        out.InstanceCreationDate, out.InstanceCreationTime = now()
        acquired = item(
            PurposeOfReferenceCodeSequence=[_code(_ACQUISITION)], Manufacturer=header.get("Manufacturer", "")
        )
        for keyword in ("ManufacturerModelName", "StationName", "DeviceSerialNumber", "SoftwareVersions"):
            if header.get(keyword):
                setattr(acquired, keyword, header[keyword].value)
        out.ContributingEquipmentSequence = [*out.get("ContributingEquipmentSequence", ()), acquired]
        out.Manufacturer, out.ManufacturerModelName, out.SoftwareVersions = MANUFACTURER, MANUFACTURER, VERSION
        if class_of(self.source) == PET:
            out.ImageIndex, out.NumberOfSlices = k + 1, self.grid.shape[2]

    def _state_derivation(self, out: Any, k: int) -> None:
        stated = list(out.get("ImageType") or [])
        # PET has no derived image that is SECONDARY
        second = "PRIMARY" if class_of(self.source) == PET else "SECONDARY"
        out.ImageType = ["DERIVED", second, *stated[2:]]
        out.DerivationDescription = one_line(self.algorithm.description)
        if not self.same:
            out.DerivationCodeSequence = [_code(_RESAMPLING)]
        images = [self.source.images[k]] if self.same else self.source.images
        out.SourceImageSequence = [_reference(image) for image in (*images, *self.further)]

    def _state_place(self, out: Any, k: int) -> None:
        assert self.space is not None
        out.FrameOfReferenceUID, out.PositionReferenceIndicator = self.space.uid, self.space.indicator
        rows, columns, between = to_dicom(self.grid.affine[:3, :3].T) / self.grid.spacing[:, None]
        origin = to_dicom(apply_affine(self.grid.affine, np.array([[0.0, 0.0, k]])))[0]
        header = self.source.images[k].header if self.same else None
        if header is not None and "ImagePositionPatient" in header:  # digit by digit
            out.ImagePositionPatient = decimals(header.ImagePositionPatient)
            out.ImageOrientationPatient = decimals(header.ImageOrientationPatient)
        else:
            out.ImagePositionPatient = [decimal(v) for v in origin]
            out.ImageOrientationPatient = [decimal(v) for v in (*rows, *columns)]
        normal = np.cross(rows, columns)
        out.SliceThickness = decimal(self.source.thickness if self.same else self.grid.spacing[2])
        out.SliceLocation = decimal(float(origin @ normal))
        if class_of(self.source) == MR and self.grid.shape[2] > 1:
            out.SpacingBetweenSlices = decimal(abs(float(between @ normal)) * self.grid.spacing[2])

    def _state_spacing(self, out: Any) -> None:
        """State the distances of pixels; where there is no place, those of the source, smaller as the pixels are."""
        if self.space is not None:
            across = self.source.spacing if self.same else self.grid.spacing[[1, 0]]
            out.PixelSpacing = [decimal(v) for v in across]
            return
        smaller = np.array(self.source.grid.spacing[[1, 0]]) / self.grid.spacing[[1, 0]]
        for keyword in _SPACINGS:
            if stated := self.source.header.get(keyword):
                setattr(out, keyword, [decimal(float(v) / s) for v, s in zip(stated, smaller, strict=True)])


def _reference(image: SourceImage) -> Any:
    out = item(
        ReferencedSOPClassUID=image.sop_class,
        ReferencedSOPInstanceUID=image.sop_instance,
        PurposeOfReferenceCodeSequence=[_code(_SOURCE)],
    )
    if image.frame is not None:
        out.ReferencedFrameNumber = image.frame
    return out


def _code(code: Iterable[str]) -> Any:
    value, scheme, meaning = code
    return item(CodeValue=value, CodingSchemeDesignator=scheme, CodeMeaning=meaning)


def _state_pixels(out: Any, pixels: np.ndarray, slope: float, window: tuple[float, float]) -> None:
    out.Rows, out.Columns = pixels.shape
    out.SamplesPerPixel, out.PhotometricInterpretation = 1, "MONOCHROME2"
    out.BitsAllocated = out.BitsStored = 16
    out.HighBit, out.PixelRepresentation = 15, int(pixels.dtype.kind == "i")
    out.PixelData = np.ascontiguousarray(pixels.astype(pixels.dtype.newbyteorder("<"))).tobytes()
    out["PixelData"].VR = "OW"
    if out.SOPClassUID != MR or slope != 1.0:  # classic MR has no slope, though readers apply one
        out.RescaleSlope, out.RescaleIntercept = decimal(slope), decimal(0)
        if out.SOPClassUID != PET:
            out.RescaleType = "HU" if out.SOPClassUID == CT else "US"
    out.WindowCenter, out.WindowWidth = decimal(window[0]), decimal(window[1])
    if "PresentationLUTShape" in out:
        out.PresentationLUTShape = "IDENTITY"
