"""`medkit deidentify`: what goes, what stays, and what is refused."""

from __future__ import annotations

import json
import re
import shutil
import stat
import subprocess
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import planted
import pydicom
import pytest
from PIL import Image as Picture
from PIL import ImageDraw, ImageFont

from medkit.images.image import read_image
from medkit.privacy.dicom_reading import lenient
from medkit.privacy.names import harmless_path
from medkit.privacy.pseudonyms import Pseudonyms

Run = Callable[..., "Outcome"]  # noqa: F821
RNG = np.random.default_rng(0)
TESTS = Path(pydicom.__file__).parent / "data" / "test_files"
SECRET = "0123456789abcdef" * 4


@pytest.fixture(autouse=True)
def secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A secret in the user's config folder."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    path = tmp_path / "config" / "medkit" / "deidentify.secret"
    path.parent.mkdir(parents=True)
    path.write_text(SECRET)
    path.chmod(0o600)
    return path


def volume() -> np.ndarray:
    return RNG.integers(0, 900, (12, 14, 4)).astype(np.int16)


def objects(folder: Path) -> list[Any]:
    return [pydicom.dcmread(path) for path in sorted(folder.rglob("*.dcm"))]


# ---- DICOM


def test_no_planted_text_is_left_in_any_attribute(medkit: Run, tmp_path: Path) -> None:
    voxels = volume()
    source = planted.dicom_series(tmp_path / "Quillfeather Anna" / "scan", voxels)
    data = pydicom.dcmread(source / "000.dcm")
    planted.plant(data, codes=True)
    planted.save(data, source / "000.dcm")
    done = medkit(
        *("deidentify", tmp_path / "Quillfeather Anna", "-o", tmp_path / "out"),
        *("--report", tmp_path / "report.json", "--keep-safe-private", "--keep-patient-characteristics"),
    )
    assert done.code == 0, done.err
    for path in (tmp_path / "out").rglob("*.dcm"):
        assert planted.keywords_with(path) == []
    assert planted.found_in(done.out, tmp_path / "out", tmp_path / "report.json") == []
    (series,) = done.paths
    result = read_image(series)
    assert np.array_equal(result.data, read_image(source).data)
    assert np.array_equal(result.grid.affine, read_image(source).grid.affine)


def test_the_object_says_what_was_done(medkit: Run, tmp_path: Path) -> None:
    source = planted.dicom_series(tmp_path / "in", volume(), PatientSex="F", PatientAge="093Y", PatientWeight="61")
    medkit("deidentify", source, "-o", tmp_path / "plain")
    medkit("deidentify", source, "-o", tmp_path / "more", "--keep-patient-characteristics")
    plain, more = objects(tmp_path / "plain")[0], objects(tmp_path / "more")[0]
    assert re.fullmatch("anon[a-z2-7]{10}", plain.PatientID)
    assert plain.PatientName == plain.PatientID
    assert (plain.PatientIdentityRemoved, plain.LongitudinalTemporalInformationModified) == ("YES", "MODIFIED")
    assert not plain.PatientSex
    assert "PatientWeight" not in plain
    assert (more.PatientSex, more.PatientAge, more.PatientWeight) == ("F", "090Y", 61)
    codes = [item.CodeValue for item in more.DeidentificationMethodCodeSequence]
    assert codes == ["113100", "113105", "113107", "113108", "113109"]
    assert [item.CodeValue for item in plain.DeidentificationMethodCodeSequence] == [c for c in codes if c != "113108"]
    assert plain.preamble == bytes(128)
    assert "SourceApplicationEntityTitle" not in plain.file_meta


def test_people_together_and_apart_have_the_same_pseudonyms_and_shifts(medkit: Run, tmp_path: Path) -> None:
    for number, person in enumerate(("ID1", "ID2", "id1 ")):
        planted.dicom_series(
            tmp_path / "study" / f"s{number}", volume(), person=person, SeriesDate="20190412", ContentDate="20190501"
        )
    together, apart = tmp_path / "together", tmp_path / "apart"
    assert medkit("deidentify", tmp_path / "study", "-o", together).code == 0
    for number in range(3):
        assert medkit("deidentify", tmp_path / "study" / f"s{number}", "-o", apart).code == 0
    one, other = (
        {path.relative_to(root): path.read_bytes() for path in root.rglob("*.dcm")} for root in (together, apart)
    )
    assert one == other
    people: dict[str, set[str]] = {}
    for data in objects(together):
        people.setdefault(data.PatientID, set()).add(data.SeriesDate)
        days = (_day(data.ContentDate) - _day(data.SeriesDate)).days
        assert days == 19
        assert data.AcquisitionDateTime == data.SeriesDate + "101500.5"
        assert data.StudyTime == "101500"
        assert 366 <= (_day("20190412") - _day(data.SeriesDate)).days <= 3650
    assert [len(dates) for dates in people.values()] == [1, 1], "one shift for each of two people"
    assert len(set.union(*people.values())) == 2


