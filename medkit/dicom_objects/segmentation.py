"""Label maps as DICOM segmentations (SEG), made by highdicom: one segment for each label, on the images of a series.

DICOM PS3.3 A.51 (the object), C.8.20 (segments). Segments are numbered from 1 without gaps, so each states its label in
its description, by which medkit reads the same labels back.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from medkit.dicom_objects.codes import Algorithm, Meaning, meaning_of
from medkit.dicom_objects.dicom_frame import to_dicom
from medkit.dicom_objects.identity import (
    MANUFACTURER,
    VERSION,
    DicomObject,
    decimal,
    decimals,
    described,
    digest_of,
    highdicom,
    item,
    one_line,
    series_number,
    uid_of,
)
from medkit.dicom_objects.source import Series, SourceImage
from medkit.errors import InputError
from medkit.figures.overlays import label_colours
from medkit.images.dicom.frames import PER_FRAME, SHARED
from medkit.images.dicom.segments import label_note
from medkit.images.image import Image


@dataclass(frozen=True)
class Segment:
    """A label and what it means."""

    label: int
    name: str
    meaning: Meaning


def segments_of(names: Mapping[int, str], known: Mapping[str, Meaning]) -> list[Segment]:
    """Return the segments for labels and their names, in the order of the labels."""
    return [Segment(n, name, meaning_of(name, known)) for n, name in sorted(names.items())]


def segmentation(labels: Image, segments: Sequence[Segment], series: Series, algorithm: Algorithm) -> DicomObject:
    """Return labels as a SEG that refers to the images of a series.

    labels: (1, I, J, K), or masks (C, I, J, K) that may overlap and are numbered from 1. Labels without a segment are
    named by their number. Raises InputError if they lie on other voxels than the series, or if there are none.
    """
    hd = highdicom()
    where = labels.path or series.path
    masks = len(labels.data) > 1
    channels = [series.planes(channel, labels.grid) for channel in labels.data]
    planes = [channel for channel in channels if channel is not None]
    if len(planes) != len(channels):
        raise InputError(f"{where}: expected labels on the voxels of {series.path}, got another grid")
    there = [n for n, mask in enumerate(planes, start=1) if mask.any()] if masks else _numbers(planes[0])
    if not there:
        raise InputError(f"{where}: a DICOM SEG needs a structure, and the label map is empty")
    named = {one.label: one for one in segments}
    segments = [named.get(n) or Segment(n, f"label {n}", meaning_of(f"label {n}", {})) for n in there]
    if masks:
        pixels = np.stack([planes[n - 1] > 0 for n in there], axis=-1).astype(np.uint8)
    else:
        numbers = np.zeros(there[-1] + 1, np.uint8 if len(there) < 256 else np.uint16)
        numbers[there] = range(1, len(there) + 1)
        pixels = numbers[planes[0]]
    identity = [
        *("seg", str(series.header.SeriesInstanceUID), *(one.sop_instance for one in series.images)),
        *(digest_of(*planes), algorithm.description, described(map(repr, segments))),
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of values that the source states in unusual ways
        made = hd.seg.Segmentation(
            source_images=_sources(series),
            pixel_array=pixels,
            segmentation_type="BINARY",
            segment_descriptions=[_description(hd, n, one, algorithm) for n, one in enumerate(segments, start=1)],
            series_instance_uid=uid_of("series", *identity),
            series_number=series_number(series.header, "seg"),
            sop_instance_uid=uid_of("instance", *identity),
            instance_number=1,
            manufacturer=MANUFACTURER,
            manufacturer_model_name=MANUFACTURER,
            software_versions=VERSION,
            device_serial_number=VERSION,
            content_description=one_line(algorithm.description),
            content_label="SEGMENTATION",
            series_description=one_line(algorithm.description),
            **(_places(hd, series) if series.has_position else {}),
        )
    if series.has_position:
        _state_places(made, series)
    return DicomObject(made)


def _numbers(planes: np.ndarray) -> list[int]:
    """Return the labels that occur, in their order."""
    return [int(n) for n in np.unique(planes) if n]


def _description(hd: Any, number: int, segment: Segment, algorithm: Algorithm) -> Any:
    """Return the item of a segment."""
    meaning = segment.meaning
    out = hd.seg.SegmentDescription(
        segment_number=number,
        segment_label=one_line(segment.name),
        segmented_property_category=meaning.category.concept(),
        segmented_property_type=meaning.type.concept(),
        algorithm_type="AUTOMATIC",
        algorithm_identification=hd.AlgorithmIdentificationSequence(
            name=one_line(algorithm.name),
            version=algorithm.version,
            family=algorithm.family.concept(),
            source=MANUFACTURER,
        ),
        display_color=hd.color.CIELabColor.from_rgb(*(int(v) for v in label_colours(np.array(segment.label)))),
    )
    out.SegmentDescription = label_note(segment.label)
    if meaning.side_code:
        out.SegmentedPropertyTypeCodeSequence[0].SegmentedPropertyTypeModifierCodeSequence = [
            meaning.side_code.concept()
        ]
    return out


def _sources(series: Series) -> list[Any]:
    """Return the headers of the source images as highdicom takes them, which wants equal orientations."""
    from pydicom.sequence import Sequence as Items

    out = [copy.deepcopy(header) for header in series.headers]
    for header in out:
        if series.has_position:
            header.FrameOfReferenceUID = series.frame_of_reference
        if series.is_single_frames:
            if series.has_position:
                header.ImageOrientationPatient = decimals(out[0].ImageOrientationPatient)
                header.ImagePositionPatient = decimals(header.ImagePositionPatient)
            continue
        shared = header[SHARED].value[0] if header.get(SHARED) else item()
        for keyword, value in _common_groups(series).items():
            setattr(shared, keyword, Items([value]))
        setattr(header, SHARED, Items([shared]))
    return out


def _common_groups(series: Series) -> dict[str, Any]:
    """Return the groups that the frames of a volume have in common; files may repeat them for each frame."""
    if not series.has_position:
        return {}
    directions = series.stack.directions
    orientation = item(ImageOrientationPatient=[decimal(v) for v in directions[:, :2].T.ravel()])
    measures = item(PixelSpacing=[decimal(v) for v in series.spacing], SliceThickness=decimal(series.thickness))
    return {"PlaneOrientationSequence": orientation, "PixelMeasuresSequence": measures}


def _places(hd: Any, series: Series) -> dict[str, Any]:
    """Return where the frames lie: exactly where the images do."""
    return {
        "pixel_measures": hd.PixelMeasuresSequence([float(v) for v in series.spacing], series.thickness, series.step),
        "plane_orientation": hd.PlaneOrientationSequence(
            "PATIENT", [float(v) for v in series.stack.directions[:, :2].T.ravel()]
        ),
        "plane_positions": [
            hd.PlanePositionSequence("PATIENT", [float(v) for v in _origin(one)]) for one in series.images
        ],
    }


def _origin(image: SourceImage) -> np.ndarray:
    """Return (3,) LPS mm of an image."""
    return to_dicom(image.origin[None])[0]


def _state_places(made: Any, series: Series) -> None:
    """State the distance of the images as their places have it, and which frame of its file each belongs to."""
    measures = made[SHARED].value[0].PixelMeasuresSequence[0]
    if series.step is not None:
        measures.SpacingBetweenSlices = decimal(series.step)
    elif "SpacingBetweenSlices" in measures:
        del measures.SpacingBetweenSlices
    if series.is_single_frames:
        return
    origins = np.array([_origin(one) for one in series.images])
    for frame in made[PER_FRAME].value:
        place = np.array(frame.PlanePositionSequence[0].ImagePositionPatient, float)
        image = series.images[int(np.linalg.norm(origins - place, axis=1).argmin())]
        frame.DerivationImageSequence[0].SourceImageSequence[0].ReferencedFrameNumber = image.frame
