"""`medkit dicom convert`: names, persons, volumes of one file, PET in SUV, and what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from dicoms import NAMES, STUDY, header, write_series
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from medkit.studies.naming import Scan, suffix_for
from medkit.studies.uptake import uptake_of

Run = Callable[..., "Outcome"]  # noqa: F821


def files(folder: Path) -> list[str]:
    """All files below a folder."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """Two persons, the first one with two studies; a localizer and a report."""
    place = tmp_path / "study"
    write_series(place / "a", 2, EchoTime=4.0, RepetitionTime=900.0, ScanningSequence="SE", StudyDate="20200103")
    write_series(place / "b", 5, Modality="CT", StudyInstanceUID=f"{STUDY}.8", StudyDate="20200102")
    write_series(place / "c", 1, 3, ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    write_series(place / "d", 2, PatientID="other", StudyInstanceUID=f"{STUDY}.9", SeriesInstanceUID=f"{STUDY}.9.2")
    return place


def test_bids_names_and_persons(medkit: Run, study: Path, tmp_path: Path) -> None:
    done = medkit("dicom", "convert", study, "-o", tmp_path / "out")
    assert done.code == 0, done.err
    assert files(tmp_path / "out") == [
        *("sub-01/ses-01/ct/sub-01_ses-01_run-5_ct.json", "sub-01/ses-01/ct/sub-01_ses-01_run-5_ct.nii.gz"),
        *("sub-01/ses-02/anat/sub-01_ses-02_run-2_T1w.json", "sub-01/ses-02/anat/sub-01_ses-02_run-2_T1w.nii.gz"),
        *("sub-02/anat/sub-02_run-2_MR.json", "sub-02/anat/sub-02_run-2_MR.nii.gz"),
    ]
    assert sorted(map(str, done.paths)) == [str(tmp_path / "out" / name) for name in files(tmp_path / "out")[1::2]]
    assert "left out series 1 (MR, ORIGINAL/PRIMARY/LOCALIZER, 8 x 7 x 3): a localizer" in done.err
    written = b"".join((tmp_path / "out" / name).read_bytes() for name in files(tmp_path / "out"))
    for word in (*NAMES, "20200103"):
        assert word not in done.out + done.err
        assert word.encode() not in written


def test_values_and_places_are_those_of_the_reader(medkit: Run, tmp_path: Path) -> None:
    from medkit.images import read_image

    values = write_series(tmp_path / "in", 2, RescaleSlope=2, RescaleIntercept=-100)
    ours = read_image(medkit("dicom", "convert", tmp_path / "in", "-o", tmp_path / "out").paths[0])
    dicom = read_image(tmp_path / "in")
    np.testing.assert_array_equal(ours.data[0][:, ::-1], values * 2 - 100)
    assert ours.data.dtype == dicom.data.dtype == np.int16
    corner = np.array([0, values.shape[1] - 1, 0, 1])
    np.testing.assert_allclose(ours.grid.affine @ corner, dicom.grid.affine @ [0, 0, 0, 1], atol=1e-5)


def test_sidecars_are_records(medkit: Run, toy: Run, study: Path, tmp_path: Path) -> None:
    """They lead from a result back to the series, and state what dcm2niix does."""
    (path,) = medkit("dicom", "convert", study / "a", "-o", tmp_path / "out").paths
    facts = json.loads(path.with_name(path.name.replace(".nii.gz", ".json")).read_text())
    assert (facts["EchoTime"], facts["RepetitionTime"], facts["SliceThickness"]) == (0.004, 0.9, 3.0)
    assert facts["medkit"]["inputs"]["image"]["SeriesInstanceUID"] == f"{STUDY}.2"
    done = toy("run", "double", path, "-o", tmp_path / "more")
    assert str(study / "a") in toy("show", done.paths[0]).out


def test_a_pipe(shell: Run, study: Path) -> None:
    done = shell("medkit dicom convert study -o out | medkit run double")
    assert done.code == 0, done.err
    assert len(done.paths) == 3


def test_patterns(medkit: Run, study: Path, tmp_path: Path) -> None:
    done = medkit(
        "dicom", "convert", study / "a", "-o", tmp_path, "--name", "{patient}-{modality}/s{series}", "--patient", "x"
    )
    assert done.paths == [tmp_path / "x-MR/s2.nii.gz"]
    for pattern, reason in (
        ("{PatientID}", "no field PatientID"),
        ("{patient.__class__}", "no field patient.__class__"),
        ("../{series}", "expected a path below the folder"),
        ("/tmp/{series}", "expected a path below the folder"),
    ):
        refused = medkit("dicom", "convert", study / "a", "-o", tmp_path / "no", "--name", pattern)
        assert refused.code == 2
        assert reason in refused.err
        assert not (tmp_path / "no").exists()
    named = medkit(
        "dicom", "convert", study / "a", "-o", tmp_path, "--name", "{PatientName}/../../{series}", "--identify"
    )
    assert named.code == 2
    named = medkit("dicom", "convert", study / "a", "-o", tmp_path, "--name", "{PatientName}_{series}", "--identify")
    assert named.paths == [tmp_path / "Planted_Name_2.nii.gz"]
    several = medkit("dicom", "convert", study, "-o", tmp_path / "n", "--patient", "x")
    assert (several.code, "--patient x: the series are those of 2 persons" in several.err) == (2, True)
    clash = medkit("dicom", "convert", study, "-o", tmp_path / "clash", "--name", "all")
    assert clash.code == 1
    assert [path.name for path in clash.paths] == ["all.nii.gz"]
    assert "all is the name of" in clash.err


def test_existing_files_stay(medkit: Run, study: Path, tmp_path: Path) -> None:
    command = ("dicom", "convert", study / "a", "-o", tmp_path / "out")
    (path,) = medkit(*command).paths
    before = path.read_bytes()
    again = medkit(*command)
    assert again.code == 1
    assert "exists already" in again.err
    write_series(study / "a", 2, EchoTime=4.0, RepetitionTime=900.0, ScanningSequence="SE", RescaleSlope=2)
    assert medkit(*command, "--overwrite").code == 0
    assert path.read_bytes() != before


def test_a_damaged_series_does_not_stop_the_others(medkit: Run, study: Path, tmp_path: Path) -> None:
    torn = study / "b/5_1.dcm"
    torn.write_bytes(torn.read_bytes()[:-9])
    (study / "a/2_1.dcm").unlink()
    done = medkit("dicom", "convert", study, "-o", tmp_path / "out")
    assert done.code == 1
    assert [path.name for path in done.paths] == ["sub-02_run-2_MR.nii.gz"]
    assert f"{torn}: a DICOM image that cannot be read" in done.err
    assert "a slice is missing" in done.err
    assert not list((tmp_path / "out").rglob("*.part*"))


def test_nothing_to_convert_is_an_error(medkit: Run, study: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    done = medkit("dicom", "convert", tmp_path / "empty", "-o", tmp_path / "out")
    assert (done.code, "empty: holds no DICOM files" in done.err) == (1, True)
    only = medkit("dicom", "convert", study / "c", "-o", tmp_path / "out")
    assert (only.code, "none of the series is converted" in only.err) == (1, True)
    assert medkit("dicom", "convert", study / "c", "-o", tmp_path / "out", "--all").code == 0


def test_a_zip(medkit: Run, study: Path, tmp_path: Path) -> None:
    archive = shutil.make_archive(str(tmp_path / "zipped"), "zip", study)
    one, other = (
        medkit("dicom", "convert", place, "-o", tmp_path / name) for place, name in ((study, "a"), (archive, "b"))
    )
    assert [path.read_bytes() for path in one.paths] == [path.read_bytes() for path in other.paths]


def test_echoes_parts_and_times(medkit: Run, tmp_path: Path) -> None:
    """Echoes and parts become files; time points one file of four axes, in the order of their numbers."""
    values = {}
    number = 0
    for time in (2, 1):
        for echo in (1, 2):
            for part in ("M", "P"):
                number += 1
                values[time, echo, part] = write_series(
                    tmp_path / f"in/{number}", 3, EchoNumbers=echo, EchoTime=10.0 * echo, RepetitionTime=2000.0,
                    ImageType=["ORIGINAL", "PRIMARY", part], TemporalPositionIdentifier=time, InstanceNumber=number,
                    RescaleSlope=number, RescaleIntercept=0,
                ) * number  # fmt: skip
    done = medkit("dicom", "convert", tmp_path / "in", "-o", tmp_path / "out")
    assert done.code == 0, done.err
    names = {path.name: path for path in done.paths}
    assert sorted(names) == [
        f"sub-01_run-3_echo-{echo}_{part}PDw.nii.gz" for echo in (1, 2) for part in ("", "part-phase_")
    ]
    for echo in (1, 2):
        image = nib.load(names[f"sub-01_run-3_echo-{echo}_part-phase_PDw.nii.gz"])
        assert image.header.get_zooms() == (1.5, 2.0, 3.0, 2.0)
        expected = np.stack([values[time, echo, "P"] for time in (2, 1)], -1)
        np.testing.assert_array_equal(np.asarray(image.dataobj)[:, ::-1], expected)
        facts = json.loads((tmp_path / f"out/sub-01/anat/sub-01_run-3_echo-{echo}_PDw.json").read_text())
        assert (facts["EchoTime"], facts["EchoNumber"]) == (0.01 * echo, echo)


# ---- PET


def pet(**changes: Any) -> Dataset:
    """A PET header: 70 kg, 370 MBq of F-18 an hour before the scan."""
    data = header(3, Modality="PT", Units="BQML", CorrectedImage=["DECY", "ATTN", "SCAT"], DecayCorrection="START")
    data.PatientWeight, data.SeriesDate, data.SeriesTime, data.AcquisitionDate = 70.0, "20200101", "120000", "20200101"
    data.AcquisitionTime = "120000"
    tracer = Dataset()
    tracer.RadionuclideTotalDose, tracer.RadionuclideHalfLife = 370e6, 6586.2
    tracer.RadiopharmaceuticalStartTime = "110000"
    data.RadiopharmaceuticalInformationSequence = Sequence([tracer])
    for name, value in changes.items():
        setattr(tracer if name.startswith("Radio") else data, name, value)
    return data


def test_uptake_of_corrected_values() -> None:
    decayed = 370e6 * 2 ** (-3600 / 6586.2)
    assert uptake_of([pet()]).factor == pytest.approx(70e3 / decayed, rel=1e-6)
    assert uptake_of([pet(DecayCorrection="ADMIN")]).factor == pytest.approx(70e3 / 370e6, rel=1e-6)
    assert uptake_of([pet(Units="GML")]).factor == 1
    # made anew later: the first acquisition counts; before midnight: the dose is of the day before
    assert uptake_of([pet(SeriesTime="180000"), pet(AcquisitionTime="121000")]).factor == uptake_of([pet()]).factor
    late = pet(SeriesTime="003000", AcquisitionTime="003000", RadiopharmaceuticalStartTime="233000")
    assert late is not None
    assert uptake_of([late]).factor == pytest.approx(uptake_of([pet()]).factor, rel=1e-6)


def test_uptake_of_philips() -> None:
    data = pet(Units="CNTS")
    assert "counts" in uptake_of([data]).reason
    block = data.private_block(0x7053, "Philips PET Private Group", create=True)
    block.add_new(0x09, "DS", "2.5")
    assert uptake_of([data]).factor == pytest.approx(2.5 * (uptake_of([pet()]).factor or 0))
    block.add_new(0x00, "DS", "0.00051")
    assert uptake_of([data]).factor == pytest.approx(0.00051)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"PatientWeight": None}, "no weight"),
        ({"RadionuclideTotalDose": None}, "no injected dose"),
        ({"CorrectedImage": ["SCAT"]}, "not corrected"),
        ({"DecayCorrection": "NONE"}, "expected values corrected for decay"),
        ({"RadiopharmaceuticalStartTime": ""}, "no times of injection"),
        ({"RadionuclideHalfLife": 0}, "no half-life"),
        ({"Units": "CM2ML"}, "expected values in Bq/ml, got CM2ML"),
    ],
)
def test_no_uptake_without_what_it_needs(changes: dict[str, Any], reason: str) -> None:
    found = uptake_of([pet(**changes)])
    assert found.factor is None
    assert reason in found.reason


def test_pet_is_converted_to_uptake(medkit: Run, tmp_path: Path) -> None:
    """A slope for each slice, and the factor."""
    tags = {name: pet().get(name) for name in ("Units", "CorrectedImage", "PatientWeight", "SeriesDate", "SeriesTime")}
    tags |= {"AcquisitionDate": "20200101", "AcquisitionTime": "120000", "DecayCorrection": "START", "Modality": "PT"}
    sequence = pet().RadiopharmaceuticalInformationSequence
    values = write_series(
        tmp_path / "in", 3, RadiopharmaceuticalInformationSequence=sequence, RescaleIntercept=0, **tags
    )
    import pydicom

    for k in range(4):
        data = pydicom.dcmread(tmp_path / f"in/3_{k}.dcm")
        data.RescaleSlope = 10.5 * (k + 1)
        data.save_as(tmp_path / f"in/3_{k}.dcm")
    (path,) = medkit("dicom", "convert", tmp_path / "in", "-o", tmp_path / "suv").paths
    (plain,) = medkit("dicom", "convert", tmp_path / "in", "-o", tmp_path / "bqml", "--no-suv").paths
    activity = values * 10.5 * np.arange(1, 5)
    np.testing.assert_allclose(np.asarray(nib.load(plain).dataobj)[:, ::-1], activity, rtol=1e-6)
    factor = uptake_of([pet()]).factor
    np.testing.assert_allclose(np.asarray(nib.load(path).dataobj)[:, ::-1], activity * factor, rtol=1e-6)
    facts = json.loads(path.with_name(path.name.replace(".nii.gz", ".json")).read_text())
    assert (facts["Units"], facts["SUVFactor"]) == ("SUVbw", pytest.approx(factor))
    assert path.name == "sub-01_run-3_pet.nii.gz"


@pytest.mark.parametrize(
    ("facts", "words", "suffix"),
    [
        ({"EchoTime": 0.1, "RepetitionTime": 8, "InversionTime": 2.4}, "", "FLAIR"),
        ({"EchoTime": 0.1, "RepetitionTime": 5}, "", "T2w"),
        ({"EchoTime": 0.01, "RepetitionTime": 0.6}, "", "T1w"),
        ({"EchoTime": 0.015, "RepetitionTime": 3.5}, "", "PDw"),
        ({"EchoTime": 0.003, "ScanningSequence": "GR\\IR"}, "", "T1w"),
        ({"EchoTime": 0.02, "ScanningSequence": "GR"}, "", "T2starw"),
        ({"EchoTime": 0.1}, "ax t2 flair", "FLAIR"),
        ({}, "sag mprage", "T1w"),
        ({}, "planted", "MR"),
    ],
)
def test_contrasts(facts: dict[str, Any], words: str, suffix: str) -> None:
    assert suffix_for("MR", facts, words, volumes=1, weighted=False) == suffix


def test_a_label_of_two_series_with_one_number() -> None:
    from medkit.studies.naming import bids_name

    scan = Scan("01", "02", "3-5f3a9c", "3", "MR", "T1w", 2, "phase")
    assert bids_name(scan).name == "sub-01_ses-02_acq-5f3a9c_run-3_echo-2_part-phase_T1w"