def _day(text: str) -> Any:
    from datetime import datetime

    return datetime.strptime(text, "%Y%m%d")


def test_another_secret_makes_other_pseudonyms(medkit: Run, tmp_path: Path) -> None:
    source = planted.dicom_series(tmp_path / "in", volume())
    medkit("deidentify", source, "-o", tmp_path / "a")
    done = medkit("deidentify", source, "-o", tmp_path / "b", "--secret", tmp_path / "new" / "key")
    assert "a new secret" in done.err
    assert stat.S_IMODE((tmp_path / "new" / "key").stat().st_mode) == 0o600
    a, b = objects(tmp_path / "a")[0], objects(tmp_path / "b")[0]
    assert {a.PatientID, a.SOPInstanceUID, a.StudyDate}.isdisjoint({b.PatientID, b.SOPInstanceUID, b.StudyDate})


def test_the_secret_is_in_no_output_and_only_for_the_user(medkit: Run, tmp_path: Path, secret: Path) -> None:
    source = planted.dicom_series(tmp_path / "in", volume())
    done = medkit("deidentify", source, "-o", tmp_path / "out", "--report", tmp_path / "r", "--mapping", tmp_path / "m")
    written = b"".join(path.read_bytes() for path in (tmp_path / "out").rglob("*.dcm"))
    for content in (written, (tmp_path / "r").read_bytes(), (tmp_path / "m").read_bytes(), done.err.encode()):
        assert SECRET.encode() not in content
        assert bytes.fromhex(SECRET) not in content
    secret.chmod(0o644)
    done = medkit("deidentify", source, "-o", tmp_path / "other")
    assert (done.code, "others may read it" in done.err) == (2, True)
    assert medkit("deidentify", source, "-o", tmp_path / "x", "--secret", tmp_path / "x" / "key").code == 2


def test_references_lead_to_the_new_objects(medkit: Run, tmp_path: Path) -> None:
    from pydicom.dataset import Dataset

    images = planted.dicom_series(tmp_path / "study" / "ct", volume())
    first = pydicom.dcmread(images / "000.dcm")
    structures = Dataset()
    structures.SOPClassUID, structures.SOPInstanceUID = pydicom.uid.RTStructureSetStorage, "1.2.3.4.5"
    structures.StudyInstanceUID, structures.SeriesInstanceUID, structures.Modality = (
        first.StudyInstanceUID,
        "1.2.9",
        "RTSTRUCT",
    )
    image, roi, contour, frame = Dataset(), Dataset(), Dataset(), Dataset()
    image.ReferencedSOPClassUID, image.ReferencedSOPInstanceUID = first.SOPClassUID, first.SOPInstanceUID
    contour.ContourImageSequence = [image]
    roi.ContourSequence, roi.ReferencedROINumber = [contour], 1
    frame.FrameOfReferenceUID = first.FrameOfReferenceUID
    structures.ROIContourSequence, structures.ReferencedFrameOfReferenceSequence = [roi], [frame]
    named = Dataset()
    named.ROINumber, named.ROIName = 1, "GTV of Quillfeather"
    structures.StructureSetROISequence = [named]
    planted.plant(structures)
    planted.save(structures, tmp_path / "study" / "rs.dcm")
    assert medkit("deidentify", tmp_path / "study", "-o", tmp_path / "out").code == 0
    found = objects(tmp_path / "out")
    (rs,) = [data for data in found if data.Modality == "RTSTRUCT"]
    images_by_uid = {data.SOPInstanceUID: data for data in found if data.Modality == "CT"}
    reference = rs.ROIContourSequence[0].ContourSequence[0].ContourImageSequence[0]
    assert images_by_uid[reference.ReferencedSOPInstanceUID].InstanceNumber == first.InstanceNumber
    assert reference.ReferencedSOPClassUID == first.SOPClassUID
    assert (
        rs.ReferencedFrameOfReferenceSequence[0].FrameOfReferenceUID
        == next(iter(images_by_uid.values())).FrameOfReferenceUID
    )
    assert rs.StudyInstanceUID == next(iter(images_by_uid.values())).StudyInstanceUID
    assert rs.StructureSetROISequence[0].ROIName == "GTV of"


