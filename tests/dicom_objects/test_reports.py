"""`--dicom sr`: volumes and classes as structured reports (TID 1500)."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import highdicom
import numpy as np
import pydicom
import pytest
from dicom_series import IDENTITY, PERSON, ball, check_valid, write_series
from medkit_classify.measurements import answers_of
from outcome import Outcome

from medkit.dicom_objects.codes import FINDING, Algorithm, Code, Meaning, private_code
from medkit.dicom_objects.report import Answer, Volume, class_report, volume_report
from medkit.dicom_objects.segmentation import Segment, segmentation
from medkit.dicom_objects.source import read_series
from medkit.images.image import read_image
from medkit.run.task import Result

Run = Callable[..., Outcome]
LUNG = Meaning(Code("39607008", "SCT", "Lung"), "left")
ALGORITHM = Algorithm("segment", "threshold", "1.0")


def stored(shape: tuple[int, int, int]) -> np.ndarray:
    return np.random.default_rng(0).integers(900, 1200, shape).astype(np.int16)


def test_volumes_refer_to_their_segments(tmp_path: Path) -> None:
    folder = write_series(tmp_path / "scan", stored((12, 10, 6)))
    image, series = read_image(folder), read_series(folder)
    labels = image.with_data((image.data > 100).astype(np.uint8) * 4)
    segments = [Segment(4, "lung_left", LUNG), Segment(9, "not there", Meaning(private_code("not there")))]
    seg = segmentation(labels, segments, series, ALGORITHM)
    seg.write(tmp_path / "seg.dcm")

    made = volume_report([Volume(one, 1234.5) for one in segments], seg.dataset, series, ALGORITHM)
    made.write(tmp_path / "sr.dcm")
    (group,) = highdicom.sr.srread(tmp_path / "sr.dcm").content.get_volumetric_roi_measurement_groups()

    (volume,) = group.get_measurements()
    assert (volume.name.meaning, volume.value, volume.unit.value) == ("Volume", 1234.5, "mm3")
    assert group.finding_type.value == "39607008"
    assert group.finding_sites[0].laterality.meaning == "Left"
    assert group.tracking_identifier == "lung_left"
    assert group.referenced_segment.referenced_sop_instance_uid == seg.dataset.SOPInstanceUID
    assert group.referenced_segment.referenced_segment_numbers == [1]
    header = pydicom.dcmread(tmp_path / "sr.dcm")
    assert (str(header.PatientName), header.PatientID) == (PERSON, IDENTITY)
    assert header.StudyInstanceUID == series.header.StudyInstanceUID
    check_valid(tmp_path / "sr.dcm")


@pytest.mark.parametrize("modality", ["CR", "CT"])
def test_classes_refer_to_their_images(tmp_path: Path, modality: str) -> None:
    voxels = stored((12, 10, 1 if modality == "CR" else 3)).astype(np.uint16)
    series = read_series(write_series(tmp_path / "scan", voxels, modality))
    pneumonia = Code("233604007", "SCT", "Pneumonia")
    answers = [
        Answer(FINDING, "pneumonia", pneumonia, [("normal", 0.1), ("pneumonia", 0.9)]),
        Answer(
            private_code("usability"), "usability", None, [("usable", 0.5)], "noisy, and unlike the training images"
        ),
    ]

    class_report(answers, series, ALGORITHM).write(tmp_path / "sr.dcm")
    groups = highdicom.sr.srread(tmp_path / "sr.dcm").content.get_image_measurement_groups()

    first, second = groups
    assert first.finding_type.value == "233604007"
    assert [(m.name.meaning, m.value) for m in first.get_measurements()] == [
        ("probability of normal", 0.1),
        ("probability of pneumonia", 0.9),
    ]
    (evaluation,) = second.get_qualitative_evaluations()
    assert (evaluation.name.meaning, evaluation.value.meaning) == ("usability", "Undetermined")
    assert second.tracking_identifier.endswith("noisy, and unlike the training images")
    named = [image.referenced_sop_instance_uid for image in first.source_images]
    assert named == [image.sop_instance for image in series.images]
    check_valid(tmp_path / "sr.dcm")


def test_an_image_without_candidates_has_a_report(tmp_path: Path) -> None:
    """It says so: a report without any content is not valid."""
    series = read_series(write_series(tmp_path / "s", stored((8, 8, 4))))
    answers = answers_of(Result({}, metrics={"findings": []}), meanings={}, aspects=frozenset())
    class_report(answers, series, ALGORITHM).write(tmp_path / "r.dcm")
    check_valid(tmp_path / "r.dcm")
    assert "no candidates" in str(pydicom.dcmread(tmp_path / "r.dcm"))


def test_segment_writes_both(medkit: Run, tmp_path: Path) -> None:
    folder = write_series(tmp_path / "anna", ball(), "MR")
    image = read_image(folder)
    seeds = tmp_path / "seeds.csv"
    seeds.write_text("label,x,y,z\nblob," + ",".join(f"{v:.2f}" for v in image.grid.centre) + "\n")

    done = medkit("run", "segment", folder, "--method", "grow", "--seeds", seeds, "--dicom", "sr")

    assert done.code == 0, done.err
    report = highdicom.sr.srread(tmp_path / "anna_measurements.dcm")
    (group,) = report.content.get_volumetric_roi_measurement_groups()
    stated = json.loads((tmp_path / "anna_dseg.json").read_text())["medkit"]["metrics"]["volumes_mm3"]["blob"]
    assert group.get_measurements()[0].value == stated
    seg = pydicom.dcmread(tmp_path / "anna_seg.dcm")
    assert group.referenced_segment.referenced_sop_instance_uid == seg.SOPInstanceUID


def test_an_xray_has_segments_but_no_volumes(medkit: Run, tmp_path: Path) -> None:
    """Its pixels are those of the label map, though it states no place in the body."""
    pixels = np.full((30, 24, 1), 200, np.uint16)
    pixels[4:11, 6:20] = 900
    folder = write_series(tmp_path / "xray", pixels, "CR")
    image = read_image(folder)
    centre = image.grid.affine @ (7, 12, 0, 1)
    seeds = tmp_path / "seeds.csv"
    seeds.write_text("label,x,y,z\nblob," + ",".join(f"{v:.3f}" for v in centre[:3]) + "\n")
    grow = ("run", "segment", folder, "--method", "grow", "--range", "800,1000", "--seeds", seeds)

    done = medkit(*grow, "--dicom", "seg", "-o", tmp_path / "o")
    refused = medkit(*grow, "--dicom", "sr", "-o", tmp_path / "p")

    assert done.code == 0, done.err
    labels = read_image(tmp_path / "o/xray_dseg.nii.gz", labels=True).data[0]
    assert np.array_equal(labels > 0, image.data[0] > 800)
    stored_frames = pydicom.dcmread(tmp_path / "o/xray_seg.dcm").pixel_array.squeeze()
    assert np.array_equal(stored_frames.T > 0, pixels[:, :, 0] > 800)
    assert refused.code == 3
    assert "has no depth, so no structure in it has a volume" in refused.err
    assert not list((tmp_path / "p").glob("*"))
