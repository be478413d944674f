"""Contours as a DICOM RT Structure Set (RTSTRUCT), written with pydicom.

DICOM PS3.3 A.19 (the object), C.8.8.5 and C.8.8.6 (structures, contours). Holes are joined to the contour around them
by a channel of no width ("keyhole"), which every reader fills right.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from medkit.dicom_objects import Series, SourceImage, digest_of, item, now, series_number, to_dicom, tolerance, uid_of
from medkit.errors import InputError
from medkit.figures import label_colours
from medkit.options import PROGRAM
from medkit_contours.polygons import Contour, ContourSet, Structure, directions_across

RTSTRUCT = "1.2.840.10008.5.1.4.1.1.481.3"
_STUDY_COMPONENT = "1.2.840.10008.3.1.2.3.2"
"""The retired class by which a structure set names its study, as the standard asks."""
_COPIED = (
    *("PatientName", "PatientID", "PatientBirthDate", "PatientSex"),
    *("StudyInstanceUID", "StudyDate", "StudyTime", "StudyID", "StudyDescription", "AccessionNumber"),
    *("ReferringPhysicianName", "PositionReferenceIndicator", "PatientIdentityRemoved", "DeidentificationMethod"),
)
"""What a structure set shares with its series, so that archives file it under the same patient and study."""
_REQUIRED = (
    *("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "StudyID"),
    *("AccessionNumber", "ReferringPhysicianName", "PositionReferenceIndicator"),
)
"""Of these, what must be there even if it is empty."""


@dataclass(frozen=True, eq=False)
class StructureSetFile:
    """An RTSTRUCT as an output of a task."""

    dataset: Any
    """pydicom data set with its file meta information."""
    missing: tuple[str, ...]
    """Names of structures without a contour, since they lie between the images."""

    def write(self, path: Path) -> None:
        """Write the file."""
        self.dataset.save_as(path, enforce_file_format=True)


def structure_set(contours: ContourSet, series: Series, name: str, path: Path) -> StructureSetFile:
    """Return contours as an RTSTRUCT that refers to a series.

    name: label of the structure set; path: the label map, for messages. Raises InputError if the contours do not lie in
    the planes of the images, or if there are none.
    """
    if not any(one.contours for one in contours.structures):
        raise InputError(f"{path}: an RTSTRUCT needs a contour, and the label map is empty")
    content = _Content(contours.normal, planes_of(contours, series, path))
    out = _head(series, name)
    out.ReferencedFrameOfReferenceSequence = [_frame_of_reference(out.FrameOfReferenceUID, series)]
    out.StructureSetROISequence = [content.roi(one, out.FrameOfReferenceUID) for one in contours.structures]
    out.ROIContourSequence = [content.contours(one) for one in contours.structures]
    out.RTROIObservationsSequence = [_observation(one) for one in contours.structures]
    identity = [
        *("rtstruct", *(one.sop_instance for one in series.images), name),
        *(f"{one.number} {one.name}" for one in contours.structures),
        *(digest_of(contour.points) for one in contours.structures for contour in one.contours),
    ]
    out.SOPInstanceUID, out.SeriesInstanceUID = uid_of("instance", *identity), uid_of("series", *identity)
    out.file_meta.MediaStorageSOPInstanceUID = out.SOPInstanceUID
    empty = {int(item.ReferencedROINumber) for item in out.ROIContourSequence if "ContourSequence" not in item}
    return StructureSetFile(out, tuple(one.name for one in contours.structures if one.number in empty))


Planes = Mapping[int, Sequence[tuple[SourceImage, np.ndarray]]]
"""Slice of a label map -> the images that get its contours, each with the shift (3,) mm of the contours' points."""


def planes_of(contours: ContourSet, series: Series, path: Path) -> Planes:
    """Return which images get the contours of which slice of the label map.

    Each slice lies on an image. Where the images are unevenly far apart, no label map has their slices, and each image
    gets the contours of the nearest slice. Raises InputError for a slice with contours that lies on no image.
    """
    grid, axis = contours.grid, contours.axis
    assert grid is not None, "only contours of label maps are written"
    along = grid.affine[:3, axis]
    step = float(along @ contours.normal)
    found: dict[int, list[tuple[SourceImage, np.ndarray]]] = {}
    taken = set()
    for image in series.images:
        place = float((image.origin - grid.affine[:3, 3]) @ contours.normal) / step
        number = round(place)
        near = not series.is_even or abs(place - number) * step <= tolerance(step)
        if near and round(place, 3) not in taken:  # of several images in a plane, such as echoes, one is enough
            taken.add(round(place, 3))
            found.setdefault(number, []).append((image, (place - number) * along))
    drawn = {number for structure in contours.structures for number in _by_slice(structure.contours)}
    if series.is_even and drawn - set(found):
        raise InputError(
            f"{path}: its slice {min(drawn - set(found))} lies on no image of {series.path}: an RTSTRUCT needs a "
            "label map on the grid of the series (`medkit transform apply --reference FOLDER` brings it there)"
        )
    return found