def test_reports_keep_numbers_and_codes(medkit: Run, tmp_path: Path) -> None:
    from pydicom.dataset import Dataset

    report = Dataset()
    report.SOPClassUID, report.SOPInstanceUID = pydicom.uid.ComprehensiveSRStorage, "1.2.3.4.6"
    report.Modality, report.StudyInstanceUID, report.SeriesInstanceUID = "SR", "1.2.3", "1.2.4"
    items = []
    for kind, keyword, value in (
        ("TEXT", "TextValue", "lesion 12 mm, called Dr. Quillfeather on 27.07.1931"),
        ("PNAME", "PersonName", planted.NAME),
        ("DATE", "Date", "20190412"), ("UIDREF", "UID", "1.2.3.99"), ("NUM", "NumericValue", "12.5"),
    ):  # fmt: skip
        item, code = Dataset(), Dataset()
        code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = "121071", "DCM", "Finding"
        item.ValueType, item.ConceptNameCodeSequence = kind, [code]
        setattr(item, keyword, value)
        items.append(item)
    report.ContentSequence = items
    report.PatientID, report.PatientName = planted.NUMBER, planted.NAME
    planted.save(report, tmp_path / "sr.dcm")
    assert medkit("deidentify", tmp_path / "sr.dcm", "-o", tmp_path / "out").code == 0
    text, name, date, uid, number = objects(tmp_path / "out")[0].ContentSequence
    assert text.TextValue == "lesion 12 mm on"
    assert name.PersonName == "REMOVED"
    assert date.Date != "20190412"
    assert uid.UID.startswith("2.25.")
    assert number.NumericValue == 12.5
    assert {item.ConceptNameCodeSequence[0].CodeMeaning for item in (text, name, date)} == {"Finding"}


def test_private_attributes_go_but_safe_numbers_stay_if_asked(medkit: Run, tmp_path: Path) -> None:
    source = planted.dicom_series(tmp_path / "in", volume(), "MR")
    for path in source.iterdir():
        data = pydicom.dcmread(path)
        block = data.private_block(0x0019, "SIEMENS MR HEADER", create=True)
        block.add_new(0x0C, "IS", "1000")
        block.add_new(0x0E, "FD", [0.0, 0.6, 0.8])
        block.add_new(0x0D, "CS", planted.NAME.upper())
        data.private_block(0x0043, "GEMS_PARM_01", create=True).add_new(0x39, "LO", planted.NAME)
        data.save_as(path)
    medkit("deidentify", source, "-o", tmp_path / "none")
    medkit("deidentify", source, "-o", tmp_path / "safe", "--keep-safe-private")
    assert not [e for data in objects(tmp_path / "none") for e in data.iterall() if e.tag.is_private]
    for data in objects(tmp_path / "safe"):
        private = [e for e in data.iterall() if e.tag.is_private]
        assert [e.value for e in private] == ["SIEMENS MR HEADER", 1000, [0.0, 0.6, 0.8]]


def test_a_mosaic_keeps_its_slices_only_with_the_safe_private_numbers(
    medkit: Run, tmp_path: Path, shared_data: Path
) -> None:
    folder = next(path.parent for path in sorted((shared_data / "dicom" / "dicom_mosaic").rglob("*.dcm")))
    source = tmp_path / "in"
    source.mkdir()
    first = sorted(folder.glob("*.dcm"))[0]
    shutil.copy(first, source)
    done = medkit("deidentify", source, "-o", tmp_path / "out")
    assert (done.code, "--keep-safe-private" in done.err) == (3, True)
    done = medkit("deidentify", source, "-o", tmp_path / "out", "--keep-safe-private")
    assert done.code == 0, done.err
    before, after = read_image(source), read_image(done.paths[0])
    assert np.array_equal(before.data, after.data)
    assert np.allclose(before.grid.affine, after.grid.affine, atol=1e-5)


@pytest.mark.parametrize("name", ["Encapsulated PDF", "Video Endoscopic Image", "Raw Data"])
def test_what_cannot_be_looked_into_is_refused(medkit: Run, tmp_path: Path, name: str) -> None:
    source = planted.dicom_series(tmp_path / "in", volume()[:, :, :2])
    path = source / "000.dcm"
    data = pydicom.dcmread(path)
    uid = next(uid for uid, entry in pydicom.uid.UID_dictionary.items() if entry[0] == f"{name} Storage")
    data.SOPClassUID = data.file_meta.MediaStorageSOPClassUID = uid
    data.save_as(path)
    done = medkit("deidentify", source, "-o", tmp_path / "out")
    assert done.code == 1
    assert "cannot look into it" in done.err
    assert len(objects(tmp_path / "out")) == 1, "the other file is written"


def test_torn_files_are_refused_and_leave_nothing(medkit: Run, tmp_path: Path) -> None:
    source = tmp_path / "in"
    source.mkdir()
    whole = planted.dicom_series(tmp_path / "whole", volume()[:, :, :1]) / "000.dcm"
    for name in ("MR_truncated.dcm", "rtplan_truncated.dcm"):
        shutil.copy(TESTS / name, source)
    (source / "cut.dcm").write_bytes(whole.read_bytes()[:-40])
    (source / "short.dcm").write_bytes(whole.read_bytes()[:3000])
    (source / "no.dcm").write_bytes(b"nothing")
    (source / "cut.nii.gz").write_bytes(planted.nifti(tmp_path / "a.nii.gz", volume()).read_bytes()[:-200])
    done = medkit("deidentify", source, "-o", tmp_path / "out")
    assert done.code == 3
    assert done.err.count("truncated") >= 4
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").rglob("*.*"))
    assert planted.found_in(done.err) == []


