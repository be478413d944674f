"""DICOM studies as inputs: a case for each series that the task takes, from folders, zips and a DICOMDIR."""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
from dicoms import NAMES, SAGITTAL, STUDY, header, image, write, write_series

Run = Callable[..., "Outcome"]  # noqa: F821


@pytest.fixture
def study(tmp_path: Path) -> dict[str, np.ndarray]:
    """A folder `study` with all series in one place: 2 and 5 are scans, the others are not; series -> values."""
    place = tmp_path / "study"
    scans = {"2": write_series(place, 2), "5": write_series(place, 5, 6, Modality="CT")}
    write_series(place, 1, 3, ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    write_series(place, 3, ImageType=["DERIVED", "PRIMARY", "DIFFUSION", "ADC"])
    write_series(place, 4, 1)
    write_series(place, 7, SeriesDescription="Planted^Name 3-plane scout")
    write(place / "8.dcm", header(8, Modality="RTSTRUCT", SOPClassUID="1.2.840.10008.5.1.4.1.1.481.3"))
    colours = image(9, np.zeros((8, 7)), (0, 0, 0))
    colours.SamplesPerPixel, colours.PhotometricInterpretation, colours.PlanarConfiguration = 3, "RGB", 0
    colours.BitsAllocated, colours.BitsStored, colours.HighBit, colours.PixelData = 8, 8, 7, bytes(8 * 7 * 3)
    write(place / "9.dcm", colours)
    write_series(place, 10, Modality="SEG")
    write_series(place, 11, SOPClassUID="1.2.840.10008.5.1.4.1.1.7")
    return scans


def voxels(path: Path) -> np.ndarray:
    """The values of a result of `double`, in the order of the DICOM files."""
    return np.asarray(nib.load(path).dataobj)


LEFT_OUT = {
    "1 (MR, ORIGINAL/PRIMARY/LOCALIZER, 8 x 7 x 3)": "a localizer",
    "3 (MR, DERIVED/PRIMARY/DIFFUSION/ADC, 8 x 7 x 4)": "derived: a map",
    "4 (MR, ORIGINAL/PRIMARY/M, 8 x 7 x 1)": "a single slice",
    "7 (MR, ORIGINAL/PRIMARY/M, 8 x 7 x 4)": "a localizer",
    "8 (RTSTRUCT, ORIGINAL/PRIMARY/M)": "no image",
    "9 (MR, ORIGINAL/PRIMARY/M, 8 x 7 x 1)": "colours",
    "10 (SEG, ORIGINAL/PRIMARY/M": "a segmentation, no scan",
    "11 (MR, ORIGINAL/PRIMARY/M, 8 x 7 x 4)": "a secondary capture",
}


def test_a_study_in_one_folder_is_a_case_for_each_scan(toy: Run, study: dict[str, np.ndarray], tmp_path: Path) -> None:
    done = toy("run", "double", tmp_path / "study", "-o", tmp_path / "out", "--json")
    assert done.code == 0, done.err
    records = [json.loads(line) for line in done.out.splitlines()]
    assert [Path(r["path"]).name for r in records] == ["study_2_double.nii.gz", "study_5_double.nii.gz"]
    for record, (number, values) in zip(records, study.items(), strict=True):
        assert record["Sources"] == [str(tmp_path / f"study#series={number}")]
        entry = record["medkit"]["inputs"]["image"]
        assert (entry["SeriesInstanceUID"], entry["SeriesNumber"]) == (f"{STUDY}.{number}", number)
        np.testing.assert_array_equal(voxels(record["path"]), values * 2)
    for title, reason in LEFT_OUT.items():
        line = next(line for line in done.err.splitlines() if f"left out series {title}" in line)
        assert line.endswith(f": {reason}"), line


def test_no_name_reaches_an_output(toy: Run, study: dict[str, np.ndarray], tmp_path: Path) -> None:
    done = toy("run", "double", tmp_path / "study", "-o", tmp_path / "out", "--json", "--qc", tmp_path / "out/qc")
    written = b"".join(path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file())
    for word in NAMES:
        assert word not in done.out + done.err
        assert word.encode() not in written


def test_a_study_of_nothing_to_take_fails_and_names_each_series(
    toy: Run, study: dict[str, np.ndarray], tmp_path: Path
) -> None:
    for path in (tmp_path / "study").iterdir():
        if path.name[0] in "25":
            path.unlink()
    done = toy("run", "double", tmp_path / "study", "-o", tmp_path / "out", "--failed", tmp_path / "failed")
    assert done.code == 3
    assert f"{tmp_path / 'study'}: double takes none of its 8 DICOM series:" in done.err
    assert all(f"series {title}" in done.err and reason in done.err for title, reason in LEFT_OUT.items())
    assert (tmp_path / "failed").read_text() == f"{tmp_path / 'study'}\n"


def test_results_are_found_again_and_lead_to_their_series(
    toy: Run, shell: Run, study: dict[str, np.ndarray], tmp_path: Path
) -> None:
    """Resuming, a pipe of paths to a task that goes back to the scan, and the command that makes it again."""
    first = toy("run", "halves", tmp_path / "study")
    assert [p.name for p in first.paths] == ["study_2_dseg.nii.gz", "study_5_dseg.nii.gz"]
    again = toy("run", "halves", tmp_path / "study", "--skip-existing", "--json")
    assert [json.loads(line)["medkit"]["skipped"] for line in again.out.splitlines()] == [True, True]
    write_series(tmp_path / "study", 5, 6, Modality="CT", RescaleSlope=2, RescaleIntercept=0)
    redone = toy("run", "halves", tmp_path / "study", "--skip-existing", "--json")
    assert [json.loads(line)["medkit"]["skipped"] for line in redone.out.splitlines()] == [True, False]
    done = shell("medkit run halves study --overwrite | medkit run measure")
    assert done.code == 0, done.err
    means = [path.read_text().splitlines()[-1] for path in done.paths]
    assert means == [f"mean\t{study['2'].mean():.3f}", f"mean\t{2 * study['5'].mean():.3f}"]
    shown = toy("show", first.paths[1])
    assert "study#series=5" in shown.out


def test_one_series_can_be_named(
    toy: Run, study: dict[str, np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the path that messages show, also of one that is left out, and by its UID."""
    (tmp_path / "list").write_text(f"study#series=1\n{tmp_path}/study#series={STUDY}.2\n")
    monkeypatch.chdir(tmp_path)
    done = toy("run", "double", "--list", tmp_path / "list", "-o", tmp_path / "out")
    assert done.code == 0, done.err
    assert [p.name for p in done.paths] == ["study_1_double.nii.gz", f"study_{STUDY}.2_double.nii.gz"]
    missing = toy("run", "double", tmp_path / "study#series=77")
    assert missing.code == 3
    assert "study: has no series 77; it has 1, 2, 3, 4, 5, 7, 8, 9, 10, 11" in missing.err
    asked = toy("run", "double", tmp_path / "study", "--series", "3", "-o", tmp_path / "asked")
    assert [p.name for p in asked.paths] == ["study_double.nii.gz"]


def test_shards_and_children(toy: Run, shell: Run, study: dict[str, np.ndarray], tmp_path: Path) -> None:
    parts = [toy("run", "double", tmp_path / "study", "--shard", f"{k}/3", "-o", tmp_path / "a") for k in (1, 2, 3)]
    assert sorted(path.name for part in parts for path in part.paths) == [
        *("study_2_double.nii.gz", "study_5_double.nii.gz"),
    ]
    done = shell("echo study | medkit run double --workers 2 -o b")
    assert done.code == 0, done.err
    for number, values in study.items():
        np.testing.assert_array_equal(voxels(tmp_path / f"b/study_{number}_double.nii.gz"), values * 2)


def test_dry_run(toy: Run, study: dict[str, np.ndarray], tmp_path: Path) -> None:
    done = toy("run", "double", tmp_path / "study", "--dry-run", "--json", "-o", tmp_path / "out")
    assert [json.loads(line)["medkit"]["status"] for line in done.out.splitlines()] == ["planned"] * 2
    assert f"would run double on {tmp_path / 'study#series=2'} -> {tmp_path / 'out/study_2_double.nii.gz'}" in done.err
    toy("run", "double", tmp_path / "study", "-o", tmp_path / "out")
    kept = toy("run", "double", tmp_path / "study", "--dry-run", "--skip-existing", "-o", tmp_path / "out")
    assert kept.err.count("would keep") == 2


def test_series_of_one_number_get_unlike_names(toy: Run, tmp_path: Path) -> None:
    """Names come from the number and the UID, so that they stay the same when further series come."""
    for part, place in enumerate(("a", "b")):
        write_series(tmp_path / "in" / place, 3, SeriesInstanceUID=f"{STUDY}.9{part}")
    flat = tmp_path / "flat"
    flat.mkdir()
    for place in ("a", "b"):
        for path in (tmp_path / "in" / place).iterdir():
            path.rename(flat / f"{place}{path.name}")
    first = toy("run", "double", flat, "-o", tmp_path / "out")
    assert first.code == 0, first.err
    names = [path.name for path in first.paths]
    assert len(set(names)) == 2
    assert all(name.startswith("flat_3-") for name in names)
    write_series(flat, 4)
    second = toy("run", "double", flat, "-o", tmp_path / "out", "--skip-existing")
    assert [path.name for path in second.paths] == [*names, "flat_4_double.nii.gz"]


def test_folders_of_series_keep_their_names(toy: Run, tmp_path: Path) -> None:
    """A series in several folders is one case; one that is alone in its folder has the folder's name."""
    place = tmp_path / "study"
    alone, apart = write_series(place / "SE1", 1), write_series(place / "SE2", 2, 6)
    for number, part in enumerate(("A", "B")):
        for k in range(3):
            path = place / f"SE2/2_{2 * k + number}.dcm"
            path.rename(write(place / "more" / part / path.name, header(2)))
    done = toy("run", "double", place, "-o", tmp_path / "out")
    assert done.code == 0, done.err
    assert done.paths == [tmp_path / "out/SE1_double.nii.gz", tmp_path / "out/more_2_double.nii.gz"]
    np.testing.assert_array_equal(voxels(done.paths[0]), alone * 2)
    np.testing.assert_array_equal(voxels(done.paths[1]), apart * 2)
    assert toy("run", "double", place / "SE1").paths == [place / "SE1_double.nii.gz"]


def test_a_damaged_file_fails_its_series_only(toy: Run, study: dict[str, np.ndarray], tmp_path: Path) -> None:
    torn = tmp_path / "study/5_3.dcm"
    torn.write_bytes(torn.read_bytes()[:-20])
    (tmp_path / "study/garbage.dcm").write_bytes(b"no DICOM")
    done = toy("run", "double", tmp_path / "study", "-o", tmp_path / "out")
    assert done.code == 1
    assert [path.name for path in done.paths] == ["study_2_double.nii.gz"]
    assert f"{torn}: a DICOM image that cannot be read: truncated" in done.err
    assert "garbage.dcm: " in done.err


def test_time_points_need_a_choice(toy: Run, tmp_path: Path) -> None:
    for time in (1, 2):
        write_series(tmp_path / "in" / str(time), 2, TemporalPositionIdentifier=time)
    write_series(tmp_path / "in/3", 3)
    done = toy("run", "double", tmp_path / "in", "-o", tmp_path / "out")
    assert [path.name for path in done.paths] == ["3_double.nii.gz"]
    assert "left out series 2 (MR, ORIGINAL/PRIMARY/M, 8 x 7 x 4 x 2): 2 frames; --frame N picks one" in done.err


def test_slices_in_several_orientations_are_a_localizer(toy: Run, tmp_path: Path) -> None:
    write_series(tmp_path / "in", 3)
    for number, axes in enumerate(((1.0, 0, 0, 0, 1.0, 0), SAGITTAL)):
        write(tmp_path / f"in/1_{number}.dcm", image(1, np.ones((8, 7)), (0, 0, 0), axes))
    done = toy("run", "double", tmp_path / "in", "-o", tmp_path / "out")
    assert [path.name for path in done.paths] == ["in_3_double.nii.gz"]
    assert "slices in 2 orientations, as localizers have" in done.err


def zipped(folder: Path) -> Path:
    """A zip of a folder, next to it."""
    target = folder.with_name(f"{folder.name}.zip")
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(folder.rglob("*")):
            archive.write(path, path.relative_to(folder.parent))
    return target


def test_a_zip_is_read_where_it_is(
    toy: Run, shell: Run, study: dict[str, np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setenv("TMPDIR", str(scratch))
    folder = toy("run", "double", tmp_path / "study", "-o", tmp_path / "a", "--json")
    archive = zipped(tmp_path / "study")
    done = toy("run", "double", archive, "-o", tmp_path / "b", "--json")
    assert done.code == 0, done.err
    for one, other in zip(folder.out.splitlines(), done.out.splitlines(), strict=True):
        first, second = json.loads(one), json.loads(other)
        assert Path(second["path"]).read_bytes() == Path(first["path"]).read_bytes()
        assert second["medkit"]["inputs"]["image"]["sha256"] == first["medkit"]["inputs"]["image"]["sha256"]
    assert "study.zip: left out series 1 (MR" in done.err
    assert list(scratch.iterdir()) == []
    piped = shell("medkit run halves study.zip -o c | medkit run measure --workers 1")
    assert piped.code == 0, piped.err
    assert f"mean\t{study['5'].mean():.3f}" in piped.paths[1].read_text()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "c", "scratch", "study", "study.zip"]


@pytest.mark.parametrize("name", ["../escaped.dcm", "/tmp/escaped.dcm", "C:\\escaped.dcm", "a/../../escaped.dcm"])
def test_a_zip_that_leads_out_of_itself_is_refused(toy: Run, tmp_path: Path, name: str) -> None:
    with zipfile.ZipFile(tmp_path / "bad.zip", "w") as archive:
        archive.writestr(name, b"x")
    done = toy("run", "double", tmp_path / "bad.zip", "-o", tmp_path / "out")
    assert done.code == 3
    assert "bad.zip: refused: its member" in done.err
    assert "leads out of it" in done.err


def test_a_zip_bomb_is_refused(toy: Run, tmp_path: Path) -> None:
    with (
        zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("a.dcm", "w") as one,
    ):
        for _ in range(80):
            one.write(bytes(1 << 20))
    done = toy("run", "double", tmp_path / "bomb.zip")
    assert done.code == 3
    assert "as a zip bomb does" in done.err
    (tmp_path / "torn.zip").write_bytes((tmp_path / "bomb.zip").read_bytes()[:1000])
    assert "torn.zip: a zip that cannot be read" in toy("run", "double", tmp_path / "torn.zip").err


def write_dicomdir(folder: Path) -> None:
    """Write a DICOMDIR that names the files below a folder."""
    listing = header(0, SOPClassUID=pydicom.uid.MediaStorageDirectoryStorage)
    listing.DirectoryRecordSequence = []
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        record = pydicom.Dataset()
        record.DirectoryRecordType, record.ReferencedFileID = "IMAGE", list(path.relative_to(folder).parts)
        listing.DirectoryRecordSequence.append(record)
    write(folder / "DICOMDIR", listing)


def test_a_dicomdir_stands_for_its_folder(toy: Run, tmp_path: Path) -> None:
    for number in (2, 5):
        write_series(tmp_path / f"CD/SE{number}", number)
    for path in list((tmp_path / "CD").rglob("*.dcm")):  # names on CDs have no dots
        path.rename(path.with_suffix(""))
    write_dicomdir(tmp_path / "CD")
    done = toy("run", "double", tmp_path / "CD/DICOMDIR", "-o", tmp_path / "out")
    assert done.code == 0, done.err
    assert [path.name for path in done.paths] == ["SE2_double.nii.gz", "SE5_double.nii.gz"]
    assert "DICOMDIR" not in done.err
    shutil.copy(tmp_path / "CD/DICOMDIR", tmp_path / "CD/LISTING")
    assert toy("run", "double", tmp_path / "CD", "-o", tmp_path / "again").code == 0
    (tmp_path / "CD/SE5/5_3").unlink()
    torn = toy("run", "double", tmp_path / "CD", "-o", tmp_path / "more")
    assert "DICOMDIR: 1 of the 8 files that it names are not there, such as SE5/5_3" in torn.err


def test_options_name_one_series(medkit: Run, study: dict[str, np.ndarray], tmp_path: Path) -> None:
    scan, place = tmp_path / "study#series=5", tmp_path / "out.nii.gz"
    done = medkit("transform", "apply", scan, "--reference", tmp_path / "study#series=2", "-o", place)
    assert done.code == 0, done.err
    assert voxels(place).shape == study["2"].shape
    shown = medkit("show", place)
    assert "study#series=5" in shown.out


def test_copies_of_files_are_left_out(toy: Run, tmp_path: Path) -> None:
    """In another folder and in the same one."""
    values = write_series(tmp_path / "in/a", 3)
    shutil.copytree(tmp_path / "in/a", tmp_path / "in/b")
    done = toy("run", "double", tmp_path / "in", "-o", tmp_path / "out")
    assert done.code == 0, done.err
    assert done.paths == [tmp_path / "out/a_double.nii.gz"]
    assert f"4 files are copies of others, and left out, such as {tmp_path / 'in/b/3_0.dcm'}" in done.err
    shutil.copy(tmp_path / "in/a/3_1.dcm", tmp_path / "in/a/copy of 3_1.dcm")
    again = toy("run", "double", tmp_path / "in/a", "-o", tmp_path / "more")
    assert again.paths == [tmp_path / "more/a_3_double.nii.gz"]
    np.testing.assert_array_equal(voxels(again.paths[0]), values * 2)