def _head(series: Series, name: str) -> Any:
    """Return a data set with everything but the structures."""
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import UID, ImplicitVRLittleEndian

    date, time = now()
    out = Dataset()
    out.SpecificCharacterSet = "ISO_IR 192"  # UTF-8: names of structures may be in any language
    for keyword in _COPIED:
        if keyword in series.header:
            out[keyword] = series.header[keyword]
        elif keyword in _REQUIRED:
            setattr(out, keyword, "")
    out.SOPClassUID = UID(RTSTRUCT)
    out.Modality = "RTSTRUCT"
    out.Manufacturer, out.ManufacturerModelName, out.SoftwareVersions = "", PROGRAM["Name"], PROGRAM["Version"]
    out.SeriesNumber = series_number(series.header, "rtstruct")
    out.SeriesDescription = f"Contours: {name}"[:64]
    out.OperatorsName = ""
    out.StructureSetLabel, out.StructureSetName = name[:16], name[:64]
    out.StructureSetDate = out.InstanceCreationDate = date
    out.StructureSetTime = out.InstanceCreationTime = time
    out.ApprovalStatus = "UNAPPROVED"
    out.FrameOfReferenceUID = series.frame_of_reference
    out.file_meta = FileMetaDataset()
    out.file_meta.MediaStorageSOPClassUID = UID(RTSTRUCT)
    # explicit lengths of ContourData have 16 bits, and the outline of a body has more numbers
    out.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
    return out


def _frame_of_reference(uid: str, series: Series) -> Any:
    """Return the item that names the series and its images."""
    named = dict.fromkeys((one.sop_class, one.sop_instance) for one in series.images)
    images = [item(ReferencedSOPClassUID=kind, ReferencedSOPInstanceUID=instance) for kind, instance in named]
    own = item(SeriesInstanceUID=series.header.SeriesInstanceUID, ContourImageSequence=images)
    study = item(
        ReferencedSOPClassUID=_STUDY_COMPONENT,
        ReferencedSOPInstanceUID=series.header.StudyInstanceUID,
        RTReferencedSeriesSequence=[own],
    )
    return item(FrameOfReferenceUID=uid, RTReferencedStudySequence=[study])


@dataclass(frozen=True, eq=False)
class _Content:
    """The structures as items of a data set."""

    normal: np.ndarray
    """(3,) RAS+, across the contours."""
    planes: Planes

    def roi(self, structure: Structure, frame_of_reference: str) -> Any:
        return item(
            ROINumber=structure.number,
            ReferencedFrameOfReferenceUID=frame_of_reference,
            ROIName=structure.name.replace("\\", "/")[:64],  # DICOM separates values by a backslash
            ROIGenerationAlgorithm="AUTOMATIC",
        )

    def contours(self, structure: Structure) -> Any:
        colour = [int(value) for value in label_colours(np.array(structure.number))]
        items = [
            _contour(image, points + shift)
            for number, slice_contours in _by_slice(structure.contours).items()
            for points in joined(slice_contours, self.normal)
            for image, shift in self.planes.get(number, ())
        ]
        out = item(ROIDisplayColor=colour, ReferencedROINumber=structure.number)
        if items:
            out.ContourSequence = items
        return out


def _contour(image: SourceImage, points: np.ndarray) -> Any:
    places = to_dicom(points)
    reference = item(ReferencedSOPClassUID=image.sop_class, ReferencedSOPInstanceUID=image.sop_instance)
    if image.frame is not None:
        reference.ReferencedFrameNumber = image.frame
    return item(
        ContourImageSequence=[reference],
        ContourGeometricType="CLOSED_PLANAR",
        NumberOfContourPoints=len(places),
        ContourData=[f"{value:.4f}" for value in places.ravel()],
    )


def _observation(structure: Structure) -> Any:
    return item(
        ObservationNumber=structure.number,
        ReferencedROINumber=structure.number,
        RTROIInterpretedType="",
        ROIInterpreter="",
    )


def _by_slice(contours: Sequence[Contour]) -> dict[int, list[Contour]]:
    slices: dict[int, list[Contour]] = {}
    for one in contours:
        assert one.slice is not None, "contours of label maps lie on slices"
        slices.setdefault(one.slice, []).append(one)
    return slices


def joined(contours: Sequence[Contour], normal: np.ndarray) -> list[np.ndarray]:
    """Return the contours of one slice as polygons (N, 3) RAS+ mm, each with its holes reached through channels."""
    from scipy.spatial import KDTree

    flat = directions_across(normal)
    out = [one.points for one in contours if not one.hole]
    bodies = _Bodies([points @ flat for points in out])
    for hole in (one.points for one in contours if one.hole):
        owner = bodies.around(hole @ flat)
        polygon = out[owner]
        apart, nearest = KDTree(polygon).query(hole)
        start = int(apart.argmin())
        at, ring = int(nearest[start]), np.roll(hole, -start, axis=0)
        out[owner] = np.concatenate([polygon[: at + 1], ring, ring[:1], polygon[at:]])
    return out


@dataclass(frozen=True, eq=False)
class _Bodies:
    """The outer contours of a slice, by which holes find theirs."""

    polygons: Sequence[np.ndarray]
    """(N, 2) mm each."""

    @cached_property
    def boxes(self) -> np.ndarray:
        """(bodies, 2, 2): the smallest and the largest coordinates of each."""
        return np.array([(points.min(axis=0), points.max(axis=0)) for points in self.polygons])

    def around(self, hole: np.ndarray) -> int:
        """Return the number of the smallest polygon that surrounds a hole (N, 2) mm."""
        from skimage.measure import points_in_poly

        low, high = self.boxes[:, 0], self.boxes[:, 1]
        wide = ((low <= hole.min(axis=0)) & (high >= hole.max(axis=0))).all(axis=1)
        possible = sorted(map(int, np.flatnonzero(wide)), key=lambda n: float(np.prod(high[n] - low[n])))
        # a corner of a hole may lie on the outline of another body: most of the middles of its edges decide
        middles = (hole + np.roll(hole, -1, axis=0)) / 2
        inside = (n for n in possible[:-1] if points_in_poly(middles, self.polygons[n]).mean() > 0.5)
        return next(inside, possible[-1])