def test_only_whole_series_are_printed(medkit: Run, tmp_path: Path) -> None:
    whole = planted.dicom_series(tmp_path / "in" / "whole", volume())
    torn = planted.dicom_series(tmp_path / "in" / "torn", volume(), SeriesNumber=4)
    for path in torn.iterdir():
        path.rename(whole / f"1{path.name}")
    path = whole / "1000.dcm"
    data = pydicom.dcmread(path)
    data.BurnedInAnnotation = "YES"
    data.save_as(path)
    done = medkit("deidentify", tmp_path / "in", "-o", tmp_path / "out")
    assert done.code == 1
    assert [path.name[:6] for path in done.paths] == ["003-CT"]
    assert "may lack files" in done.err
    path.write_bytes(b"\0" * 128 + b"DICM")
    done = medkit("deidentify", tmp_path / "in", "-o", tmp_path / "again")
    assert (done.code, done.paths) == (1, [])


def test_dates_that_are_none_are_emptied(medkit: Run, tmp_path: Path) -> None:
    with lenient():
        source = planted.dicom_series(
            tmp_path / "in", volume()[:, :, :1], ContentDate="1998.07.04", AcquisitionDate="spring"
        )
    medkit("deidentify", source, "-o", tmp_path / "out")
    (data,) = objects(tmp_path / "out")
    assert re.fullmatch(r"\d{8}", data.ContentDate)
    assert not data.AcquisitionDate


def test_overlays_in_unused_bits_are_cleared(medkit: Run, tmp_path: Path) -> None:
    source = planted.dicom_series(tmp_path / "in", np.abs(volume())[:, :, :1], BitsStored=12, HighBit=11)
    path = source / "000.dcm"
    data = pydicom.dcmread(path)
    pixels = np.frombuffer(data.PixelData, "<i2") & 0x07FF
    data.PixelData = (pixels | 0x4000).astype("<i2").tobytes()
    data.save_as(path)
    assert medkit("deidentify", source, "-o", tmp_path / "out").code == 0
    assert np.array_equal(np.frombuffer(objects(tmp_path / "out")[0].PixelData, "<i2"), pixels)


@pytest.mark.real_data
@pytest.mark.parametrize(
    "name", ["brain_mr_oblique", "head_ct_gantry_tilt", "enhanced_multiframe", "dicom_seg_sr_dcmqi"]
)
def test_real_objects_stay_valid_and_whole(medkit: Run, tmp_path: Path, shared_data: Path, name: str) -> None:
    shutil.copytree(shared_data / "dicom" / name, tmp_path / "in", ignore=shutil.ignore_patterns("*-ppv5.dcm"))
    done = medkit("deidentify", tmp_path / "in", "-o", tmp_path / "out", "--mapping", tmp_path / "map.tsv")
    assert done.code == 0, done.err
    rows = [line.split("\t") for line in (tmp_path / "map.tsv").read_text().splitlines()]
    pairs = [(Path(row[1]), Path(row[2])) for row in rows if row[0] == "file" and row[2].endswith(".dcm")]
    assert pairs
    checker = shutil.which("dciodvfy")
    for source, result in pairs:
        before, after = pydicom.dcmread(source), pydicom.dcmread(result)
        if "PixelData" in before:
            assert before.PixelData.rstrip(b"\0") == after.PixelData.rstrip(b"\0")
        if checker:
            assert not _errors(checker, result) - _errors(checker, source), result
    assert medkit("deidentify", "--check", tmp_path / "out").code == 0


def _errors(checker: str, path: Path) -> Counter[str]:
    done = subprocess.run([checker, path], capture_output=True, text=True, errors="replace")
    lines = [line for line in (done.stdout + done.stderr).splitlines() if line.startswith("Error")]
    return Counter(re.sub(r"<[^>]*>|[0-9.]+", "#", line) for line in lines)


# ---- text in pixels


def ultrasound(folder: Path, text: str = "", **tags: Any) -> Path:
    """One frame of 200 x 240 pixels; the image is in rows and columns 60 to 180."""
    folder.mkdir()
    pixels = np.zeros((200, 240), np.uint8)
    pixels[60:180, 60:180] = RNG.integers(0, 90, (120, 120))
    picture = Picture.fromarray(pixels)
    if text:
        ImageDraw.Draw(picture).text((10, 8), text, fill=255, font=ImageFont.load_default(16))
    source = planted.dicom_series(folder / "s", np.zeros((2, 2, 1), np.int16))
    data = pydicom.dcmread(source / "000.dcm")
    data.SOPClassUID, data.Modality = pydicom.uid.UltrasoundImageStorage, "US"
    data.Rows, data.Columns, data.BitsAllocated, data.BitsStored, data.HighBit = 200, 240, 8, 8, 7
    data.PixelRepresentation, data.PixelData = 0, np.asarray(picture).tobytes()
    for name, value in tags.items():
        setattr(data, name, value)
    planted.save(data, source / "000.dcm")
    return source


