"""Volumes and classes as DICOM structured reports (SR) by the template of measurement reports, TID 1500.

DICOM PS3.16 TID 1500, TID 1411 (volumes of segments) and TID 1501 (classes of images), made by highdicom.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from medkit.dicom_objects.codes import FINDING, Algorithm, Code, Meaning, private_code
from medkit.dicom_objects.identity import (
    MANUFACTURER,
    VERSION,
    DicomObject,
    described,
    highdicom,
    one_line,
    series_number,
    uid_of,
)
from medkit.dicom_objects.segmentation import Segment
from medkit.dicom_objects.source import Series

_REPORT = Code("126000", "DCM", "Imaging Measurement Report")
_PROCEDURE = Code("363679005", "SCT", "Imaging procedure")
_DEVICE = Code("121007", "DCM", "Device")
_VOLUME = Code("118565006", "SCT", "Volume")
_MM3 = Code("mm3", "UCUM", "cubic millimeter")
_NO_UNITS = Code("1", "UCUM", "no units")
_NO_CLASS = Code("373068000", "SCT", "Undetermined")


@dataclass(frozen=True)
class Volume:
    """The volume of a segment."""

    segment: Segment
    mm3: float


@dataclass(frozen=True)
class Answer:
    """What a classification says of one question, or of one place."""

    question: Code
    """What was asked; `Finding` if there is one question only."""
    name: str
    """The class and where it is, for people."""
    found: Code | None
    """The class; None if the classifier abstains."""
    probabilities: Sequence[tuple[str, float]]
    """Name of a class and its probability, 0 to 1."""
    remark: str = ""
    """Why there is no class."""


def volume_report(volumes: Sequence[Volume], segments: Any, series: Series, algorithm: Algorithm) -> DicomObject:
    """Return volumes as a report that refers to the segments of a SEG, a pydicom data set, and their series."""
    hd = highdicom()
    numbers = {one.SegmentLabel: int(one.SegmentNumber) for one in segments.SegmentSequence}
    groups = [
        _volume_group(hd, one, numbers[one_line(one.segment.name)], segments, series, algorithm)
        for one in volumes
        if one_line(one.segment.name) in numbers
    ]
    identity = [segments.SOPInstanceUID, described(f"{one.segment.name} {one.mm3:.6g}" for one in volumes)]
    return _report(hd, groups, [*series.headers, segments], series, algorithm, identity)


def _volume_group(hd: Any, volume: Volume, number: int, segments: Any, series: Series, algorithm: Algorithm) -> Any:
    """Return the measurements of a segment (TID 1411)."""
    meaning = volume.segment.meaning
    return hd.sr.VolumetricROIMeasurementsAndQualitativeEvaluations(
        tracking_identifier=hd.sr.TrackingIdentifier(
            uid=uid_of("volume", segments.SOPInstanceUID, str(number)), identifier=one_line(volume.segment.name)
        ),
        referenced_segment=hd.sr.ReferencedSegment(
            sop_class_uid=segments.SOPClassUID,
            sop_instance_uid=segments.SOPInstanceUID,
            segment_number=number,
            source_series=hd.sr.SourceSeriesForSegmentation(str(series.header.SeriesInstanceUID)),
        ),
        finding_type=meaning.type.concept(),
        finding_category=meaning.category.concept(),
        finding_sites=_sites(hd, meaning),
        algorithm_id=_identified(hd, algorithm),
        measurements=[hd.sr.Measurement(_VOLUME.concept(), round(volume.mm3, 3), _MM3.concept())],
    )


def _sites(hd: Any, meaning: Meaning) -> list[Any] | None:
    """Return where a structure is; None for those on no side, whose type says all."""
    if meaning.side_code is None:
        return None
    return [hd.sr.FindingSite(meaning.type.concept(), laterality=meaning.side_code.concept())]


def class_report(answers: Sequence[Answer], series: Series, algorithm: Algorithm) -> DicomObject:
    """Return classes and their probabilities as a report that refers to the images of a series."""
    hd = highdicom()
    groups = [_answer_group(hd, n, answer, series, algorithm) for n, answer in enumerate(answers, start=1)]
    return _report(hd, groups, list(series.headers), series, algorithm, [described(map(repr, answers))])


def _answer_group(hd: Any, number: int, answer: Answer, series: Series, algorithm: Algorithm) -> Any:
    """Return the class of a question, and the probabilities (TID 1501)."""
    found = answer.found or _NO_CLASS
    name = answer.name + (f": {answer.remark}" if answer.remark else "")
    frames: dict[tuple[str, str], list[int]] = {}
    for image in series.images:
        frames.setdefault((image.sop_class, image.sop_instance), []).extend(filter(None, [image.frame]))
    return hd.sr.MeasurementsAndQualitativeEvaluations(
        tracking_identifier=hd.sr.TrackingIdentifier(
            uid=uid_of("answer", str(series.header.SeriesInstanceUID), str(number), repr(answer)), identifier=name
        ),
        finding_type=found.concept() if answer.question == FINDING else None,
        algorithm_id=_identified(hd, algorithm),
        measurements=[
            hd.sr.Measurement(private_code(f"probability of {name}").concept(), round(value, 6), _NO_UNITS.concept())
            for name, value in answer.probabilities
        ],
        qualitative_evaluations=(
            []
            if answer.question == FINDING
            else [hd.sr.QualitativeEvaluation(answer.question.concept(), found.concept())]
        ),
        source_images=[
            hd.sr.SourceImageForMeasurementGroup(kind, instance, numbers or None)
            for (kind, instance), numbers in frames.items()
        ],
    )


def _identified(hd: Any, algorithm: Algorithm) -> Any:
    return hd.sr.AlgorithmIdentification(name=one_line(algorithm.name), version=algorithm.version)


def _report(
    hd: Any, groups: list[Any], evidence: list[Any], series: Series, algorithm: Algorithm, identity: Sequence[str]
) -> DicomObject:
    observer = hd.sr.ObserverContext(
        observer_type=_DEVICE.concept(),
        observer_identifying_attributes=hd.sr.DeviceObserverIdentifyingAttributes(
            uid=uid_of("device"), name=MANUFACTURER, manufacturer_name=MANUFACTURER, model_name=MANUFACTURER
        ),
    )
    uids = ["sr", str(series.header.SeriesInstanceUID), algorithm.description, *identity]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of values that the source states in unusual ways
        content = hd.sr.MeasurementReport(
            observation_context=hd.sr.ObservationContext(observer_device_context=observer),
            procedure_reported=_PROCEDURE.concept(),
            imaging_measurements=groups,
            title=_REPORT.concept(),
        )
        made = hd.sr.ComprehensiveSR(
            evidence=evidence,
            content=content[0],
            series_instance_uid=uid_of("series", *uids),
            series_number=series_number(series.header, "sr"),
            sop_instance_uid=uid_of("instance", *uids),
            instance_number=1,
            manufacturer=MANUFACTURER,
            manufacturer_model_name=MANUFACTURER,
            software_versions=VERSION,
            is_complete=True,
            series_description=one_line(algorithm.description),
        )
    return DicomObject(made)