def test_text_in_pixels_is_refused_or_blanked(medkit: Run, tmp_path: Path) -> None:
    source = ultrasound(tmp_path / "in", "QUILLFEATHER, A. 1931")
    done = medkit("deidentify", source, "-o", tmp_path / "out")
    assert done.code == 3
    assert "look like text (--blank" in done.err
    done = medkit("deidentify", source, "-o", tmp_path / "out", "--blank")
    assert done.code == 0, done.err
    assert "look whether any is left" in done.err
    (data,) = objects(tmp_path / "out")
    before, after = pydicom.dcmread(source / "000.dcm").pixel_array, data.pixel_array
    assert after[:40].max() == 0
    assert np.array_equal(after[60:], before[60:])
    assert data.BurnedInAnnotation == "NO"
    assert "113101" in [item.CodeValue for item in data.DeidentificationMethodCodeSequence]
    assert medkit("deidentify", "--check", tmp_path / "out").code == 0


def test_outside_of_the_regions_of_ultrasound_all_is_blanked(medkit: Run, tmp_path: Path) -> None:
    from pydicom.dataset import Dataset

    region = Dataset()
    region.RegionLocationMinX0, region.RegionLocationMinY0 = 60, 60
    region.RegionLocationMaxX1, region.RegionLocationMaxY1 = 179, 179
    source = ultrasound(tmp_path / "in", "abc", SequenceOfUltrasoundRegions=[region])
    assert medkit("deidentify", source, "-o", tmp_path / "out", "--blank").code == 0
    after = objects(tmp_path / "out")[0].pixel_array
    assert after[60:180, 60:180].max() > 0
    after = after.copy()
    after[60:180, 60:180] = 0
    assert after.max() == 0


@pytest.mark.parametrize(("declared", "codes"), [("", (3, 0)), ("NO", (0, 0)), ("YES", (3, 3))])
def test_suspect_classes_without_visible_text(
    medkit: Run, tmp_path: Path, declared: str, codes: tuple[int, int]
) -> None:
    source = ultrasound(tmp_path / "in", BurnedInAnnotation=declared)
    assert medkit("deidentify", source, "-o", tmp_path / "a").code == codes[0]
    done = medkit("deidentify", source, "-o", tmp_path / "b", "--blank")
    assert done.code == codes[1]
    assert ("look yourself" in done.err) == (declared == "")


def test_text_in_a_slice_of_ct_is_refused(medkit: Run, tmp_path: Path) -> None:
    picture = Picture.fromarray(np.zeros((160, 200), np.uint8))
    ImageDraw.Draw(picture).text((6, 5), "QUILLFEATHER 1931", fill=255, font=ImageFont.load_default(14))
    voxels = RNG.normal(0, 20, (200, 160, 2))
    voxels[:, :, 1] += 6.0 * np.asarray(picture).T
    source = planted.dicom_series(tmp_path / "in", voxels.astype(np.int16))
    done = medkit("deidentify", source, "-o", tmp_path / "out")
    assert done.code == 1
    assert len(objects(tmp_path / "out")) == 1


# ---- other formats

MAKERS: dict[str, Callable[[Path, np.ndarray], Path]] = {
    ".nii.gz": planted.nifti, ".nii": planted.nifti, ".mgz": planted.mgh, ".mgh": planted.mgh,
    ".nrrd": planted.nrrd, ".mha": planted.metaimage,
}  # fmt: skip


@pytest.mark.parametrize("ending", MAKERS)
def test_other_formats_keep_their_voxels_and_lose_their_texts(medkit: Run, tmp_path: Path, ending: str) -> None:
    voxels = volume()
    source = MAKERS[ending](tmp_path / f"Quillfeather_Anna_T1{ending}", voxels)
    assert planted.found_in(source)
    done = medkit("deidentify", source, "-o", tmp_path / "out")
    assert done.code == 0, done.err
    (result,) = done.paths
    assert re.fullmatch(rf"anon[a-z2-7]{{10}}_T1{re.escape(ending)}", result.name)
    assert planted.found_in(tmp_path / "out", done.out) == []
    before, after = read_image(source), read_image(result)
    assert before.data.dtype == after.data.dtype
    assert np.array_equal(before.data, after.data)
    assert np.array_equal(before.grid.affine, after.grid.affine)
    assert medkit("deidentify", "--check", tmp_path / "out").code == 0
    assert medkit("deidentify", "--check", source).code == 1


@pytest.mark.parametrize("encoding", ["raw", "gzip", "bzip2"])
def test_detached_headers_become_one_file(medkit: Run, tmp_path: Path, encoding: str) -> None:
    voxels = volume()
    whole = planted.nrrd(tmp_path / "whole.nrrd", voxels, encoding).read_bytes()
    head, _, body = whole.partition(b"\n\n")
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "brain.nhdr").write_bytes(head + b"\ndata file: Quillfeather.raw\n\n")
    (tmp_path / "in" / "Quillfeather.raw").write_bytes(body)
    done = medkit("deidentify", tmp_path / "in", "-o", tmp_path / "out")
    assert done.code == 0, done.err
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["brain.nrrd"]
    assert "left out" not in done.err
    assert np.array_equal(read_image(done.paths[0]).data[0], voxels)
    assert planted.found_in(tmp_path / "out") == []


def test_nifti_2_and_scaling_stay(medkit: Run, tmp_path: Path) -> None:
    image = nibabel.Nifti2Image(volume(), planted.GEOMETRY)
    image.header["descrip"] = planted.NAME
    image.header.set_slope_inter(0.5, 3)
    image.to_filename(tmp_path / "brain.nii")
    (result,) = medkit("deidentify", tmp_path / "brain.nii", "-o", tmp_path / "out").paths
    before, after = nibabel.load(tmp_path / "brain.nii"), nibabel.load(result)
    assert np.array_equal(before.dataobj, after.dataobj)
    assert bytes(after.header["descrip"]).strip(b"\0") == b""


@pytest.mark.parametrize("name", ["x.png", "x.jpg"])
def test_pictures_keep_their_pixels(medkit: Run, tmp_path: Path, name: str) -> None:
    source = planted.picture(tmp_path / name, RNG.integers(60, 90, (40, 48)).astype(np.uint8))
    (result,) = medkit("deidentify", source, "-o", tmp_path / "out").paths
    assert planted.found_in(result) == []
    with Picture.open(source) as before, Picture.open(result) as after:
        assert np.array_equal(np.asarray(before), np.asarray(after))
        assert not after.getexif()


def test_a_turned_picture_stays_turned(medkit: Run, tmp_path: Path) -> None:
    exif = Picture.Exif()
    exif[0x0112], exif[0x013B] = 6, planted.NAME
    for name in ("x.png", "x.jpg"):
        Picture.fromarray(RNG.integers(60, 90, (40, 48)).astype(np.uint8)).save(tmp_path / name, exif=exif)
        (result,) = medkit("deidentify", tmp_path / name, "-o", tmp_path / "out").paths
        assert planted.found_in(result) == []
        with Picture.open(result) as after:
            assert dict(after.getexif()) == {0x0112: 6}


def test_sidecars_keep_numbers_and_harmless_words(medkit: Run, tmp_path: Path) -> None:
    planted.nifti(tmp_path / "sub-Q_T1w.nii.gz", volume())
    (tmp_path / "sub-Q_T1w.json").write_text(
        json.dumps(
            {
                "EchoTime": 0.003, "Modality": "MR", "Manufacturer": "Siemens", "PatientID": planted.NUMBER,
                "PatientName": planted.NAME, "PatientBirthDate": "1931-07-27", "PatientWeight": 70, planted.NAME: 1,
                "SeriesDescription": "T1 MPRAGE for Quillfeather", "AcquisitionTime": "10:15:00.5",
                "AcquisitionDateTime": "2019-04-12T10:15:00", "SeriesInstanceUID": "1.2.3", "SliceTiming": [0, 0.5],
                "InstitutionName": "Quillfeather Clinic", "ImageType": ["ORIGINAL", planted.NAME.upper()],
                "global": {"const": {"PatientName": planted.NAME, "RepetitionTime": 2}},
            }
        )
    )  # fmt: skip
    done = medkit("deidentify", tmp_path / "sub-Q_T1w.json", tmp_path / "sub-Q_T1w.nii.gz", "-o", tmp_path / "out")
    assert done.code == 0, done.err
    (sidecar,) = (tmp_path / "out").glob("*.json")
    assert done.paths == [sidecar.with_suffix(".nii.gz")], "sidecars go with their image"
    data = json.loads(sidecar.read_text())
    assert planted.found_in(sidecar) == []
    kept = {
        key: data.get(key) for key in ("EchoTime", "Modality", "SeriesDescription", "AcquisitionTime", "SliceTiming")
    }
    assert kept == {
        "EchoTime": 0.003, "Modality": "MR", "SeriesDescription": "T1 MPRAGE for", "AcquisitionTime": "10:15:00.5",
        "SliceTiming": [0, 0.5],
    }  # fmt: skip
    assert data["SeriesInstanceUID"].startswith("2.25.")
    days = Pseudonyms(SECRET.encode()).shift(planted.NUMBER)
    assert data["AcquisitionDateTime"] == f"{np.datetime64('2019-04-12') + days}T10:15:00"
    assert "PatientWeight" not in data
    assert medkit("deidentify", "--check", tmp_path / "out").code == 0


def test_medkits_own_sidecar_keeps_the_task_and_no_paths(medkit: Run, tmp_path: Path) -> None:
    source = planted.nifti(tmp_path / "Quillfeather_dseg.nii.gz", (volume() > 400).astype(np.uint8))
    made = medkit(
        "transform", "apply", source, "--reference", source, "--transform", _identity(tmp_path), "-o", tmp_path / "r"
    )
    assert made.code == 0, made.err
    assert medkit("deidentify", tmp_path / "r", "-o", tmp_path / "out").code == 0
    assert planted.found_in(tmp_path / "out") == []
    (sidecar,) = (tmp_path / "out").glob("*.json")
    data = json.loads(sidecar.read_text())
    assert data["medkit"]["task"]
    assert data["GeneratedBy"][0]["Name"] == "medkit"
    assert sidecar.with_name(data["path"]).exists()
    assert str(tmp_path) not in sidecar.read_text()


def _identity(folder: Path) -> Path:
    path = folder / "identity.tfm"
    path.write_text(
        "#Insight Transform File V1.0\n#Transform 0\nTransform: AffineTransform_double_3_3\n"
        "Parameters: 1 0 0 0 1 0 0 0 1 0 0 0\nFixedParameters: 0 0 0\n"
    )
    return path


def test_gradients_go_with_their_image(medkit: Run, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for ending, text in ((".bval", "0 1000\n"), (".bvec", "0 1\n0 0\n0 -1e-3\n")):
        (tmp_path / "in" / f"Quillfeather_dwi{ending}").write_text(text)
    planted.nifti(tmp_path / "in" / "Quillfeather_dwi.nii.gz", volume())
    (tmp_path / "in" / "other.bval").write_text("0 Quillfeather")
    done = medkit("deidentify", tmp_path / "in", "-o", tmp_path / "out")
    assert done.code == 1
    (image,) = done.paths
    name = image.name.removesuffix(".nii.gz")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {image.name, f"{name}.bval", f"{name}.bvec"}
    assert (tmp_path / "out" / f"{name}.bval").read_text() == "0 1000\n"


def test_an_error_of_a_library_fails_one_file_and_is_not_quoted(
    medkit: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from medkit.privacy import dicom

    source = planted.dicom_series(tmp_path / "in", volume())
    clean, calls = dicom.clean_object, []

    def failing(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise RuntimeError(f"cannot do {planted.NAME}")
        return clean(*arguments)

    monkeypatch.setattr(dicom, "clean_object", failing)
    done = medkit("deidentify", source, "-o", tmp_path / "out")
    assert done.code == 1
    assert len(objects(tmp_path / "out")) == 3
    assert "cannot be treated (RuntimeError)" in done.err
    assert planted.found_in(done.err) == []


# ---- names, places, tables


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("sub-07/ses-2/anat/sub-07_ses-2_T1w.nii.gz", r"sub-(@)/ses-2/anat/sub-\1_ses-2_T1w\.nii\.gz"),
        ("Anna Miller/2019-04-03/t1_mprage.nii", r"@/@/t1_mprage\.nii"),
        ("STS_002_CT.nrrd", r"@_CT\.nrrd"),
        ("19700131_12345678_FLAIR_2.nii.gz", r"@_FLAIR_2\.nii\.gz"),
        ("brain.mhd", r"brain\.mha"),
        ("001/t1_2.mgz", r"001/t1_2\.mgz"),
    ],
)
def test_names_of_files(name: str, wanted: str) -> None:
    found = str(harmless_path(Path(name), Pseudonyms(b"x" * 32)))
    assert re.fullmatch(wanted.replace("@", "anon[a-z2-7]{10}"), found), found


def test_the_table_of_who_is_who_is_only_for_the_user_and_grows(medkit: Run, tmp_path: Path) -> None:
    table = tmp_path / "who.tsv"
    for name in ("a", "b"):
        source = planted.dicom_series(tmp_path / name, volume()[:, :, :1], person=name.upper())
        assert medkit("deidentify", source, "-o", tmp_path / "out", "--mapping", table).code == 0
    assert stat.S_IMODE(table.stat().st_mode) == 0o600
    rows = [line.split("\t") for line in table.read_text().splitlines()]
    assert [row[1] for row in rows if row[0] == "person"] == ["A", "B"]
    files = [row for row in rows if row[0] == "file"]
    assert all(Path(row[1]).exists() and Path(row[2]).exists() for row in files)
    assert medkit("deidentify", source, "-o", tmp_path / "new", "--mapping", tmp_path / "new" / "who.tsv").code == 2


def test_results_never_lie_among_the_inputs_or_over_others(medkit: Run, tmp_path: Path) -> None:
    source = planted.dicom_series(tmp_path / "in", volume()[:, :, :1])
    before = {path: path.read_bytes() for path in source.iterdir()}
    assert medkit("deidentify", tmp_path / "in", "-o", tmp_path / "in" / "out").code == 2
    assert medkit("deidentify", source, "-o", tmp_path / "out").code == 0
    done = medkit("deidentify", source, "-o", tmp_path / "out")
    assert (done.code, "exists already" in done.err) == (3, True)
    assert medkit("deidentify", source, "-o", tmp_path / "out", "--overwrite").code == 0
    assert {path: path.read_bytes() for path in source.iterdir()} == before
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        planted.nifti(tmp_path / name / "t1.nii", volume())
    done = medkit("deidentify", tmp_path / "a", tmp_path / "b", "-o", tmp_path / "two")
    assert (done.code, len(done.lines)) == (1, 1)
    assert "another input of this run" in done.err


def test_other_files_are_left_out_and_counted(medkit: Run, tmp_path: Path) -> None:
    planted.nifti(tmp_path / "t1.nii", volume())
    (tmp_path / "participants.tsv").write_text(f"participant_id\tname\nsub-01\t{planted.NAME}\n")
    done = medkit("deidentify", tmp_path / "t1.nii", tmp_path.parent / tmp_path.name, "-o", tmp_path.parent / "out")
    assert "left out: 1 other file" in done.err or "other files" in done.err


def test_zips_are_treated_as_their_folders(medkit: Run, tmp_path: Path) -> None:
    """The same files as those of the folder, bit for bit; what is in the zip besides DICOM is counted."""
    for name in ("one", "two"):
        planted.dicom_series(tmp_path / "in" / "Quillfeather" / name, volume())
    (tmp_path / "in" / "Quillfeather" / "letter.txt").write_text(planted.NAME)
    archive = Path(shutil.make_archive(str(tmp_path / "zips" / "Quillfeather"), "zip", tmp_path / "in"))
    (tmp_path / "zips" / "bad.zip").write_bytes(archive.read_bytes()[:-40])
    assert medkit("deidentify", tmp_path / "in", "-o", tmp_path / "a").code == 0
    done = medkit("deidentify", archive, "-o", tmp_path / "b")
    assert done.code == 0, done.err
    assert "left out: 1 other file in zips, of which only DICOM is read" in done.err
    wanted = {path.relative_to(tmp_path / "a"): path.read_bytes() for path in (tmp_path / "a").rglob("*.dcm")}
    assert len(wanted) == 8
    made = {path.relative_to(tmp_path / "b"): path.read_bytes() for path in (tmp_path / "b").rglob("*.dcm")}
    assert made == wanted
    assert planted.found_in(done.out, tmp_path / "b") == []
    check = medkit("deidentify", "--check", archive)
    assert check.code == 1
    assert f"{archive / 'Quillfeather' / 'one'}: " in check.out

    done = medkit("deidentify", tmp_path / "zips", "-o", tmp_path / "c")
    assert done.code == 1
    assert f"{tmp_path / 'zips' / 'bad.zip'}: a zip that cannot be read" in done.err
    assert len(list((tmp_path / "c").rglob("*.dcm"))) == 8
    assert medkit("deidentify", tmp_path / "zips" / "bad.zip", "-o", tmp_path / "d").code == 3


def test_check_prints_fields_and_no_values(medkit: Run, tmp_path: Path) -> None:
    source = planted.dicom_series(tmp_path / "in", volume(), BodyPartExamined="HEAD")
    done = medkit("deidentify", "--check", source)
    assert done.code == 1
    assert "PatientName (8)" in done.out
    assert "private attributes" in done.out
    assert "deface it" in done.err
    assert planted.found_in(done.out, done.err) == []
    assert not (tmp_path / "config" / "medkit" / "other").exists()


def test_a_second_treatment_keeps_the_pseudonym(medkit: Run, tmp_path: Path) -> None:
    source = planted.dicom_series(tmp_path / "in", volume()[:, :, :1])
    medkit("deidentify", source, "-o", tmp_path / "one")
    medkit("deidentify", tmp_path / "one", "-o", tmp_path / "two")
    assert objects(tmp_path / "one")[0].PatientID == objects(tmp_path / "two")[0].PatientID


def test_usage(medkit: Run, tmp_path: Path) -> None:
    source = planted.nifti(tmp_path / "a.nii", volume())
    assert medkit("deidentify", source).code == 2
    assert medkit("deidentify", source, "--check", "-o", tmp_path / "o").code == 2
    assert medkit("deidentify", tmp_path / "missing", "-o", tmp_path / "o").code == 2
    (tmp_path / "empty").mkdir()
    assert medkit("deidentify", tmp_path / "empty", "-o", tmp_path / "o").code == 3
